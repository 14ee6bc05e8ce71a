"""Is one rank slower than the others? In a step all wait for the slowest: which it is, on which node, and with what, is said once.

What counts is a rank's own time in a step: waiting for its data, and its forward passes, before it meets the others in the
gradients' sum. (On a GPU a forward pass ends later than its call; there the wait for data is what tells.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cluster.training.lost import read_ranks_of
from vidssl.distributed import gather_rows
from vidssl.saved.run_folder import RunFolder

__all__ = ["ForwardTime", "Laggard", "OwnTime"]

FACTOR, SHARE, ROWS = 1.5, 0.1, 3
"""Slow is: so many times the median rank's own time, so large a share of the step beyond it, in so many log rows running."""

_STAGES = ("read", "decode", "augment")


@dataclass(frozen=True)
class OwnTime:
    """One rank's time between two log rows, milliseconds a step.

    Attributes:
        wait: For data.
        forward: In forward passes.
        stages: Of the loader a batch: read, decode, augment.
    """

    wait: float
    forward: float
    stages: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def all(self) -> float:
        """Its own, before it waits for others."""
        return self.wait + self.forward


class ForwardTime:
    """Seconds that a module's forward passes took since it was asked last."""

    def __init__(self, module: nn.Module) -> None:
        self._seconds, self._began = 0.0, 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def taken(self) -> float:
        """And begin anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._seconds += time.perf_counter() - self._began


class Laggard:
    """Looks at all ranks' own times at each log row.

    Args:
        folder: Of the run, for the ranks' nodes.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._rank, self._rows, self._told = -1, 0, -1

    def note(self, own: OwnTime, step_ms: float, device: torch.device) -> str:
        """A collective. A sentence where there is something to say now, else ""; on every rank the same."""
        brought = torch.tensor([[own.wait, own.forward, *own.stages]], dtype=torch.float32, device=device)
        return self.judge(
            [OwnTime(row[0], row[1], (row[2], row[3], row[4])) for row in gather_rows(brought).tolist()], step_ms
        )

    def judge(self, ranks: Sequence[OwnTime], step_ms: float) -> str:
        """As `note`, of what all brought."""
        if len(ranks) < 2:
            return ""
        slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].all)
        usual = statistics.median(one.all for rank, one in enumerate(ranks) if rank != slowest)
        over = ranks[slowest].all - usual
        slow = ranks[slowest].all > FACTOR * usual and over > SHARE * step_ms
        self._rows = (self._rows + 1 if slowest == self._rank else 1) if slow else 0
        self._rank = slowest
        if self._rows < ROWS or self._told == slowest:
            return ""
        self._told = slowest
        return self._sentence(slowest, ranks, usual, step_ms)

    def _sentence(self, slowest: int, ranks: Sequence[OwnTime], usual: float, step_ms: float) -> str:
        one, nodes = ranks[slowest], read_ranks_of(self._folder)
        where = f" on {nodes[slowest].node}" if slowest < len(nodes) else ""
        stage = max(range(len(_STAGES)), key=lambda at: one.stages[at])
        what = (
            f"{one.wait:.0f} ms of it waiting for data, most of a batch's {sum(one.stages):.0f} ms being {_STAGES[stage]}"
            if one.wait > one.forward
            else f"{one.forward:.0f} ms of it in its forward pass"
        )
        return (
            f"rank {slowest}{where} is slow: {one.all:.0f} ms of its own in a step of {step_ms:.0f} ms, where the other ranks take "
            f"{usual:.0f}; {what}; all wait for it"
        )
