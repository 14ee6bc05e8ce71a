"""Who was lost? Each rank's process and node, written once an attempt, held against what Ray knows of processes that died."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from cluster.training.seat import Seat
from vidssl.distributed import gather_objects
from vidssl.files import write_json
from vidssl.saved.run_folder import RunFolder

__all__ = ["LostWorkers", "Rank", "read_ranks_of", "write_ranks"]

_WORKER = "RayTrainWorker"
_ITSELF = ("WORKER_DIED", "NODE_DIED", "OOM")


@dataclass(frozen=True)
class Rank:
    """Where a rank runs.

    Attributes:
        pid: Its process.
        node: Address of its node.
    """

    pid: int
    node: str


def write_ranks(folder: RunFolder, seat: Seat) -> None:
    """Every rank says where it is; rank 0 writes it. A collective."""
    ranks: list[Rank] = gather_objects(Rank(os.getpid(), seat.node))
    if seat.rank == 0:
        with suppress(OSError):  # a full disk is said where it costs something
            write_json(folder.ranks, [asdict(one) for one in ranks])


def read_ranks_of(folder: RunFolder) -> list[Rank]:
    """The ranks of the last attempt, in their order; none where there was none."""
    try:
        return [Rank(int(one["pid"]), str(one["node"])) for one in json.loads(folder.ranks.read_text())]
    except (OSError, ValueError, LookupError, TypeError):
        return []


class LostWorkers:
    """The driver's side: names the workers that died since it was asked last.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._ranks = folder, read_ranks_of(folder)
        self._told = set(_dead())

    def look(self) -> None:
        """Remember who is who in this attempt, before the next one writes over it."""
        self._ranks = read_ranks_of(self._folder) or self._ranks

    def words(self) -> str:
        """A sentence without an end: "rank 1 (process 71 on 10.0.0.3) was lost"; "a worker was lost" where Ray knows no more."""
        dead = {name: one for name, one in _dead().items() if name not in self._told}
        self._told |= set(dead)
        named = [_named(one, self._ranks) for one in dead.values()] or list(_with_their_nodes(self._ranks))
        return (
            f"{' and '.join(sorted(named))} {'was' if len(named) == 1 else 'were'} lost"
            if named
            else "a worker was lost"
        )


def _named(actor: dict[str, Any], ranks: list[Rank]) -> str:
    here = Rank(int(actor["Pid"]), str(actor["Address"]["IPAddress"]))
    why = {"NODE_DIED": ", with its node", "OOM": ", which had taken the memory of its node"}.get(_reason(actor), "")
    who = f"rank {ranks.index(here)}" if here in ranks else "a worker"
    return f"{who} (process {here.pid} on {here.node}{why})"


def _with_their_nodes(ranks: list[Rank]) -> Iterator[str]:
    """Ranks whose node is gone: Ray Train ends what it no longer reaches, and then Ray has no other cause of its death."""
    if "ray" not in sys.modules:
        return
    import ray

    with suppress(Exception):  # a cluster that does not answer now has nothing to tell
        alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for number, one in enumerate(ranks):
            if one.node not in alive:
                yield f"rank {number} (process {one.pid} on {one.node}, with its node)"


def _dead() -> dict[str, dict[str, Any]]:
    """Train workers of this driver that died of themselves; those that Ray Train ended after them are none."""
    if "ray" not in sys.modules:
        return {}
    import ray
    from ray._private.state import state

    with suppress(Exception):  # a cluster that does not answer now has nothing to tell
        job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
        found = state.actor_table(None, job_id=job, actor_state_name="DEAD")
        return {
            name: one for name, one in found.items() if one["ActorClassName"] == _WORKER and _reason(one) in _ITSELF
        }
    return {}


def _reason(actor: dict[str, Any]) -> str:
    cause = actor["DeathCause"]
    if cause.HasField("oom_context"):
        return "OOM"
    context = cause.actor_died_error_context
    return context.DESCRIPTOR.fields_by_name["reason"].enum_type.values_by_number[context.reason].name
