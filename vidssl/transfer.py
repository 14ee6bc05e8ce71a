"""How do values pass between host and device without a wait? Up from pinned memory, down behind an event.

On a CPU nothing is copied and nobody waits: the same values, at once.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Later", "Looks", "sent"]

About = TypeVar("About")


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on `device`; what the device is given next comes after them, and the host goes on at once."""
    if values.device.type == "cpu" and device.type != "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Later:
    """Values that the host will want: on a GPU they are under way behind all that it was given so far.

    Args:
        values: Any shape; later changes of a tensor on a CPU are seen, of one on a GPU are not.
    """

    def __init__(self, values: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        self._values = values.detach()
        if values.is_cuda:
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values = pinned.copy_(values.detach(), non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    @property
    def under_way(self) -> bool:
        """Whether `read` may have to wait."""
        return self._there is not None

    def read(self) -> Tensor:
        """The values on the host; a wait for the work that was given before them, not for what came after."""
        if self._there is not None:
            self._there.synchronize()
            self._there = None
        return self._values


class Looks(Generic[About]):
    """What steps found, looked at in order: at once on a CPU, `lag` notes later on a GPU, where it has long arrived.

    Args:
        lag: Notes on a GPU between a note and the look at it.
    """

    def __init__(self, lag: int = 1) -> None:
        self._lag = lag
        self._under_way: deque[tuple[About, Later]] = deque()

    def note(self, about: About, values: Tensor) -> list[tuple[About, Tensor]]:
        """Take what one step found; returns what is to be looked at now, with what it is about."""
        later = Later(values)
        self._under_way.append((about, later))
        return self.rest(self._lag if later.under_way else 0)

    def rest(self, left: int = 0) -> list[tuple[About, Tensor]]:
        """All that was not looked at yet, but for the newest `left`."""
        due = [self._under_way.popleft() for _ in range(len(self._under_way) - left)]
        return [(about, later.read()) for about, later in due]
