"""What do clips gather around? Prototypes, the earlier rows that help to balance them, and how well they are used.

| number | healthy | sick |
|---|---|---|
| `prototypes/used`: share of prototypes that are some row's first choice | near 1, or near rows / P with few rows | near 1 / P |
| `prototypes/entropy`: of the mean assignment, as share of ln P | near 1 | near 0 |
| `prototypes/max_mass`: largest mean assignment, as multiple of 1 / P | near 1 | near P |
| `prototypes/row_entropy`: of one row's assignment, as share of ln P | falls | stays at 1: rows belong to all prototypes alike |
| `vicc/ln_p_gap`: ln P − loss | grows | stays near 0: predictions say nothing |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.distributed import rank, world

__all__ = [
    "NEAR_LN_P",
    "STUCK_STEPS",
    "AssignmentQueue",
    "Prototypes",
    "near_ln_p",
    "stuck_at_ln_p",
    "stuck_sentence",
    "use_of",
]

NEAR_LN_P = 0.02
"""A loss within this share of ln P is no better than even guessing."""

STUCK_STEPS = 200
"""Steps that a loss may stay there before it is called stuck."""


class Prototypes(nn.Linear):
    """P directions of the embedding space, `weight` [P, D]; call `unit_` before every forward pass, as published."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__(dim, prototypes, bias=False)

    @torch.no_grad()
    def unit_(self) -> None:
        """Make the rows unit vectors, in place: the optimizer has moved them off the sphere."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, input: Tensor) -> Tensor:
        """Cosines [..., P] of unit rows [..., D]; in float32 at least, whatever autocast does around."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input, self.weight.to(input.dtype))


class AssignmentQueue(nn.Module):
    """The last K rows of all ranks, per view; newest first. All of it is a buffer, equal on all ranks.

    The published queue is K/W rows of its own on every rank, in a file per rank. A balance over the rows of all ranks
    does not ask who holds which row, so one gathered queue of which each rank takes a share gives the same assignments,
    and a checkpoint of rank 0 holds it whole. A state of another K (other workers, of whose global batch K is a multiple)
    gives its newest rows; where it had fewer, the queue is not full until they have come.

    Args:
        views: V, views of one step.
        size: K; 0: no queue.
        dim: D.

    Attributes:
        rows: [V, K, D].
        written: int64 scalar, rows written so far, at most K.
        came_from: K of the state that was loaded last, where that was another; None otherwise.
    """

    came_from: int | None = None

    rows: Tensor
    written: Tensor

    def __init__(self, views: int, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("rows", torch.zeros(views, size, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None  # `written` without waiting for the device
        self.register_load_state_dict_pre_hook(_fit_rows)
        self.register_load_state_dict_post_hook(_forget_count)

    @property
    def count(self) -> int:
        """Rows written so far, at most K."""
        if self._count is None:
            self._count = int(self.written)
        return self._count

    @property
    def full(self) -> bool:
        """Whether it may be used: there is a queue and all of it is written (as published)."""
        return self.size > 0 and self.count >= self.size

    def share(self) -> Tensor:
        """This rank's part of the rows, [V, about K/W, D]; the parts of all ranks are the whole."""
        return self.rows[:, rank() :: world()]

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put the rows of all ranks [V, G, D] in front; the oldest leave."""
        if self.size == 0:
            return
        self.rows.copy_(torch.cat([rows.to(self.rows.dtype), self.rows], dim=1)[:, : self.size])
        self._count = min(self.size, self.count + rows.shape[1])
        self.written.fill_(self._count)


def _fit_rows(queue: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    assert isinstance(queue, AssignmentQueue)
    rows, queue.came_from = state.get(f"{prefix}rows"), None
    if rows is None or rows.shape[1] == queue.size:
        return
    queue.came_from = rows.shape[1]
    kept = rows[:, : queue.size]  # newest first
    more = kept.new_zeros(kept.shape[0], queue.size - kept.shape[1], kept.shape[2])
    state[f"{prefix}rows"] = torch.cat([kept, more], 1)
    state[f"{prefix}written"] = state[f"{prefix}written"].clamp(max=queue.size)


def _forget_count(queue: nn.Module, keys: Any) -> None:
    assert isinstance(queue, AssignmentQueue)
    queue._count = None


@torch.no_grad()
def use_of(assigned: Tensor) -> dict[str, Tensor]:
    """How assignments [..., P] use the prototypes: the `prototypes/*` numbers of this module's table."""
    rows = assigned.flatten(0, -2)
    p = rows.shape[1]
    mean = rows.mean(0)
    first = torch.zeros_like(mean)
    first[rows.argmax(1)] = 1.0
    return {
        "prototypes/used": first.mean(),
        "prototypes/entropy": torch.special.entr(mean).sum() / math.log(p),
        "prototypes/max_mass": mean.max() * p,
        "prototypes/row_entropy": torch.special.entr(rows).sum(1).mean() / math.log(p),
    }


def near_ln_p(loss: Tensor, prototypes: int) -> Tensor:
    """Whether a loss is that of even guessing, a bool scalar."""
    return (loss / math.log(prototypes) - 1).abs() <= NEAR_LN_P


def stuck_at_ln_p(
    steps: Sequence[int], losses: Sequence[float], prototypes: int, patience: int = STUCK_STEPS
) -> str | None:
    """A sentence where a loss has lately learned nothing: it stayed near ln P for the last `patience` steps or more.

    Args:
        steps: Steps of the log rows, rising.
        losses: Their losses.
        prototypes: P.
        patience: Steps.

    Returns:
        None where all is well, or the record is too short to say.
    """
    since = None
    for step, loss in zip(steps, losses, strict=True):
        near = abs(loss / math.log(prototypes) - 1) <= NEAR_LN_P
        since = (step if since is None else since) if near else None
    if since is None or steps[-1] - since < patience:
        return None
    return stuck_sentence(steps[-1] - since, prototypes)


def stuck_sentence(steps: int, prototypes: int) -> str:
    """What to say of a loss that has stayed near ln P for so many steps."""
    return (
        f"the loss has stayed within {NEAR_LN_P:.0%} of ln {prototypes} = {math.log(prototypes):.2f} for {steps} steps: "
        "the predictions say nothing about the assignments; try a longer method.vicc.freeze_epochs, a smaller "
        "method.vicc.queue or fewer method.vicc.prototypes, and look at prototypes/used"
    )
