"""The bank as a real Ray process: mined like the plain one, killed and back with its snapshot while training goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cluster.bank.client import BankClient
from cluster.bank.link import RayLink
from cluster.bank.server import BankServer
from tests.cluster.bank.bank_parts import all_rows, answered, assert_same, batch_ids, push, rows, spec
from vidssl.errors import BankError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def step_through(client, steps, pause_s=0.0):
    taken = {}
    for step in steps:
        taken[step] = client.take(step, batch_ids(step))
        time.sleep(pause_s)
        client.push(rows(step), batch_ids(step + client.spec.horizon), step + client.spec.horizon)
    return taken


@pytest.mark.slow
def test_a_killed_bank_returns_with_its_snapshot_while_the_client_goes_on(ray_cluster, tmp_path):
    import ray

    from cluster.bank.actor import start_bank

    here = spec(root=str(tmp_path))
    handle = start_bank(here)
    client = BankClient(RayLink(handle), here, 0)
    try:
        with pytest.raises(BankError, match="is no readable bank snapshot"):  # a fault there is said here
            client.reset(str(tmp_path / "snap-1"), 1, 1)
        client.reset(None, 1, 0)
        step_through(client, range(10), 0.05)
        client.drain()
        client.save(str(tmp_path), 10)
        filled = client.stats()["filled"]
        os.kill(ray.get(handle.process_id.remote(), timeout=60), signal.SIGKILL)
        longest, step, deadline = 0.0, 10, time.monotonic() + 60
        while time.monotonic() < deadline:
            began = time.perf_counter()
            found = client.take(step, batch_ids(step))
            client.push(rows(step), batch_ids(step + 3), step + 3)
            longest = max(longest, time.perf_counter() - began)
            if client.counts["errors"] and (found.ids >= 0).any():
                break
            time.sleep(0.05)
            step += 1
        assert (found.ids >= 0).any(), "positives never came back"
        assert longest < 1.0  # training never waited for the restart, which takes seconds
        stats = client.stats()
        assert stats["note"] == "restored from snap-10"
        assert float(stats["filled"]) >= float(filled)
        assert client.counts["fallback_rows"] > 0
    finally:
        client.close()
        ray.kill(handle)


def test_a_deterministic_actor_gives_what_the_plain_bank_gives(ray_cluster):
    import ray

    from cluster.bank.actor import start_bank

    here = spec(deterministic=True)
    handle, plain = start_bank(here), BankServer(here)
    client = BankClient(RayLink(handle), here, 0)
    try:
        client.reset(None, 1, 0)
        for step, found in step_through(client, range(8)).items():
            if step >= 2:
                assert_same(found, answered(plain, step))
            plain.serve(push(step))
        assert found.ids.flags.writeable
    finally:
        client.close()
        plain.close()
        ray.kill(handle)


def until_mined(client, step, ready):
    """Train until every row of a batch has positives and `ready` holds; returns the step."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        step += 1
        client.push(rows(step - 1), batch_ids(step + 2), step + 2)
        client.drain()
        found = client.take(step, batch_ids(step))
        if ready() and (found.ids >= 0).all():
            return step
        time.sleep(0.05)
    raise AssertionError("the miner never came back")


@pytest.mark.slow
def test_a_miner_of_its_own_is_killed_and_its_rows_are_mined_all_the_same(ray_cluster):
    import ray

    from cluster.bank.actor import start_bank

    here = spec(miners=1, miner_dtype="float16")
    handle, said = start_bank(here), []
    client = BankClient(RayLink(handle), here, 0, say=said.append)
    try:
        client.reset(None, 1, 0)
        (miner,) = ray.get(handle.miners.remote())
        client.push(all_rows(), batch_ids(2), 2)
        step = until_mined(client, 1, lambda: True)
        os.kill(ray.get(miner.process_id.remote()), signal.SIGKILL)
        until_mined(client, step, lambda: client.stats()["miners_lost"] > 0)
        assert client.counts["errors"] == 0  # the bank itself was there all the time
        assert "miner 1 was lost" in str(client.stats()["trouble"])
    finally:
        client.close()
        ray.kill(handle)
