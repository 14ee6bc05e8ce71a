"""A bank in shards, each a real Ray process, is the bank of one process: pushes, positives, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cluster.bank.bank_parts import DIM, N, assert_same, rows
from vidssl.batch import Embeddings
from vidssl.errors import BankError, StorageError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.plan import CascadePlan

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
VIEWS = ("residual", "rgb")


def test_two_shards_in_processes_of_their_own_are_one_bank(ray_cluster):
    import ray

    from cluster.bank.shards import start_shards

    group = np.arange(N) // 2
    one, many = EmbeddingBank(N, DIM, VIEWS, group), start_shards(N, 2, DIM, VIEWS, group)
    ids = np.arange(N)
    assert_same(many.mine(ids, CascadePlan(N), *VIEWS), one.mine(ids, CascadePlan(N), *VIEWS))  # both empty
    for step in (3, 1, 4, 4):
        slots = np.random.default_rng(step).permutation(N)[: N // 2]
        pushed = rows(step, 0, slots)
        assert many.push(pushed) == one.push(pushed)
    spoilt = rows(5, 0, np.array([2, 40]))
    spoilt.views["rgb"][1] = np.nan
    taken = many.push(spoilt)
    assert (taken.written, taken.bad) == (1, 1)
    one.push(spoilt)
    assert (many.filled, many.step, many.n_slots) == (one.filled, one.step, N)
    for plan in (CascadePlan(N, 3, 0.5, 3), CascadePlan(N, 1, 0.5, 4), CascadePlan(N, 1, 0.5, 2, strategy="sum")):
        assert_same(many.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
    for bank in (one, many):
        bank.rewind(2)
    assert many.step == one.step == 1

    with pytest.raises(BankError, match="a push brought rgb"):
        many.push(Embeddings({"rgb": pushed.views["rgb"]}, pushed.instance, 6, 0))
    with pytest.raises(BankError, match="do not fit a bank of 48 slots"):
        many.mine(np.array([N]), CascadePlan(N), *VIEWS)
    with pytest.raises(BankError, match="the bank holds residual, rgb, not flow"):
        many.mine(ids, CascadePlan(N), "flow", "rgb")
    with pytest.raises(BankError, match=r"mining\.strategy=minrank ranks the whole bank"):
        many.mine(ids, CascadePlan(N, 1, 0.5, 2, strategy="minrank"), *VIEWS)
    ray.kill(many._actors[1])
    with pytest.raises(StorageError, match="a shard of the bank does not answer"):
        many.mine(ids, CascadePlan(N), *VIEWS)
