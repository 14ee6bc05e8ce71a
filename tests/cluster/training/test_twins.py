"""Every recipe that says it trains on a CPU does: real videos, real Ray workers, every phase, evaluation at the end."""

from __future__ import annotations

import json
import math

import pytest

from cluster.evaluation.evaluate import evaluate_run
from cluster.training.driver import train
from cluster.training.phases import train_phases
from cluster.training.plan import plan_run
from vidssl.recipe import RECIPES, load_recipe, recipe_names

TWINS = [name for name in recipe_names() if name.endswith("-tiny")]
SMALL = ["trainer.workers=1", "trainer.batch=8", "clips.size=32", "clips.frames=4", "mining.topk=2", "model.width=4"]
FEW = {"trainer.steps": 6, "method.queue": 16, "method.warmup_steps": 2, "method.vicc.prototypes": 10}


def words_for(name: str) -> list[str]:
    given = load_recipe(name)
    few = {key: value for key, value in FEW.items() if key != "method.warmup_steps" or given.method.warmup_steps}
    every = [f"{'*:' if given.phases else ''}{key}={value}" for key, value in few.items()]
    pool = ["mining.pool=6"] if given.mining.pool else []
    return [*SMALL, *pool, *every]


def test_every_published_recipe_names_its_twin():
    for name in recipe_names():
        if name.endswith(("-s3d", "-r2plus1d", "-r3d", "-c3d")):
            text = (RECIPES / f"{name}.yaml").read_text()
            assert any(twin in text for twin in TWINS), name


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
@pytest.mark.parametrize("name", TWINS)
def test_a_tiny_twin_trains_and_is_evaluated(name, packed, tmp_path, ray_cluster):
    recipe = load_recipe(name, [f"data={packed}", f"trainer.storage={tmp_path}", *words_for(name)])
    if recipe.phases:
        outcome = train_phases(plan_run(recipe))
        last = outcome.folder.path / recipe.phases[-1].name
    else:
        outcome = train(plan_run(recipe))
        last = outcome.folder.path
    assert outcome.steps == 6 * max(len(recipe.phases), 1)
    rows = [json.loads(line) for line in (last / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert evaluate_run(last)["retrieval"].results["trained"].r1 >= 0
