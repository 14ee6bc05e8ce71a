"""The bank as a Ray actor: a thin face of `BankServer`.

It holds no CPU in Ray's books: Train's elastic sizes count a node's whole CPUs and would never fit beside it. No call waits
for mining, so two threads answer any number of workers; a third does what takes long, snapshots. A killed bank comes back
by itself with the newest whole snapshot; construction never fails, because that would be final.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.bank.miner import settle_threads, start_miners, thread_variables
from cluster.bank.placed import placed
from cluster.bank.server import BankServer
from cluster.bank.shard_actor import start_actors
from cluster.bank.shard_place import ShardPlace
from cluster.bank.spec import Answer, BankSpec, Began, Push, Verdict

__all__ = ["BankActor", "start_bank"]


class BankActor:
    """See `BankServer`; methods differ only in the group of threads that runs them."""

    def __init__(self, spec: BankSpec, group: NDArray[np.int64] | None, label: NDArray[np.int64] | None) -> None:
        with warnings.catch_warnings(action="ignore"):  # Ray's own use of what it deprecates
            restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        settle_threads(spec.threads)
        self._shards: list[Any] = []
        self._miners, miners = start_miners(spec, group)  # both kept: they end with their handles
        place = None
        if spec.shards > 1:
            self._shards, cuts = start_actors(spec)
            place = partial(ShardPlace, self._shards, cuts, spec, group)
        self._server = BankServer(spec, group, label, restarted, miners, place)

    @ray.method(concurrency_group="io")
    def serve(self, push: Push) -> tuple[Verdict, Answer | None]:
        """As `BankServer.serve`."""
        return self._server.serve(push)

    @ray.method(concurrency_group="io")
    def stats(self) -> dict[str, float | str]:
        """As `BankServer.stats`."""
        return self._server.stats()

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def reset(self, source: str | None, world: int, start_step: int) -> Began:
        """As `BankServer.reset`."""
        return self._server.reset(source, world, start_step)

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def begin_save(self, root: str, step: int, told: bool) -> bool:
        """As `BankServer.begin_save`."""
        return self._server.begin_save(root, step, told)

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def saved(self, step: int) -> str | None:
        """As `BankServer.saved`."""
        return self._server.saved(step)

    @ray.method(concurrency_group="ctl")
    def miners(self) -> list[Any]:
        """Handles of its miners."""
        return list(self._miners)

    @ray.method(concurrency_group="ctl")
    def shards(self) -> list[Any]:
        """Handles of its shards."""
        return list(self._shards)

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def process_id(self) -> int:
        """As `BankServer.process_id`."""
        return self._server.process_id()


def start_bank(
    spec: BankSpec,
    group: NDArray[np.int64] | None = None,
    label: NDArray[np.int64] | None = None,
) -> Any:
    """Start the bank of a run, without waiting for it; it lives as long as the driver that called this.

    Args:
        spec: The run's bank.
        group: int64 [N], videos cut from one source share a number.
        label: int64 [N], for mining precision in the log; never read by the miner.

    Returns:
        The actor's handle; give it to the workers and wrap it in a `RayLink`.
    """
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,  # a push that failed is old by then; the client counts it and goes on
        "concurrency_groups": {
            "io": 2 if spec.shards == 1 else 8,
            "ctl": 2,
        },  # with shards it waits for rows to hand out
        "runtime_env": {"env_vars": thread_variables(spec.threads)},
        **placed(spec),
    }
    return ray.remote(**options)(BankActor).remote(spec, group, label)
