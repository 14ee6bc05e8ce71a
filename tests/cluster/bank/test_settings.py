"""What a recipe says of the bank reaches the bank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.training.checks import check
from cluster.training.driver import _bank_spec
from tests.cluster.training.small_runs import small
from vidssl.errors import RecipeError
from vidssl.saved.run_folder import RunFolder


def test_a_recipe_can_ask_for_a_bank_of_half_precision(packed, tmp_path):
    words = {
        "mining.bank_dtype=float16": "float16",
        "mining.bank_dtype=bfloat16": "bfloat16",
        "mining.topk=2": "float32",
    }
    for word, dtype in words.items():
        spec = _bank_spec(check(small(packed, tmp_path, word)), RunFolder(tmp_path))
        assert spec is not None
        assert spec.dtype == dtype


def test_a_recipe_can_ask_for_shards_but_not_for_more_than_videos(packed, tmp_path):
    words = ("mining.shards=3", "mining.cpus_per_shard=2", "mining.shard_node=big")
    spec = _bank_spec(check(small(packed, tmp_path, *words)), RunFolder(tmp_path))
    assert spec is not None
    assert (spec.shards, spec.cpus_per_shard, spec.shard_node) == (3, 2, "big")
    with pytest.raises(
        RecipeError, match=r"mining\.shards=41 of 40 videos: each holds one at least; type mining\.shards=1"
    ):
        check(small(packed, tmp_path, "mining.shards=41"))


def test_a_recipe_can_ask_to_mine_among_some_of_the_slots(packed, tmp_path):
    words = ("mining.pool_slots=6", "mining.pool_of=recent", "mining.topk=2", "mining.pool=3")
    spec = _bank_spec(check(small(packed, tmp_path, *words)), RunFolder(tmp_path))
    assert spec is not None
    assert (spec.plan.n_slots, spec.plan.last_pool) == (6, 3)
    assert spec.pool is not None
    assert (spec.pool.size, spec.pool.kind) == (6, "recent")
    assert spec.pool.every_rows == 1  # a run that repeats draws for every batch
    free = replace(spec, deterministic=False).pool
    assert free is not None
    assert free.every_rows == 1024
    assert replace(spec, pool_slots=None).pool is None
    with pytest.raises(
        RecipeError, match=r"mining\.pool_slots=6 draws from a bank, and mining\.where=inline has a queue"
    ):
        small(packed, tmp_path, "mining.where=inline", "mining.pool_slots=6")
