"""The bank's process saves when asked and when due, says how old its newest snapshot is, and what went wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cluster.bank import saver as module
from cluster.bank.client import BankClient
from cluster.bank.link import LocalLink
from cluster.bank.saver import Saver
from cluster.bank.server import BankServer
from cluster.bank.tally import Tally
from tests.cluster.bank.bank_parts import DIM, N, rows, spec
from vidssl.errors import StorageError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import load_snapshot, snapshot_steps


def bank_at(step):
    bank = EmbeddingBank(N, DIM, ("residual", "rgb"))
    bank.push(rows(step, 0, np.arange(N)))
    return bank


def saved(saver, bank, root, step, told=False):
    """A checkpoint's snapshot, waited for."""
    assert saver.begin(bank, str(root), step, told)
    saver.close()
    return saver.result(step)


def test_the_age_counts_from_what_is_on_disk(tmp_path):
    said = []
    saver = Saver(spec(root=str(tmp_path)), said.append)
    assert saver.age(7) is None
    assert not saver.knows(8)
    assert saved(saver, bank_at(7), tmp_path, 8) == tmp_path / "snap-8"
    assert saver.knows(8)
    assert (saver.age(7), saver.age(11)) == (0.0, 4.0)
    saver.begins(5)
    assert saver.age(4) == 0.0
    saver.begins(None)
    assert saver.age(4) is None
    assert Tally().read({"snapshot_age_steps": 4.0}, False)["bank/snapshot_age_steps"] == 4.0
    assert Tally().read({}, False)["bank/snapshot_age_steps"] is None
    assert said == []


def test_between_checkpoints_a_snapshot_is_written_when_it_is_due(tmp_path):
    saver = Saver(spec(root=str(tmp_path), snapshot_every_steps=10), pytest.fail)
    for step in (3, 8, 9, 12, 25, 26):
        saver.between(bank_at(step))
        saver.close()
        expected = {3: [], 8: [], 9: [10], 12: [10], 25: [26], 26: [26]}[step]
        assert snapshot_steps(tmp_path / "live") == expected
    assert load_snapshot(tmp_path / "live" / "snap-26").step == 25
    assert saver.age(29) == 4.0


def test_a_snapshot_that_fails_is_said_with_what_there_is_and_the_age_goes_on(tmp_path):
    said = []
    saver = Saver(spec(root=str(tmp_path), snapshot_every_steps=10), said.append)
    (tmp_path / "live").write_text("a file")
    saver.between(bank_at(9))
    saver.close()
    assert "live/snap-10 cannot be written" in said[0]
    assert said[0].endswith("(there is none yet); the run goes on")
    saver.begins(4)
    saver.between(bank_at(19))
    saver.close()
    assert said[1].endswith("(the newest is of step 4); the run goes on")
    assert saver.age(19) == 16.0
    with pytest.raises(StorageError, match="cannot be written"):
        saved(saver, bank_at(9), tmp_path / "live", 10)
    assert len(said) == 2  # who asks for the result is told by it
    with pytest.raises(StorageError, match="cannot be written"):
        saved(saver, bank_at(9), tmp_path / "live", 10, told=True)
    assert "cannot be written" in said[2]


def test_a_checkpoint_s_snapshot_is_of_the_moment_it_was_begun_and_the_next_waits_for_it(tmp_path, monkeypatch):
    go_on, write = threading.Event(), module.save_snapshot

    def slow(*arguments):
        go_on.wait(30)
        return write(*arguments)

    monkeypatch.setattr(module, "save_snapshot", slow)
    saver, bank = Saver(spec(root=str(tmp_path)), pytest.fail), bank_at(3)
    assert saver.begin(bank, str(tmp_path), 4, True)
    assert saver.result(4) is None
    bank.push(rows(8, 0, np.arange(N)))
    assert not saver.begin(bank, str(tmp_path), 9, True)
    go_on.set()
    saver.close()
    assert saver.begin(bank, str(tmp_path), 9, True)
    saver.close()
    assert not saver.knows(4)
    for step, last in ((4, 3), (9, 8)):
        back = load_snapshot(tmp_path / f"snap-{step}")
        assert back.step == last
        np.testing.assert_array_equal(back.views["rgb"], bank_at(last).views["rgb"])


def test_a_client_waits_for_the_disk_or_only_for_the_snapshot_before(tmp_path):
    server = BankServer(spec(root=str(tmp_path)))
    client = BankClient(LocalLink(server), server.spec, 0)
    try:
        client.reset(None, 1, 0)
        client.push(rows(0), None, 0)
        client.drain()
        client.save(str(tmp_path), 1)
        assert snapshot_steps(tmp_path) == [1]
        client.save(str(tmp_path), 2, wait=False)
        client.save(str(tmp_path), 3, wait=False)
        assert 2 in snapshot_steps(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            client.save(str(tmp_path / "file"), 4)
    finally:
        client.close()
        server.close()


def test_a_snapshot_that_takes_longer_than_it_may_is_said_once(tmp_path, monkeypatch):
    said, go_on = [], threading.Event()
    write = module.save_snapshot

    def slow(*arguments):
        go_on.wait(30)
        return write(*arguments)

    monkeypatch.setattr(module, "save_snapshot", slow)
    saver = Saver(spec(root=str(tmp_path), snapshot_every_steps=10), said.append)
    bank = bank_at(9)
    saver.between(bank)
    for step in (19, 20, 29):
        bank.push(rows(step, 0, np.arange(N)))
        saver.between(bank)
    go_on.set()
    saver.close()
    assert said == [
        "the bank snapshot begun at step 10 is still being written at step 20: snapshots come later than asked for; "
        "type a mining.snapshot_every_steps above 10"
    ]
    back = load_snapshot(tmp_path / "live" / "snap-10")
    assert back.step == 9  # of the moment at which it was begun
    np.testing.assert_array_equal(back.views["rgb"], bank_at(9).views["rgb"])
