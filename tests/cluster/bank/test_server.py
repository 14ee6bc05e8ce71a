"""What the bank does with pushes: answered at once, or in order and by whole steps; never with a former attempt's rows."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bank.mirror import OwnMiner
from cluster.bank.server import BankServer
from cluster.bank.spec import Began, Push, Wanted
from tests.cluster.bank.bank_parts import (
    BATCH,
    N,
    all_rows,
    answered,
    assert_same,
    batch_ids,
    push,
    question,
    rows,
    saved,
    spec,
    until,
)
from vidssl.errors import BankError, StorageError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.plan import CascadePlan
from vidssl.mining.snapshots import load_snapshot, save_snapshot

STEPS, WORLD = 5, 3


@pytest.fixture
def open_server():
    opened = []

    def start(group=None, label=None, restarted=False, **changes):
        opened.append(BankServer(spec(**changes), group, label, restarted))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def by_hand():
    """Rank order within a step, mining between steps: what a deterministic bank must do."""
    wanted, bank = {}, EmbeddingBank(N, 8, ("residual", "rgb"))
    for step in range(STEPS):
        for rank in range(WORLD):
            bank.push(rows(step, rank))
        for rank in range(WORLD):
            ids = batch_ids(step + 2, rank)
            wanted[rank, step + 2] = bank.mine(ids, spec().plan, "residual", "rgb", backend="oracle")
    return wanted


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_deterministic_bank_gives_the_same_for_any_arrival_order_of_ranks(data):
    arrivals = data.draw(st.permutations([rank for rank in range(WORLD) for _ in range(STEPS)]))
    server, next_step = BankServer(spec(deterministic=True, world=WORLD)), [0] * WORLD
    try:
        for rank in arrivals:
            assert server.serve(push(next_step[rank], rank))[0] == "ok"
            next_step[rank] += 1
        for (rank, step), expected in by_hand().items():
            assert_same(answered(server, step, rank), expected)
    finally:
        server.close()


def test_a_deterministic_bank_holds_back_a_step_until_every_rank_has_pushed_it(open_server):
    server = open_server(deterministic=True, world=2)
    server.serve(push(0, 0))
    assert answered(server, 2, seconds=0.2) is None
    server.serve(push(0, 1))
    assert answered(server, 2) is not None


def test_the_same_push_twice_changes_nothing(open_server):
    server = open_server(deterministic=True)
    for _ in range(2):
        server.serve(push(0))
    first = answered(server, 2)
    server.serve(push(0))
    assert_same(answered(server, 2), first)
    assert server.stats()["filled"] == BATCH / N


def test_a_push_is_answered_at_once_whatever_the_miner_does(open_server, monkeypatch):
    gate, begun, mine = threading.Event(), threading.Event(), OwnMiner.mine

    def slow(self, bank, ids):
        begun.set()
        gate.wait(20)
        return mine(self, bank, ids)

    monkeypatch.setattr(OwnMiner, "mine", slow)
    server = open_server()
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    assert begun.wait(20)
    for step in range(1, 6):
        assert server.serve(push(step)) == ("ok", None)
    gate.set()
    assert answered(server, 7) is not None


def test_a_repeated_push_asks_for_its_rows_once(open_server):
    server = open_server()
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(np.zeros(0, np.int64), 2)))
    for _ in range(3):
        assert server.serve(push(1))[0] == "ok"
    assert server.stats()["needed_rows"] == BATCH


def test_a_later_push_is_in_what_is_mined_after_it(open_server):
    server = open_server()
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    for step in range(1, 5):
        server.serve(push(step))
        found = answered(server, step + 2)
        assert found is not None
        assert set(found.mined_at) == {step}
        bank = server._desk.bank
        assert_same(found, bank.mine(batch_ids(step + 2), spec().plan, "residual", "rgb", backend="oracle"))


def test_what_comes_too_late_for_its_step_is_mined_still_and_kept(open_server, monkeypatch):
    gate, begun, mine = threading.Event(), threading.Event(), OwnMiner.mine

    def slow(self, bank, ids):
        begun.set()
        gate.wait(20)
        return mine(self, bank, ids)

    monkeypatch.setattr(OwnMiner, "mine", slow)
    server = open_server()
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    assert begun.wait(20)
    for step in (1, 2, 3):  # meanwhile the run goes on: of steps 3, 4, 5 the first two have come
        server.serve(push(step))
    gate.set()
    for at in (3, 4, 5):
        found = server._desk.table.newer(batch_ids(at), np.full(BATCH, -1), np.zeros(BATCH, np.int64))
        if len(found.place) < BATCH:
            until(lambda at=at: (server._desk.table.mined_at(batch_ids(at)) >= 0).all())
    assert server.stats()["mined_late_rows"] > 0
    assert (server.stats()["waiting_rows"], server.stats()["late_rows"]) == (0, 0)


def test_rows_older_than_allowed_are_not_handed_out(open_server):
    server = open_server(max_staleness_steps=3)
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    assert answered(server, 2) is not None
    late = Wanted(batch_ids(2), np.full(BATCH, 4), np.full(BATCH, -1))
    assert server.serve(Push(0, 0, 2, None, late))[1] is None
    assert server.stats()["oldest_steps"] == 3


def test_rows_that_the_rank_has_are_not_sent_again(open_server):
    server = open_server()
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    assert answered(server, 2) is not None
    assert server.serve(question(2, have=0)) == ("ok", None)


def test_rows_that_do_not_fit_are_counted_and_named_and_the_run_goes_on(open_server):
    for deterministic in (False, True):
        server = open_server(deterministic=deterministic)
        for step in (0, 1):
            bad = rows(step)
            bad.views["rgb"][1 : 3 + step] = np.nan
            server.serve(Push(0, 0, step, bad, Wanted.of(batch_ids(step + 2), step + 2)))
        server.serve(push(2))
        assert not deterministic or answered(server, 4) is not None
        stats = server.stats()
        assert stats["rejected"] == 5
        assert stats["trouble"] == (  # of the first push: said once
            "the bank left out 2 rows of rank 0 that are no finite unit rows (first: rgb row of instance "
            f"{batch_ids(0)[1]} at step 0 has length nan); more are counted in bank/rejected"
        )
        good = {*batch_ids(0)[[0, 3, 4, 5]], *batch_ids(1)[[0, 4, 5]], *batch_ids(2)}
        assert set(np.flatnonzero(server._desk.bank.version >= 0)) == good


def test_a_push_of_other_videos_than_the_bank_s_is_left_out_whole_and_named(open_server):
    server = open_server()
    server.serve(Push(0, 0, 0, rows(0, ids=np.array([3, N])), Wanted.of(np.zeros(0, np.int64), 2)))
    assert f"left out a whole push of rank 0: instance ids 3..{N} do not fit" in str(server.stats()["trouble"])
    assert server.stats()["rejected"] == 2
    assert server.stats()["filled"] == 0


def test_pushes_of_a_former_attempt_are_ignored(open_server):
    server = open_server(deterministic=True)
    server.serve(push(0))
    assert server.reset(None, 1, 4) == Began(1, "")
    assert server.serve(push(0, attempt=0))[0] == "late"
    assert server.serve(push(1, attempt=1))[0] == "late"  # before the step it starts with
    assert server.serve(push(4, attempt=1))[0] == "ok"
    assert answered(server, 6, attempt=1) is not None
    assert answered(server, 6, attempt=0, seconds=0) is None
    assert (server.stats()["late"], server.stats()["filled"]) == (3, BATCH / N)


def test_an_attempt_that_goes_on_keeps_what_was_mined_and_a_fresh_one_does_not(open_server, tmp_path):
    server = open_server(root=str(tmp_path))
    server.serve(Push(0, 7, 9, all_rows(9), Wanted.of(batch_ids(11), 11)))
    assert answered(server, 11) is not None
    saved(server, str(tmp_path), 10)
    attempt = server.reset(str(tmp_path), 1, 10).attempt
    again = answered(server, 11, attempt=attempt, seconds=0)
    assert again is not None
    assert set(again.mined_at) == {9}
    attempt = server.reset(None, 1, 0).attempt
    assert answered(server, 11, attempt=attempt, seconds=0.1) is None


def test_a_reset_starts_from_the_snapshot_and_forgets_later_rows(open_server, tmp_path):
    server = open_server(root=str(tmp_path), deterministic=True)
    for step in range(3):
        server.serve(push(step))
    path = saved(server, str(tmp_path), 3)
    before = load_snapshot(tmp_path / "snap-3")
    server.serve(push(3))
    server.settle(4)
    server.reset(path, 1, 3)
    again = load_snapshot(tmp_path / "snap-3")
    np.testing.assert_array_equal(server._desk.bank.version, before.version)
    np.testing.assert_array_equal(server._desk.bank.views["rgb"], again.views["rgb"])
    assert server.stats()["step"] == 2


def test_a_deterministic_save_waits_for_all_steps_before_it(open_server, tmp_path):
    server = open_server(deterministic=True)
    for step in range(6):
        server.serve(push(step))
    saved(server, str(tmp_path), 6)
    assert load_snapshot(tmp_path / "snap-6").step == 5


def test_a_restarted_bank_has_the_newest_snapshot_and_goes_on_in_its_attempt(open_server, tmp_path):
    first = open_server(root=str(tmp_path))
    attempt = first.reset(None, 1, 0).attempt
    first.serve(push(0, attempt=attempt))
    saved(first, str(tmp_path), 1)
    second = open_server(root=str(tmp_path), restarted=True)
    assert second.stats()["note"] == "restored from snap-1"
    assert second.stats()["filled"] == BATCH / N
    assert second.serve(push(1, attempt=attempt))[0] == "ok"
    assert second.reset(None, 1, 0).attempt == attempt + 1


def test_a_restarted_bank_with_a_spoilt_snapshot_starts_empty_and_says_so(open_server, tmp_path):
    save_snapshot(EmbeddingBank(N + 1, 8, ("residual", "rgb")), tmp_path, 5)
    server = open_server(root=str(tmp_path), restarted=True)
    assert "started empty: " in str(server.stats()["note"])
    assert "this run needs 48" in str(server.stats()["note"])
    with pytest.raises(BankError, match="this run needs 48"):
        server.reset(str(tmp_path / "snap-5"), 1, 5)


def spoil_rows(path):
    chunk = next(found for found in (path / "view-rgb" / "c").rglob("*") if found.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"\0\1")


def saved_at(server, root, steps):
    attempt = server.reset(None, 1, 0).attempt
    for step in range(max(steps)):
        server.serve(push(step, attempt=attempt))
        if step + 1 in steps:
            saved(server, str(root), step + 1)
    return attempt


def test_a_restarted_bank_takes_the_older_whole_snapshot_where_the_newest_is_damaged(open_server, tmp_path):
    saved_at(open_server(root=str(tmp_path)), tmp_path, (2, 4))
    older = load_snapshot(tmp_path / "snap-2")
    spoil_rows(tmp_path / "snap-4")
    server = open_server(root=str(tmp_path), restarted=True)
    np.testing.assert_array_equal(server._desk.bank.views["rgb"], older.views["rgb"])
    restart = str(server.stats()["restart"])
    assert f"the bank's process was lost and started again with {older.filled} of {N} rows" in restart
    assert "snap-4 is damaged" in restart
    assert "the older bank snapshot snap-2 is taken instead" in restart


def test_an_attempt_that_goes_on_takes_the_older_whole_snapshot_and_says_so(open_server, tmp_path):
    server = open_server(root=str(tmp_path))
    saved_at(server, tmp_path, (2, 4))
    assert server.reset(str(tmp_path), 1, 4) == Began(2, "")
    older = load_snapshot(tmp_path / "snap-2")
    began = server.reset(str(tmp_path), 1, 3)
    assert began.said == "the bank snapshot of step 3 is missing: the older one snap-2 is taken instead"
    np.testing.assert_array_equal(server._desk.bank.views["rgb"], older.views["rgb"])
    with pytest.raises(BankError, match="snap-9 is no readable bank snapshot"):  # asked for by name: no other will do
        server.reset(str(tmp_path / "snap-9"), 1, 4)
    assert server.reset(None, 1, 4).said == ""
    assert server.stats()["filled"] == 0


def test_a_deterministic_attempt_with_an_older_bank_says_what_that_means(open_server, tmp_path):
    server = open_server(root=str(tmp_path), deterministic=True)
    saved_at(server, tmp_path, (2,))
    assert server.reset(str(tmp_path), 1, 2).said == ""
    assert server.reset(str(tmp_path), 1, 4).said.endswith(
        "snap-2 is taken instead; so this deterministic run goes on, and is not the straight one bit for bit"
    )


def test_rows_of_a_later_step_than_the_run_goes_on_at_are_overwritten(open_server, tmp_path):
    server = open_server(root=str(tmp_path))
    saved_at(server, tmp_path, (9,))
    attempt = server.reset(str(tmp_path / "snap-9"), 1, 5).attempt
    assert server._desk.bank.version.max() == 4
    server.serve(push(5, attempt=attempt))
    assert set(np.flatnonzero(server._desk.bank.version == 5)) == set(batch_ids(5))


def test_a_restarted_bank_that_found_rows_of_a_later_step_lets_them_be_overwritten(open_server, tmp_path):
    first = open_server(root=str(tmp_path))
    saved_at(first, tmp_path, (9,))
    attempt = first.reset(None, 1, 0).attempt  # begun again: the snapshot of step 9 stays until the run is there again
    server = open_server(root=str(tmp_path), restarted=True)
    server.serve(push(1, attempt=attempt))
    server.serve(push(2, attempt=attempt))
    assert set(np.flatnonzero(server._desk.bank.version == 2)) == set(batch_ids(2))
    assert server._desk.bank.step == 2


def test_a_run_folder_that_cannot_be_written_is_not_the_user_s_mistake(open_server, tmp_path):
    (tmp_path / "file").write_text("")
    server = open_server()
    server.serve(push(0))
    with pytest.raises(StorageError, match="cannot be written") as caught:
        saved(server, str(tmp_path / "file"), 1)
    assert not caught.value.final


def test_a_restarted_deterministic_bank_refuses_until_the_attempt_begins_again(open_server, tmp_path):
    server = open_server(root=str(tmp_path), deterministic=True, restarted=True)
    assert server.serve(push(7)) == ("lost", None)
    with pytest.raises(StorageError, match="misses pushes before step 7"):
        saved(server, str(tmp_path), 7)
    attempt = server.reset(None, 1, 0).attempt
    assert server.serve(push(0, attempt=attempt))[0] == "ok"


def test_a_miner_that_fails_says_so_and_keeps_serving(open_server, monkeypatch, caplog):
    server, mine = open_server(), OwnMiner.mine

    def fail_once(self, bank, ids):
        monkeypatch.setattr(OwnMiner, "mine", mine)
        raise ValueError("a fault")

    monkeypatch.setattr(OwnMiner, "mine", fail_once)
    server.serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(2), 2)))
    until(lambda: server.stats()["rejected"])
    assert "mining failed: ValueError: a fault" in str(server.stats()["note"])
    server.serve(push(1))
    assert answered(server, 3) is not None


def test_extra_snapshots_are_written_beside_those_of_checkpoints(open_server, tmp_path):
    server = open_server(root=str(tmp_path), deterministic=True, snapshot_every_steps=2)
    for step in range(3):
        server.serve(push(step))
    server.settle(3)
    server.close()
    assert load_snapshot(tmp_path / "live" / "snap-2").step == 1
    restarted = open_server(root=str(tmp_path), restarted=True)
    assert restarted.stats()["note"] == "restored from snap-2"


def test_how_old_the_newest_snapshot_is_stands_in_the_counters(open_server, tmp_path):
    server = open_server(root=str(tmp_path), deterministic=True)
    server.serve(push(0))
    assert "snapshot_age_steps" not in server.stats()  # there is none
    saved(server, str(tmp_path), 1)
    server.serve(push(1))
    server.serve(push(2))
    server.settle(3)
    assert server.stats()["snapshot_age_steps"] == 2
    server.reset(str(tmp_path / "snap-1"), 1, 1)
    assert server.stats()["snapshot_age_steps"] == 0


def test_a_bank_with_a_pool_hands_out_positives_of_the_pool_and_repeats(open_server):
    plan = CascadePlan(12, 3, 0.5, 3)
    servers = [open_server(deterministic=True, pool_slots=12, pool_of="recent", plan=plan) for _ in range(2)]
    for server in servers:
        for step in range(8):
            server.serve(push(step))
    newest = set(np.concatenate([batch_ids(step) for step in (6, 7)]).tolist())
    found = answered(servers[0], 9)
    assert found is not None
    assert set(found.ids[found.ids >= 0].tolist()) <= newest
    assert (found.ids >= 0).any()
    assert_same(found, answered(servers[1], 9))


@pytest.mark.parametrize("label", [np.arange(N) % 2, np.full(N, -1)], ids=["labels", "unknown"])
def test_labels_make_mining_precision_and_nothing_else(open_server, label):
    with_labels, without = open_server(label=label, deterministic=True), open_server(deterministic=True)
    for server in (with_labels, without):
        for step in range(8):
            server.serve(push(step))
    for step in range(2, 10):
        assert_same(answered(with_labels, step), answered(without, step))
    assert ("precision_at_k" in with_labels.stats()) == (label[0] >= 0)  # nothing is measured: no number, not −1
    assert 0 <= float(with_labels.stats().get("precision_at_k", 0.5)) <= 1
    assert "precision_at_k" not in without.stats()


def test_a_bank_of_one_stream_hands_out_keys_and_survives_a_snapshot(open_server, tmp_path):
    server = open_server(main="rgb.query", aux="rgb", deterministic=True, root=str(tmp_path))
    bank = EmbeddingBank(N, 8, ("rgb.query", "rgb"))
    for step in range(6):
        made = rows(step)
        one_stream = replace(made, views={"rgb.query": made.views["residual"], "rgb": made.views["rgb"]})
        bank.push(one_stream)
        assert server.serve(replace(push(step), rows=one_stream))[0] == "ok"
        found = answered(server, step + 2)
        assert_same(found, bank.mine(batch_ids(step + 2), spec().plan, "rgb.query", "rgb", backend="oracle"))
        there = found.ids >= 0
        np.testing.assert_array_equal(found.vectors[there], bank.views["rgb"][found.ids[there]])
    again = load_snapshot(Path(saved(server, str(tmp_path), 6)))
    for view, table in bank.views.items():
        np.testing.assert_array_equal(again.views[view], table)
