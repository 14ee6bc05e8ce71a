"""A bank in shards, each a real Ray process, is the bank of one process: pushes, positives, spaces, snapshots, refusals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import ray

from cluster.bank.client import BankClient
from cluster.bank.link import RayLink
from cluster.bank.server import BankServer
from cluster.bank.shard_asks import ShardedMoment
from cluster.bank.shard_watch import ShardWatch
from cluster.bank.spec import Push, Wanted
from tests.cluster.bank.bank_parts import (
    DIM,
    N,
    all_rows,
    answered,
    assert_same,
    batch_ids,
    push,
    rows,
    saved,
    spec,
    until,
)
from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.plan import CascadePlan
from vidssl.mining.reopen import chosen
from vidssl.mining.snapshots import load_snapshot, save_snapshot

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
VIEWS = ("residual", "rgb")
GROUP = np.arange(N) // 2


@pytest.fixture(scope="module")
def sharded(ray_cluster):
    """Makes places of shards in real actors; those of one number of shards are shared, their banks are not."""
    from cluster.bank.shard_actor import start_actors
    from cluster.bank.shard_place import ShardPlace

    started = {}

    def place(shards=3, group=GROUP, say=pytest.fail, **changes):
        asked = spec(shards=shards, cpus_per_shard=0, **changes)
        key = shards, asked.space != "raw"
        if key not in started:
            started[key] = start_actors(asked)
        actors, cuts = started[key]
        started["numbers"] = started.get("numbers", 0) + 100
        made = ShardPlace(actors, cuts, asked, group, say)
        made._numbers = started["numbers"]  # places of other tests have the same shards
        return made

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


def correlated(step, slots):
    """Rows whose views share half of their directions, strongly."""
    rng = np.random.default_rng((step, 5))
    common, views = rng.standard_normal((len(slots), DIM)), {}
    for view in VIEWS:
        values = common + np.linspace(0.05, 0.6, DIM) * rng.standard_normal((len(slots), DIM))
        views[view] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(views, slots, step, 0)


@pytest.mark.parametrize("space", ["white", "canonical", "auto"])
@pytest.mark.parametrize("strategy", ["cascade", "joint"])
def test_shards_mine_in_the_space_that_one_bank_would_fit(sharded, space, strategy):
    here = spec(space=space, seed=3)
    one, many = here.empty_bank(GROUP), sharded(space=space, seed=3).empty()
    plan, ids = CascadePlan(N, 3 if strategy == "cascade" else 1, 0.5, 3, strategy=strategy), np.arange(N)
    for step in (1, 2):  # the second one brings so much that is new that the space is fitted anew
        for bank in (one, many):
            bank.push(correlated(step, ids))
        assert_same(many.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
        for bank in (one, many):
            bank.push(correlated(step + 10, ids[: N // 8]))  # and some of it has to be mapped again
        assert_same(many.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
    assert many.mapped.fits == one.mapped.fits == 2
    assert many.mapped.news == one.mapped.news
    assert many.mapped.news.split()[5] == ("canonical" if space == "auto" else space)


@pytest.mark.parametrize("asked", ["sampled", "searched"])
def test_a_bank_too_large_to_send_all_its_scores_is_mined_alike(sharded, monkeypatch, asked):
    one, many = EmbeddingBank(N, DIM, VIEWS, GROUP), sharded().empty()
    pushed_into(one, many)
    monkeypatch.setattr("vidssl.mining.shards.OPEN_UP_TO", -1)
    if asked == "sampled":
        monkeypatch.setattr("cluster.bank.shards.OPEN_UP_TO", -1)
    plan, ids = CascadePlan(N, 3, 0.5, 3), np.arange(N)
    assert_same(many.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
    assert (many._sample is not None) == (asked == "sampled")


def test_a_snapshot_goes_from_shards_to_one_bank_and_back_and_what_is_damaged_is_passed_over(sharded, tmp_path):
    said = []
    place = sharded(data_hash="abc")
    one, many = EmbeddingBank(N, DIM, VIEWS, GROUP), place.empty()
    pushed_into(one, many)
    for step in (5, 6):
        with many.moment() as moment:
            many.push(rows(7 + step, 0, np.arange(N)))  # what comes later is not in it
            path = save_snapshot(moment, tmp_path, step, extra={"data_hash": "abc"})
        many = place.load(path, said.append)
        back = load_snapshot(path, one, "abc")
        for name, values in one.state().items():
            np.testing.assert_array_equal(back.state()[name], values)
        np.testing.assert_array_equal(many.version, one.version)
        assert (many.step, many.filled) == (one.step, one.filled)
    whole = place.load(save_snapshot(one, tmp_path / "one", 5, extra={"data_hash": "abc"}), said.append)
    plan, ids = CascadePlan(N, 3, 0.5, 3), np.arange(N)
    for bank in (many, whole):
        assert_same(bank.mine(ids, plan, *VIEWS), one.mine(ids, plan, *VIEWS))
    assert said == []
    shutil.rmtree(tmp_path / "snap-6" / "part-2")
    found = chosen(tmp_path, 6, said.append, place.load)
    assert found is not None
    assert found.filled == one.filled
    assert said == [
        f"{tmp_path / 'snap-6'} is damaged (FileNotFoundError): the older bank snapshot snap-5 is taken instead"
    ]
    with pytest.raises(BankError, match="with other groups of videos"):
        sharded(data_hash="abc", group=np.arange(N)).load(path, said.append)
    place.only(found)
    others = set(range(place._numbers // 100 * 100, place._numbers + 1)) - {found.watch.number}
    until(lambda: not any(others & set(held) for held in ray.get([actor.held.remote() for actor in place._actors])))


def served(server, steps, attempt=1):
    """What a deterministic bank hands out."""
    found = []
    for step in steps:
        server.serve(push(step, attempt=attempt))
        found.append(answered(server, step + 2, attempt=attempt))
    return found


@pytest.mark.parametrize("space", ["raw", "canonical"])
def test_a_deterministic_bank_in_shards_hands_out_the_same_and_goes_on_from_its_snapshot(sharded, tmp_path, space):
    here = spec(deterministic=True, root=str(tmp_path), space=space)
    one = BankServer(here, GROUP)
    many = BankServer(here, GROUP, place=lambda say: sharded(deterministic=True, space=space, root=str(tmp_path)))
    try:
        for server in (one, many):
            server.reset(None, 1, 0)
        for mine, expected in zip(served(many, range(8)), served(one, range(8)), strict=True):
            assert_same(mine, expected)
        path = saved(many, str(tmp_path), 8)
        expected = served(one, range(8, 12))
        for server in (many, BankServer(here, GROUP)):  # shards, and one process with what shards wrote
            began = server.reset(path, 1, 8)
            assert began.said == ""
            for found, right in zip(served(server, range(8, 12), began.attempt), expected, strict=True):
                assert_same(found, right)
    finally:
        one.close()
        many.close()


def test_a_shard_that_is_killed_comes_back_with_its_snapshot_and_training_goes_on(ray_cluster, tmp_path):
    from cluster.bank.shard_actor import start_actors
    from cluster.bank.shard_place import ShardPlace

    here = spec(root=str(tmp_path), shards=2, cpus_per_shard=0)
    actors, cuts = start_actors(here)
    server = BankServer(here, GROUP, place=lambda say: ShardPlace(actors, cuts, here, GROUP, say))
    try:
        server.reset(None, 1, 0)
        server.serve(Push(1, 0, 1, all_rows(1), Wanted.of(batch_ids(3), 3)))
        assert answered(server, 3, attempt=1) is not None
        saved(server, str(tmp_path), 2)
        process = ray.get(actors[1].process_id.remote())
        os.kill(process, signal.SIGSTOP)
        began = time.perf_counter()
        server.serve(push(2, attempt=1))  # rows of a shard that does not move are sent, not waited for
        assert time.perf_counter() - began < 1.5
        os.kill(process, signal.SIGKILL)
        step, longest, fell_back = 3, 0.0, 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            began = time.perf_counter()
            verdict, answer = server.serve(push(step, attempt=1))
            longest, step = max(longest, time.perf_counter() - began), step + 1
            assert verdict == "ok"
            fell_back += answer is None
            if any("was lost" in trouble for trouble in server.troubles) and answered(
                server, step, 0, 1, step - 3, 0.2
            ):
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"it never came back: {list(server.troubles)}")
        assert longest < 2.0
        assert fell_back
        told = [trouble for trouble in server.troubles if "was lost" in trouble]
        assert len(told) == 1
        assert re.match(
            r"shard 2 of 2 of the bank was lost \(\w+\) and started again with 24 of its 24 rows from snap-2; "
            r"nothing was mined for \d+ s",
            told[0],
        )
        assert ray.get(actors[1].process_id.remote()) != process
        assert server.stats()["filled"] == 1.0
    finally:
        server.close()


def test_a_deterministic_run_ends_its_attempt_when_a_shard_is_lost(ray_cluster):
    from cluster.bank.shard_actor import start_actors
    from cluster.bank.shard_place import ShardPlace

    here = spec(deterministic=True, shards=2, cpus_per_shard=0)
    actors, cuts = start_actors(here)
    server = BankServer(here, GROUP, place=lambda say: ShardPlace(actors, cuts, here, GROUP, say))
    try:
        began = server.reset(None, 1, 0)
        server.serve(push(0, attempt=began.attempt))
        assert answered(server, 2, attempt=began.attempt) is not None
        os.kill(ray.get(actors[0].process_id.remote()), signal.SIGKILL)
        server.serve(push(1, attempt=began.attempt))
        until(lambda: server.serve(push(2, attempt=began.attempt))[0] == "lost", 60)
        began = server.reset(None, 1, 0)  # waits for the shard
        server.serve(push(0, attempt=began.attempt))
        assert answered(server, 2, attempt=began.attempt) is not None
    finally:
        server.close()


def test_a_bank_that_is_killed_takes_its_shards_along_and_comes_back_with_new_ones_and_their_rows(
    ray_cluster, tmp_path
):
    from cluster.bank.actor import start_bank

    here = spec(root=str(tmp_path), shards=2, cpus_per_shard=0)
    handle, said = start_bank(here, GROUP), []
    client = BankClient(RayLink(handle), here, 0, say=said.append)

    def trained(step, ready, seconds=180):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            client.push(rows(step), batch_ids(step + 3), step + 3)
            found, step = client.take(step + 1, batch_ids(step + 1)), step + 1
            if ready() and (found.ids >= 0).any():
                return step
            time.sleep(0.1)
        raise AssertionError(f"positives never came: {said}")

    try:
        client.reset(None, 1, 0)
        client.push(all_rows(), batch_ids(3), 3)
        step = trained(1, lambda: True)
        client.save(str(tmp_path), step)
        before = [ray.get(one.process_id.remote()) for one in ray.get(handle.shards.remote())]
        os.kill(ray.get(handle.process_id.remote(), timeout=60), signal.SIGKILL)
        trained(step, lambda: any("was lost" in line for line in said))
        (told,) = [line for line in said if "was lost" in line]
        assert told.startswith(f"the bank's process was lost and started again with {N} of {N} rows; it was away for")
        after = [ray.get(one.process_id.remote()) for one in ray.get(handle.shards.remote())]
        assert not set(before) & set(after)
    finally:
        client.close()
        ray.kill(handle)


def test_a_snapshot_that_one_shard_cannot_write_is_given_up_when_none_writes_any_more(ray_cluster, tmp_path):
    @ray.remote(num_cpus=0)
    class Writer:
        def write(self, moment, path, step):
            if moment == 0:
                raise OSError("full")
            time.sleep(0.5)
            os.makedirs(path)

    aside, actors = tmp_path / "aside", [Writer.remote() for _ in range(2)]
    watch = ShardWatch(actors, 0, pytest.fail, pytest.fail, False)
    with pytest.raises(OSError, match="full"):
        ShardedMoment(None, watch, range(2)).write(aside, 1)
    assert (aside / "part-1").is_dir()  # and the caller removes it
