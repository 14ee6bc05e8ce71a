"""A worker's side: it never waits unless the run is deterministic, and everything that is missing is counted."""

from __future__ import annotations

import io
import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from cluster.bank.asked import shared_out
from cluster.bank.client import BankRestarted
from cluster.bank.link import BankGone, LocalLink
from cluster.bank.server import BankServer
from cluster.bank.spec import Push, Wanted
from tests.cluster.bank.bank_parts import BATCH, N, all_rows, assert_same, batch_ids, rows, spec, until
from tests.cluster.bank.client_parts import Silent, server_of, step_through
from vidssl.errors import StorageError
from vidssl.mining.cascade import mine


class Dying(LocalLink):
    """A bank whose process dies with everything on its way, `deaths` times."""

    deaths = 1

    def value(self, future):
        if self.deaths:
            self.deaths -= 1
            raise BankGone("killed")
        return super().value(future)


class Counting(LocalLink):
    """A bank that raises whatever is asked of it."""

    def value(self, future):
        raise ValueError("a fault")


def fill(client):
    """Every video gets a row: nothing can be mined for one that has none."""
    server_of(client).serve(Push(0, 7, 0, all_rows(), Wanted.of(batch_ids(0)[:0], 0)))


def all_here(client, step):
    """Asks until all rows of a step are here."""

    def here():
        client.drain()
        asked = client._asked.get(step)
        return asked is not None and asked.here.all()

    until(here)


def test_positives_are_those_that_the_bank_mines(connect):
    client = connect()
    fill(client)
    step_through(client, range(1, 3), unhurried=True)
    all_here(client, 5)
    server = server_of(client)
    until(lambda: (server._desk.table.mined_at(batch_ids(5)) == 2).all())
    client.drain()
    expected = server._desk.bank.mine(batch_ids(5), spec().plan, "residual", "rgb", backend="oracle")
    found = client.take(5, BATCH)
    assert found.ids.shape == (BATCH, 3)
    assert found.survivors.shape == (BATCH, 3)
    assert_same(found, expected)
    assert found.ids.flags.writeable


def test_a_bank_that_keeps_up_serves_every_row_and_each_one_fresh(connect):
    client = connect()
    fill(client)
    taken = step_through(client, range(1, 30), unhurried=True)
    for step in range(5, 30):
        assert (taken[step].ids >= 0).all()
        assert (step - taken[step].mined_at <= client.spec.lookahead + 1).all()


def test_what_a_dropped_push_asked_for_is_asked_with_the_next_one(connect):
    held = []

    class Deaf(LocalLink):
        def serve(self, push):
            if len(held) == 1:
                return super().serve(push)
            held.append(Future())
            return held[0]

    client = connect(Deaf, client_options={"depth": 1, "in_flight": 1})
    fill(client)
    step_through(client, range(1, 4))  # one push is on its way, one waits, one is dropped: the one that named step 6
    until(lambda: held)
    assert client.counts["dropped"] >= 1
    held[0].set_result(("ok", None))
    all_here(client, 6)
    assert (client.take(6, batch_ids(6)).ids >= 0).all()


def test_a_client_whose_bank_is_silent_drops_counts_and_never_waits(connect):
    client = connect(Silent)
    began = time.monotonic()
    taken = step_through(client, range(30))
    assert time.monotonic() - began < 2
    assert all((found.ids == -1).all() for found in taken.values())
    row = client.read()
    assert row["bank/dropped"] >= 30 - 9
    assert row["bank/fallback_ratio"] == 1
    assert row["bank_age_steps"] is None  # nothing was served: no number, not −1
    assert client.counts["fallback_rows"] == 30 * BATCH


def test_a_dying_bank_is_counted_and_training_goes_on(connect):
    client = connect(Dying)
    fill(client)
    step_through(client, range(1, 3))
    until(lambda: client.counts["errors"] == 1)
    step_through(client, range(3, 5))
    all_here(client, 6)
    assert (client.take(6, BATCH).ids >= 0).all()


def test_faults_in_the_bank_do_not_kill_the_client(connect):
    client = connect(Counting)
    step_through(client, range(3))
    until(lambda: client.counts["errors"] >= 3)
    client.drain()
    assert client._thread.is_alive()


def test_rows_older_than_allowed_fall_back(connect):
    client = connect(max_staleness_steps=1, deterministic=True)
    step_through(client, range(4), unhurried=True)
    found = client.take(5, BATCH)
    assert (found.ids == -1).all()
    assert not found.vectors.any()
    assert client.counts["stale_rows"] > 0


def test_rows_mined_for_another_video_fall_back(connect):
    client = connect()
    fill(client)
    step_through(client, range(1, 8), unhurried=True)
    ids = batch_ids(8).copy()
    ids[2] = (ids[2] + 1) % N
    found = client.take(8, torch.from_numpy(ids))
    assert (found.ids[2] == -1).all()
    assert client.counts["other_rows"] == 1
    assert (found.ids[[0, 1, 3, 4, 5]] >= 0).any()


def test_the_log_row_has_the_same_names_always(connect):
    client = connect()
    first = client.read()
    fill(client)
    step_through(client, range(1, 7), unhurried=True)
    client.take(7, BATCH)
    second = client.read()
    assert list(first) == list(second)
    assert second["bank_age_steps"] <= 3
    assert second["bank/age_p50"] <= second["bank/age_p99"] <= 3
    assert second["bank/push_ms"] < 50
    assert second["mining/positives"] > 0


def test_a_deterministic_run_gives_the_same_again(connect):
    runs = [step_through(connect(deterministic=True), range(12)) for _ in range(2)]
    for step in range(12):
        assert_same(runs[0][step], runs[1][step])
    assert (runs[0][11].ids >= 0).any()
    assert all((runs[0][step].ids == -1).all() for step in (0, 1))


def test_a_deterministic_run_that_is_resumed_equals_the_straight_one(connect, tmp_path):
    straight = step_through(connect(deterministic=True), range(14))
    first = connect(deterministic=True)
    step_through(first, range(7))
    first.drain()
    path, saved = first.save(str(tmp_path), 7), io.BytesIO()
    torch.save(first.state_dict(), saved)
    second = connect(deterministic=True)
    assert second.reset(path, 1, 7) == 1
    saved.seek(0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    for step, found in step_through(second, range(7, 14)).items():
        assert_same(found, straight[step])


def test_other_workers_go_on_with_the_positives_that_the_ranks_before_them_had(connect):
    """Two ranks asked for two steps; the one that goes on has other batches and gets each video's row, or none."""
    server, ranks = BankServer(spec(deterministic=True, world=2)), (0, 1)
    clients = [connect(server=server, rank=rank, deterministic=True, world=2) for rank in ranks]
    attempt = clients[0].reset(None, 2, 0)
    clients[1].join(attempt)
    for step in range(6):
        for rank in ranks:
            clients[rank].take(step, batch_ids(step, rank))
            clients[rank].push(rows(step, rank), batch_ids(step + 2, rank), step + 2)
    for client in clients:
        client.drain()
    states = [client.state_dict() for client in clients]
    had = {}
    for step in (6, 7):
        for rank in ranks:
            found = clients[rank].take(step, batch_ids(step, rank))
            for row, video in enumerate(batch_ids(step, rank).tolist()):
                if video not in had or found.mined_at[row] >= had[video][0].mined_at[had[video][1]]:
                    had[video] = found, row  # asked for twice: the newer
    asked = np.array(sorted(had))
    never = np.setdiff1d(np.arange(N), asked)
    needed = {6: np.concatenate([asked[::2], never[:2]]), 7: asked[1::2]}
    alone = connect(deterministic=True)
    alone.load_state_dict(shared_out(states, needed, alone.spec))
    for step, videos in needed.items():
        got = alone.take(step, videos)
        for row, video in enumerate(videos.tolist()):
            found, at = had.get(video, (None, 0))
            assert (got.ids[row] == (-1 if found is None else found.ids[at])).all()
            if found is not None:
                assert got.mined_at[row] == found.mined_at[at]
                np.testing.assert_array_equal(got.vectors[row], found.vectors[at])
        assert (got.mined_at >= 0).sum() > 5


def test_two_ranks_of_a_deterministic_run_wait_for_each_other_only(connect):
    server = BankServer(spec(deterministic=True, world=2))
    clients = [connect(server=server, rank=rank, deterministic=True, world=2) for rank in range(2)]
    attempt = clients[0].reset(None, 2, 0)
    clients[1].join(attempt)
    for step in range(6):
        for rank in (1, 0):
            found = clients[rank].take(step, batch_ids(step, rank))
            assert (found.mined_at <= max(step - 2, -1)).all()
            clients[rank].push(rows(step, rank), batch_ids(step + 2, rank), step + 2)
    assert (clients[0].take(6, BATCH).ids >= 0).any()


def test_a_deterministic_take_that_waits_in_vain_says_so(connect):
    client = connect(deterministic=True, world=2, client_options={"timeout_s": 0.5})
    client.push(rows(0), batch_ids(2), 2)
    with pytest.raises(StorageError, match=r"positives of step 2 did not come within 0\.5 s: every rank must push"):
        client.take(2, BATCH)
    client.push(rows(1), batch_ids(3), 3)
    with pytest.raises(StorageError, match="the bank did not answer"):
        client.drain()


def test_a_deterministic_run_that_lost_its_bank_asks_for_a_restart(connect, tmp_path):
    lost = BankServer(spec(deterministic=True, root=str(tmp_path)), restarted=True)
    client = connect(server=lost, deterministic=True)
    client.push(rows(5), batch_ids(7), 7)
    with pytest.raises(BankRestarted, match="goes on from its last checkpoint"):
        client.take(7, BATCH)
    with pytest.raises(BankRestarted):
        client.drain()
    dying = connect(Dying, deterministic=True)
    dying.push(rows(5), batch_ids(7), 7)
    until(lambda: dying.counts["errors"])
    with pytest.raises(BankRestarted, match="killed"):
        dying.drain()


def test_a_bank_that_cannot_be_reached_is_said(connect):
    class Away(LocalLink):
        def call(self, method, *args, timeout_s):
            raise BankGone("no answer")

    with pytest.raises(StorageError, match=r"the bank cannot be reached \(no answer\); resume the run"):
        connect(Away).stats()


def test_what_the_bank_has_to_say_is_passed_on_once(connect, monkeypatch):
    monkeypatch.setattr("cluster.bank.client.STATS_S", 0.01)
    said = []
    client = connect(client_options={"say": said.append})
    for step in (0, 1):
        bad = rows(step)
        bad.views["rgb"][2] = np.inf
        client.push(bad, batch_ids(step + 2), step + 2)
    until(lambda: said)
    client.drain()
    client.push(rows(2), None, 4)
    until(lambda: float(client._stats.get("step", -1)) == 2)
    assert len(said) == 1
    assert said[0].startswith("the bank left out 1 rows of rank 0")


def test_what_two_causes_have_to_say_between_two_looks_is_passed_on_and_again_by_another_process(connect, monkeypatch):
    said = []
    client = connect(client_options={"say": said.append})
    step_through(client, range(3), unhurried=True)
    until(lambda: client._presence._process)
    lost = [f"miner {number} was lost, time 1" for number in (1, 2)]
    for process in (1, 1, 2):
        monkeypatch.setattr("cluster.bank.server.os.getpid", lambda process=process: process)
        for sentence in lost:
            server_of(client)._told(sentence)
        client._stats_at = 0.0
        step_through(client, [3], unhurried=True)
        until(lambda process=process: client._presence._process == process)
    until(lambda: len(said) >= 4)
    assert said == [*lost, *lost]


def test_a_bank_mines_in_its_space_and_rank_0_says_once_which_it_is(connect, monkeypatch):
    monkeypatch.setattr("cluster.bank.client.STATS_S", 0.01)
    said, others = [], []
    client = connect(client_options={"say": said.append}, space="white")
    other = connect(server=server_of(client), rank=1, client_options={"say": others.append}, space="white")
    fill(client)
    step_through(client, range(1, 3), unhurried=True)
    until(lambda: said)
    step_through(client, range(3, 5), unhurried=True)
    other.push(rows(4, 1), batch_ids(7, 1), 7)
    until(lambda: other._stats.get("space"))
    assert said[0].startswith("mining space from step ")
    assert said[0].endswith(": white (48 rows of width 8)")
    assert len(said) == 1
    assert others == []
    other.drain()
    client.drain()
    bank = server_of(client)._desk.bank
    found = bank.mine(batch_ids(5), spec().plan, "residual", "rgb").ids  # first: it may be time to fit anew
    images = [bank.mapped.fitted.space.apply(view, bank.vectors(np.arange(N), view)) for view in ("residual", "rgb")]
    own = [[slot] for slot in batch_ids(5)]
    expected = mine([image[batch_ids(5)] for image in images], images, spec().plan, exclude=own).ids
    np.testing.assert_array_equal(found, expected)


def test_what_a_resumed_run_has_to_know_of_its_bank_is_said(connect, tmp_path):
    said = []
    client = connect(client_options={"say": said.append})
    step_through(client, range(3), unhurried=True)
    client.save(str(tmp_path), 3)
    client.reset(str(tmp_path), 1, 3)
    assert said == []
    client.reset(str(tmp_path), 1, 5)
    assert said == ["the bank snapshot of step 5 is missing: the older one snap-3 is taken instead"]


def test_half_precision_is_what_travels_to_a_half_precision_bank(connect):
    client = connect(dtype="float16")
    step_through(client, range(3))
    assert server_of(client)._desk.bank.views["rgb"].dtype == np.float16
    assert client.take(4, BATCH).vectors.dtype == np.float32
