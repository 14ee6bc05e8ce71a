"""What do all ranks agree on between steps? Means for the log, one stop for all, a barrier; nothing is sent alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vidssl.distributed import world

__all__ = ["barrier", "from_first_rank", "gather_over_ranks", "max_over_ranks", "mean_over_ranks"]


def mean_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Mean of each value over ranks (all ranks bring equally many)."""
    if world() == 1:
        return list(values)
    table = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(table)
    return (table / world()).tolist()


def max_over_ranks(value: float, device: torch.device) -> float:
    """The largest of all ranks' values."""
    if world() == 1:
        return value
    cell = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(cell, op=dist.ReduceOp.MAX)
    return float(cell)


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


def gather_over_ranks(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on all ranks; waits for all of them."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found
