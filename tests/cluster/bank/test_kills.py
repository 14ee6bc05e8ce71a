"""Twenty times a process of mining is killed while training goes on: no step fails, each loss is said, all of it comes back."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from cluster.bank.client import BankClient
from cluster.bank.link import RayLink
from tests.cluster.bank.bank_parts import all_rows, batch_ids, rows, spec
from vidssl.mining.snapshots import is_snapshot, load_snapshot

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

KILLS = 20


class Training:
    """One rank: takes and pushes at every step, and saves now and then, as a worker does."""

    def __init__(self, client, root):
        self.client, self.root, self.step, self.longest = client, str(root), 0, 0.0

    def until(self, done, seconds=120.0):
        """Train until it is so; returns the steps that it took."""
        first, deadline = self.step, time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.one_step()
            if done(found):
                return self.step - first
            time.sleep(0.03)
        raise AssertionError(f"not within {seconds:g} s: {self.client.counts}")

    def one_step(self):
        began = time.perf_counter()
        found = self.client.take(self.step, batch_ids(self.step))
        ahead = self.step + self.client.spec.horizon
        self.client.push(rows(self.step), batch_ids(ahead), ahead)
        self.longest = max(self.longest, time.perf_counter() - began)
        self.step += 1
        if self.step % 100 == 0:
            self.client.save(self.root, self.step)
        return found


def served(found):
    return (found.ids >= 0).all()


def test_twenty_kills_of_the_bank_and_of_its_miner_cost_no_step(ray_cluster, tmp_path):
    import ray

    from cluster.bank.actor import start_bank

    here, said = spec(miners=1, root=str(tmp_path), snapshot_every_steps=20), []
    handle = start_bank(here)
    client = BankClient(RayLink(handle), here, 0, say=said.append)
    training, banks = Training(client, tmp_path), 0
    try:
        client.reset(None, 1, 0)
        client.push(all_rows(), None, 1)
        training.until(served)
        for kill in range(KILLS):
            if kill % 2:
                (miner,) = ray.get(handle.miners.remote(), timeout=60)
                os.kill(ray.get(miner.process_id.remote(), timeout=60), signal.SIGKILL)
                training.until(lambda found: "miner 1 was lost" in "".join(said[-3:]))
            else:
                errors, banks = client.counts["errors"], banks + 1
                os.kill(ray.get(handle.process_id.remote(), timeout=60), signal.SIGKILL)
                training.until(lambda found, before=errors: client.counts["errors"] > before)
            training.until(served)
        assert all(served(training.one_step()) for _ in range(1)), "rows fall back after the last kill"
        assert training.longest < 1.0
        assert sum(line.startswith("the bank is away") for line in said) == banks
        assert sum(line.startswith("the bank is back") for line in said) == banks
        snapshots = [path for path in (*tmp_path.iterdir(), *(tmp_path / "live").iterdir()) if is_snapshot(path)]
        assert snapshots
        for path in snapshots:
            assert np.isfinite(load_snapshot(path).views["rgb"]).all()
    finally:
        client.close()
        ray.kill(handle)
