"""`trainer.workers=0`: one worker and its bank in the process that was started, without Ray; the same numbers, the same promises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from cluster.cli import main
from cluster.training.driver import train
from cluster.training.plan import plan_resume, plan_run
from tests.cluster.training.small_runs import leftovers, small
from tests.cluster.training.test_phases import CYCLE
from vidssl.errors import RecipeError
from vidssl.recipe import load_recipe
from vidssl.saved.checkpoint import checkpoint_path
from vidssl.saved.tensors import read_tensors

pytestmark = pytest.mark.usefixtures("usual_signals")
ALONE = ("trainer.workers=0", "trainer.batch=8")


def rows(folder):
    return [json.loads(line) for line in folder.log.read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in rows(folder)]


@pytest.fixture(scope="module")
def alone(packed, tmp_path_factory):
    """A run of 24 steps in this process."""
    home = tmp_path_factory.mktemp("alone")
    return train(plan_run(small(packed, home, *ALONE))).folder


def test_it_trains_mines_and_leaves_what_a_run_leaves(alone):
    logged = rows(alone)
    assert [row["step"] for row in logged] == list(range(24))
    assert logged[-1]["loss"] < logged[6]["loss"] * 2
    assert any(row.get("bank/fallback_ratio") == 0 for row in logged)
    assert leftovers(alone.path) == []
    assert alone.read_recipe().trainer.in_process


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(alone, packed, tmp_path):
    plan = plan_run(small(packed, tmp_path, *ALONE))
    first = train(plan.__class__(**{**vars(plan), "until": 13}))
    assert first.steps == 13
    train(plan_resume(first.folder.path))
    assert losses(first.folder) == losses(alone)
    one, two = (read_tensors(checkpoint_path(folder, 24) / "model.pt") for folder in (alone, first.folder))
    assert all(tensor.equal(two["method"][name]) for name, tensor in one["method"].items() if hasattr(tensor, "equal"))


def test_no_ray_is_imported_and_a_signal_stops_it_with_a_checkpoint(packed, tmp_path):
    small(packed, tmp_path)
    script = (
        "import sys\nfrom cluster.cli import main\ncode = main(sys.argv[1:])\n"
        "print('RAY' if 'ray' in sys.modules else 'NONE')\nsys.exit(code)\n"
    )
    words = ["train", "small.yaml", f"data={packed}", f"trainer.storage={tmp_path}", *ALONE, "trainer.steps=5000"]
    command = [sys.executable, "-W", "ignore", "-c", script, *words, "--no-evaluation"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step") and int(line.split()[1].partition("/")[0]) == 7:
                os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == 130, said
    assert said[-1] == "NONE\n"
    assert any(line.startswith("stopped after step ") for line in said)
    assert leftovers(tmp_path / "small") == []
    assert plan_resume(tmp_path / "small").start


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("mining.miners=1", "trainer.deterministic=false"),
            r"mining\.miners=1 are processes of Ray, and trainer\.workers=0 trains without it; type trainer\.workers=1",
        ),
        (("mining.shards=2",), r"mining\.shards=2 are processes of Ray"),
    ],
)
def test_what_needs_ray_is_refused(words, sentence, packed, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        plan_run(small(packed, tmp_path, *ALONE, *words))
    with pytest.raises(RecipeError, match=r"trainer\.in_process=true is one worker, and trainer\.workers=2"):
        load_recipe("cpr-tiny", ["trainer.workers=2", "trainer.in_process=true"])


def test_a_user_s_mistake_met_while_training_ends_it_in_one_sentence(packed, tmp_path, capsys):
    small(packed, tmp_path)
    words = [f"data={packed}", f"trainer.storage={tmp_path}", *ALONE, "optim.name=sgd", "optim.lr=1e30"]
    assert main(["train", str(tmp_path / "small.yaml"), *words, "--no-evaluation"]) == 2
    said = capsys.readouterr()
    assert "is not a finite number" in said.err
    assert said.err.count("\n") == 1
    assert leftovers(tmp_path / "small") == []


@pytest.mark.ray
@pytest.mark.slow
def test_it_gives_the_numbers_of_one_ray_worker(alone, packed, tmp_path, ray_cluster):
    other = train(plan_run(small(packed, tmp_path, "trainer.workers=1", "trainer.batch=8"))).folder
    assert losses(other) == pytest.approx(losses(alone), rel=1e-6)
    assert other.read_recipe().fingerprint() == alone.read_recipe().fingerprint()


def test_phases_train_one_after_the_other_without_ray(packed, tmp_path, capsys):
    (tmp_path / "cycle.yaml").write_text(CYCLE)
    words = [f"data={packed}", f"trainer.storage={tmp_path}", "trainer.workers=0"]
    assert main(["train", str(tmp_path / "cycle.yaml"), *words, "--no-evaluation"]) == 0
    assert capsys.readouterr().out.count("in this process") == len(load_recipe(str(tmp_path / "cycle.yaml")).phases)
