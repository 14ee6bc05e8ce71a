"""Which keys are the negatives? A ring of the last K rows of each view, with the ids they came from; any batch size.

The published queues need K to be a multiple of the global batch; here a write wraps around. All views share one order
of columns, and rows arrive gathered over ranks, so the rings of all ranks are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vidssl.encoder import unit_rows
from vidssl.errors import RecipeError

__all__ = ["RingQueue"]


class RingQueue(nn.Module):
    """K slots of unit rows per view; everything is a buffer, so a checkpoint holds it whole.

    Args:
        views: Names of the streams whose rows are kept.
        size: K.
        dim: D.

    Attributes:
        instance: int64 [K], dense instance of each slot, -1 where nothing was written.
        group: int64 [K], its group, -1 where nothing was written.
        label: int64 [K], its class, -1 where unknown: only UberNCE and the rival `mining.strategy=oracle` write it.
        written: bool [K].
        minable: bool [K]: rows of the main period, see `forget_minable`.
        pointer: int64 scalar, the slot that is written next.
    """

    instance: Tensor
    group: Tensor
    label: Tensor
    written: Tensor
    minable: Tensor
    pointer: Tensor

    def __init__(self, views: Sequence[str], size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise RecipeError(f"method.queue={size}: the queue needs at least one slot")
        self.size = size
        self.views = tuple(views)
        for view in self.views:  # random unit rows, as published; `written` says that they are no keys yet
            self.register_buffer(f"rows_{view}", unit_rows(torch.randn(size, dim)))
        self.register_buffer("instance", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("group", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("label", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("written", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("minable", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._counts: dict[str, int] = {}  # of `written` and `minable`, so that no step waits for the device
        self.register_load_state_dict_post_hook(_count_again)

    def rows(self, view: str) -> Tensor:
        """[K, D], slot order. The buffer itself: copy it before a `push` that comes ahead of the backward pass."""
        return self.get_buffer(f"rows_{view}")

    @torch.no_grad()
    def push(self, rows: Mapping[str, Tensor], instance: Tensor, group: Tensor, label: Tensor | None = None) -> None:
        """Overwrite the oldest slots. Of more than K rows the last K stay, where a row-by-row write would put them.

        Args:
            rows: Every view of the queue → [G, D] unit rows.
            instance: int64 [G].
            group: int64 [G].
            label: int64 [G]; None: the queue is told no labels.

        Raises:
            RecipeError: other views than those of this queue.
        """
        if set(rows) != set(self.views):
            raise RecipeError(f"the queue holds the views {', '.join(self.views)}, a push brought {', '.join(rows)}")
        count = instance.shape[0]
        slots = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        keep = slice(max(0, count - self.size), count)
        for view in self.views:
            self.rows(view)[slots[keep]] = rows[view][keep].to(self.rows(view).dtype)
        self.instance[slots[keep]] = instance[keep]
        self.group[slots[keep]] = group[keep]
        self.label[slots[keep]] = -1 if label is None else label[keep]
        self.written[slots[keep]] = True
        self.minable[slots[keep]] = True
        self.pointer.copy_((self.pointer + count) % self.size)
        self._counts = {name: min(self.size, before + count) for name, before in self._counts.items()}

    def forget_minable(self) -> None:
        """A slot counts as minable only after it has been written again (the second encoder was exchanged)."""
        self.minable.zero_()
        self._counts["minable"] = 0

    def ready(self) -> bool:
        """Whether mining may start: every slot holds rows of the present encoders (as published: only a full queue)."""
        return self._count("minable") == self.size

    def full(self) -> bool:
        """Whether every slot was written."""
        return self._count("written") == self.size

    def _count(self, name: str) -> int:
        """Slots that have the property, read from the device once: whatever is written goes on where the last write ended."""
        if name not in self._counts:
            self._counts[name] = int(self.get_buffer(name).sum())
        return self._counts[name]

    def filled(self) -> Tensor:
        """Share of written slots, a scalar."""
        return self.written.float().mean()

    def same_source(self, instance: Tensor, group: Tensor) -> Tensor:
        """Bool [B, K]: slots of the row's own instance or of its group (videos cut from one source)."""
        alike = (group[:, None] == self.group) & (group[:, None] >= 0)
        return (alike | (instance[:, None] == self.instance)) & self.written

    def same_label(self, label: Tensor) -> Tensor:
        """Bool [B, K]: slots of the row's class; -1 (unknown) matches nothing."""
        return (label[:, None] == self.label) & (self.label >= 0) & self.written


def _count_again(queue: nn.Module, _: object) -> None:
    assert isinstance(queue, RingQueue)  # for the type checker: a hook is handed a module
    queue._counts.clear()
