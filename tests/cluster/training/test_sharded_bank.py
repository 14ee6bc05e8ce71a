"""A training whose bank lies in shards is the training whose bank lies in one process: same positives, same losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.training.driver import train
from cluster.training.plan import plan_run
from tests.cluster.training.small_runs import small
from vidssl.mining.snapshots import load_snapshot, read_info

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data's own settings, read inside Ray Train
]
SHARDS = "mining.cpus_per_shard=0"
"""The workers have all the cores that the tests' cluster has."""


def rows(run: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "bank_age_steps", "mining/positives", "bank/fallback_ratio")
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [tuple(row.get(name) for name in names) for row in found]


def assert_same_bank(one: Path, other: Path) -> None:
    left, right = load_snapshot(one / "bank" / "snap-24"), load_snapshot(other / "bank" / "snap-24")
    for name, values in left.state().items():
        np.testing.assert_array_equal(right.state()[name], values)


@pytest.mark.parametrize("space", ["raw", "white"])
def test_a_training_with_three_shards_is_the_training_with_one_bank(packed, tmp_path, ray_cluster, space):
    words = (f"mining.space={space}",)
    one = train(plan_run(small(packed, tmp_path, "name=one", *words))).folder.path
    many = train(plan_run(small(packed, tmp_path, "name=many", *words, "mining.shards=3", SHARDS))).folder.path
    assert rows(many) == rows(one)
    assert any(row[3] for row in rows(many))  # positives were mined
    assert len(read_info(many / "bank" / "snap-24").parts) == 3
    assert_same_bank(one, many)


def test_a_run_goes_on_with_another_number_of_shards_and_equals_a_straight_one(packed, tmp_path, ray_cluster):
    straight = train(plan_run(small(packed, tmp_path, "name=straight"))).folder.path
    run = tmp_path / "cut"

    def until(step):
        def say(line):
            if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= step:
                (run / "STOP").touch()

        return say

    for words, step in ((("mining.shards=3", SHARDS), 6), (("mining.shards=2", SHARDS), 14), ((), 99)):
        outcome = train(plan_run(small(packed, tmp_path, "name=cut", *words)), until(step))
        assert outcome.stopped == (step < 24)
    assert outcome.steps == 24
    assert rows(run) == rows(straight)
    assert_same_bank(straight, run)
