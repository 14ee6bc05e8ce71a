"""Miners elsewhere find what the bank's own process finds, whatever they missed and however often they die."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.bank.mirror import DistantMiner, MinerGone, Mirror, OwnMiner
from cluster.bank.server import BankServer
from cluster.bank.spec import Push, Wanted
from tests.cluster.bank.bank_parts import N, all_rows, answered, batch_ids, push, rows, spec, until
from vidssl.mining.bank import EmbeddingBank


def here(mirrors, *, deaths=0):
    """A miner whose process is this one; the first `deaths` calls find it dead, and its successor knows nothing."""
    left = [deaths]

    def call(since, delta, ids):
        if left[0]:
            left[0] -= 1
            mirrors.append(new_mirror())
            raise MinerGone("killed")
        return mirrors[-1].mine(since, delta, ids)

    mirrors.append(new_mirror())
    return DistantMiner("miner 1", call)


def new_mirror(dtype="float32", device="cpu", **changes):
    here = spec(**changes)
    return Mirror(here, here.empty_bank(None, dtype), device)


def assert_as_own(miner, bank):
    ids = np.arange(N)
    own, other = OwnMiner(spec()).mine(bank, ids).found, miner.mine(bank, ids).found
    for name in ("ids", "mined_at", "survivors"):
        np.testing.assert_array_equal(getattr(own, name), getattr(other, name))


def test_a_mirror_that_is_told_what_changed_mines_as_the_bank_does():
    bank, miner = EmbeddingBank(N, 8, ("residual", "rgb")), here([])
    bank.push(all_rows())
    for step in range(1, 8):
        assert_as_own(miner, bank)
        bank.push(rows(step))
    bank.rewind(3)
    assert_as_own(miner, bank)


@pytest.mark.parametrize("space", ["white", "canonical"])
def test_all_miners_of_a_bank_mine_in_the_one_space_that_the_bank_fits_and_tells_of(space):
    changes = {"space": space, "refit_steps": 3}
    bank = spec(**changes).empty_bank(None)
    bank.push(all_rows())
    mirrors = [new_mirror(**changes) for _ in range(2)]
    early, late = (DistantMiner(f"miner {number}", one.mine) for number, one in enumerate(mirrors))
    for step in range(1, 9):
        early.mine(bank, np.arange(5))  # the bank's own rows may be fitted anew here
        if step > 4:  # it has seen nothing before; a fit of its own would be of another moment
            assert_as_own(late, bank)
        bank.push(rows(step))
    assert bank.mapped.news.startswith("mining space from step 0: ")
    assert bank.mapped.fits == 3
    assert [mirror._bank.mapped.fitted for mirror in mirrors] == [bank.mapped.fitted] * 2
    np.testing.assert_array_equal(*(miner.mine(bank, np.arange(N)).found.ids for miner in (early, late)))


def test_a_large_bank_is_sent_in_parts(monkeypatch):
    monkeypatch.setattr("cluster.bank.mirror.DELTA_ROWS", 5)
    bank, miner = EmbeddingBank(N, 8, ("residual", "rgb")), here([])
    changed = bank.changed_since
    monkeypatch.setattr(bank, "changed_since", lambda mark: changed(mark, 5))
    bank.push(all_rows())
    assert_as_own(miner, bank)


def test_a_mirror_that_died_unseen_is_sent_everything_again():
    bank, mirrors = EmbeddingBank(N, 8, ("residual", "rgb")), []
    miner = here(mirrors)
    bank.push(all_rows())
    assert_as_own(miner, bank)
    mirrors.append(new_mirror())  # its successor has seen nothing, and no call has failed
    bank.push(rows(1))
    assert_as_own(miner, bank)


def test_another_bank_is_mirrored_from_its_beginning():
    miner = here([])
    for seed in range(2):
        bank = EmbeddingBank(N, 8, ("residual", "rgb"))
        bank.push(all_rows(seed))
        assert_as_own(miner, bank)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_mirror_of_another_dtype_mines_what_a_bank_of_it_would(dtype, device):
    bank, same = (EmbeddingBank(N, 8, ("residual", "rgb"), dtype=one) for one in ("float32", dtype))
    mirror = new_mirror(dtype, device)  # cpu:0 takes the way of a device
    miner = DistantMiner("miner 1", mirror.mine)
    for step, pushed in enumerate((all_rows(), rows(1), rows(2))):
        bank.push(pushed)
        same.push(pushed)
        found, wanted = miner.mine(bank, np.arange(N)).found, same.mine(np.arange(N), spec().plan, "residual", "rgb")
        np.testing.assert_array_equal(found.ids, wanted.ids)
        assert set(found.mined_at) == {step}


@pytest.mark.parametrize("calls", [1, 3])
def test_what_a_dead_miner_was_mining_is_mined_by_its_successor_and_said_once_in_words(calls):
    miner = here([], deaths=calls)  # one loss, however many calls find it dead
    server = BankServer(spec(), miners=[miner])
    try:
        server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
        until(lambda: server.stats()["miners_lost"] == 1)
        assert server.stats()["trouble"] == (
            "miner 1 was lost (killed), time 1: its rows are mined when it is back, or by the others"
        )
        assert answered(server, 2) is not None
        server.serve(push(1))
        found = answered(server, 3)
        assert found is not None
        assert server.stats()["miners_lost"] == 1
        assert "time 1:" in str(server.stats()["trouble"])
        wanted = server._desk.bank.mine(batch_ids(3), spec().plan, "residual", "rgb", backend="oracle")
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.vectors, wanted.vectors)
    finally:
        server.close()
