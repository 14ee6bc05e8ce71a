"""A miner as a Ray actor: a mirror of the bank on CPU cores or a share of a GPU, started and owned by the bank's process.

It may die at any time: what it was mining is mined by the others, or by its successor, which is sent the bank anew. When
the bank's process dies its miners end with it, and its successor starts new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.bank.mirror import DistantMiner, Mined, MinerGone, Mirror
from cluster.bank.spec import BankSpec
from vidssl.mining.deltas import Delta, Mark
from vidssl.mining.rows import storage

__all__ = ["MinerActor", "settle_threads", "start_miners", "thread_variables"]

ANSWER_S = 120.0
_OWN_BYTES = 400 * 2**20  # Python, torch and the engine's scores


class MinerActor:
    """See `Mirror`."""

    def __init__(self, spec: BankSpec, group: NDArray[np.int64] | None) -> None:
        settle_threads(spec.cpus_per_miner)
        self._mirror = Mirror(spec, spec.empty_bank(group, spec.miner_dtype), "cuda" if spec.gpus_per_miner else "cpu")

    def mine(self, since: Mark | None, delta: Delta, ids: NDArray[np.int64]) -> Mined | None:
        """As `Mirror.mine`."""
        return self._mirror.mine(since, delta, ids)

    def process_id(self) -> int:
        """Of the process that holds the mirror."""
        import os

        return os.getpid()


def start_miners(spec: BankSpec, group: NDArray[np.int64] | None) -> tuple[Sequence[Any], Sequence[DistantMiner]]:
    """Ask Ray for the run's miners; returns at once, they come up by themselves. Handles, and what mines with them."""
    views = len({spec.main, spec.aux})
    rows = spec.n_slots * spec.dim * views * storage(spec.miner_dtype).itemsize
    options: dict[str, Any] = {
        "num_cpus": spec.cpus_per_miner,
        "num_gpus": spec.gpus_per_miner,
        "memory": int(1.2 * rows) + _OWN_BYTES,
        "resources": {spec.miner_node: 0.001} if spec.miner_node else {},
        "max_restarts": -1,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": thread_variables(spec.cpus_per_miner)},
    }
    actors = [ray.remote(**options)(MinerActor).remote(spec, group) for _ in range(spec.miners)]
    return actors, [DistantMiner(f"miner {number + 1}", _caller(actor)) for number, actor in enumerate(actors)]


def thread_variables(threads: int) -> dict[str, str]:
    """What a process must begin with so that its libraries take so many threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def settle_threads(threads: int) -> None:
    """The same for libraries that are asked in the process."""
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def _caller(actor: Any) -> Any:
    def call(since: Mark | None, delta: Delta, ids: NDArray[np.int64]) -> Mined | None:
        try:
            return ray.get(actor.mine.remote(since, delta, ids), timeout=ANSWER_S)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayActorError, GetTimeoutError) as error:
            raise MinerGone(type(error).__name__) from error

    return call
