"""What do all ranks agree on between steps? Means for the log, one stop for all, a barrier; nothing is sent alone.

A rank that fails while others wait for it would leave them waiting until a timeout: `together` ends in a barrier at which each
says whether it is well, so that all end together, with the reason of the first that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from cluster.training.failure import Failure, Halt, failure_of
from vidssl.distributed import gather_objects, world
from vidssl.errors import VidsslError
from vidssl.saved.run_folder import RunFolder
from vidssl.transfer import Looks, sent

__all__ = [
    "Poll",
    "barrier",
    "from_first_rank",
    "max_over_ranks",
    "mean_over_ranks",
    "together",
    "worst_over_ranks",
]

T = TypeVar("T")


def mean_over_ranks(values: Sequence[float | None], device: torch.device) -> list[float | None]:
    """Mean of each value over the ranks that have one (all bring equally many); None where no rank has."""
    if world() == 1:
        return list(values)
    known = [float(value is not None) for value in values]
    table = torch.tensor([[value or 0.0 for value in values], known], dtype=torch.float64, device=device)
    dist.all_reduce(table)
    return [total / count if count else None for total, count in zip(*table.tolist(), strict=True)]


def worst_over_ranks(values: Sequence[float | None], device: torch.device) -> list[float | None]:
    """The largest of each value over the ranks that have one (all bring equally many); None where no rank has."""
    if world() == 1 or not values:
        return list(values)
    least = float("-inf")
    table = torch.tensor([least if value is None else value for value in values], dtype=torch.float64, device=device)
    dist.all_reduce(table, op=dist.ReduceOp.MAX)
    return [None if value == least else value for value in table.tolist()]


def max_over_ranks(value: float, device: torch.device) -> float:
    """The largest of all ranks' values."""
    if world() == 1:
        return value
    cell = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(cell, op=dist.ReduceOp.MAX)
    return float(cell)


class Poll:
    """A yes of any rank, heard by all in the same call: at once on a CPU, in the next call on a GPU, where nobody waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._looks: Looks[None] = Looks()

    def heard(self, yes: bool) -> bool:
        """Say yes or no, and hear what there is to hear; a collective."""
        if world() == 1:
            return yes
        cell = sent(torch.tensor(float(yes)), self._device)
        dist.all_reduce(cell, op=dist.ReduceOp.MAX)
        return any(bool(said) for _, said in self._looks.note(None, cell))


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def from_first_rank(value: int, device: torch.device) -> int:
    """Rank 0's number, on all ranks."""
    if world() == 1:
        return value
    cell = torch.tensor(value, dtype=torch.int64, device=device)
    dist.broadcast(cell, src=0)
    return int(cell)


def together(work: Callable[[Callable[[], None]], T], folder: RunFolder, device: torch.device) -> T:
    """Do on all ranks what may fail on one of them: writing to a disk.

    Args:
        work: Called with the barrier at which its ranks meet, as often as it likes but equally often on all.
        folder: Of the run.
        device: Of this rank.

    Raises:
        Halt: on every rank, when it failed on any.
    """
    try:
        done = work(lambda: _meet(None, device))
    except (OSError, VidsslError) as error:
        _meet(failure_of(error, folder), device)
        raise
    _meet(None, device)
    return done


def _meet(failure: Failure | None, device: torch.device) -> None:
    """Raises `Halt` on all ranks with the first rank's failure, when there is one."""
    if max_over_ranks(float(failure is not None), device) > 0:
        raise Halt(next(one for one in gather_objects(failure) if one is not None))
