"""A bank in shards, each a real Ray process, is the bank of one process: pushes, positives, spaces, snapshots, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cluster.bank.bank_parts import DIM, N, assert_same, rows, spec
from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.plan import CascadePlan

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
VIEWS = ("residual", "rgb")
GROUP = np.arange(N) // 2


@pytest.fixture(scope="module")
def sharded(ray_cluster):
    """Makes places of shards in real actors; those of one number of shards are shared, their banks are not."""
    from cluster.bank.shard_actor import start_actors
    from cluster.bank.shards import ShardPlace

    started = {}

    def place(shards=3, group=GROUP, say=pytest.fail, **changes):
        asked = spec(shards=shards, cpus_per_shard=0, **changes)
        key = shards, tuple(sorted(changes.items()))
        actors, cuts = started.setdefault(key, start_actors(asked))
        return ShardPlace(actors, cuts, asked, group, say)

    return place


def pushed_into(*banks):
    for step in (3, 1, 4, 4):
        slots = np.random.default_rng(step).permutation(N)[: N // 2]
        taken = [bank.push(rows(step, 0, slots)) for bank in banks]
        assert all(one == taken[0] for one in taken)


def test_three_shards_in_processes_of_their_own_are_one_bank(sharded):
    one, many = EmbeddingBank(N, DIM, VIEWS, GROUP), sharded().empty()
    ids = np.arange(N)
    assert_same(many.mine(ids, CascadePlan(N), *VIEWS), one.mine(ids, CascadePlan(N), *VIEWS))  # both empty
    pushed_into(one, many)
    spoilt = rows(5, 0, np.array([2, 40]))
    spoilt.views["rgb"][1] = np.nan
    taken = many.push(spoilt)
    assert (taken.written, taken.bad) == (1, 1)
    assert taken == one.push(spoilt)
    assert (many.filled, many.step, many.n_slots) == (one.filled, one.step, N)
    np.testing.assert_array_equal(many.version, one.version)
    plans = [CascadePlan(N, 3, 0.5, 3), CascadePlan(N, 1, 0.5, 4)]
    for plan in plans + [CascadePlan(N, 1, 0.5, 2, strategy=name) for name in ("sum", "single", "joint")]:
        assert_same(many.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
    for bank in (one, many):
        bank.rewind(2)
    assert many.step == one.step == 1
    np.testing.assert_array_equal(many.version, one.version)


def test_what_one_bank_refuses_shards_refuse_in_the_same_words(sharded):
    many, ids = sharded().empty(), np.arange(N)
    pushed_into(many)
    good = rows(6, 0, np.array([1]))
    with pytest.raises(BankError, match="a push brought rgb"):
        many.push(Embeddings({"rgb": good.views["rgb"]}, good.instance, 6, 0))
    with pytest.raises(BankError, match="do not fit a bank of 48 slots"):
        many.mine(np.array([N]), CascadePlan(N), *VIEWS)
    with pytest.raises(BankError, match="the bank holds residual, rgb, not flow"):
        many.mine(ids, CascadePlan(N), "flow", "rgb")
    with pytest.raises(BankError, match=r"mining\.strategy=minrank ranks the whole bank"):
        many.mine(ids, CascadePlan(N, 1, 0.5, 2, strategy="minrank"), *VIEWS)
