"""Mining in the queue of the method itself, as CoCLR and CPR are published: every rank mines for its own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vidssl.distributed import world
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.queue import RingQueue

if TYPE_CHECKING:
    from vidssl.methods.fitted import FittedSpace
    from vidssl.mining.cascade import Backend

__all__ = ["agreement_weights", "mine_in_queue"]

AGREEMENT = 0.3
"""Temperature of the weights by agreement: that of docs/results.md (e)."""


def mine_in_queue(
    queries: tuple[Tensor, Tensor],
    queue: RingQueue,
    views: tuple[str, str],
    forbidden: Tensor,
    plan: CascadePlan,
    backend: Backend,
    k: int,
    space: FittedSpace | None = None,
    step: int = 0,
    parts: int = 1,
) -> Tensor:
    """Bool [B, K]: the k best slots that the cascade picks for each row.

    On a GPU nothing leaves it and the host waits for nothing, unless another backend than torch is asked for.

    Args:
        queries: [B, D] unit rows of the main and of the aux view.
        queue: A full queue.
        views: Names of the main and of the aux view in it.
        forbidden: Bool [B, K], slots that the row can never mine: those of its own source (with the plan `oracle`
            also all that are not of its class).
        plan: The cascade.
        backend: As in `vidssl.mining.cascade.mine`.
        k: How many of the plan's positives are taken, the best first.
        space: The space to mine in; None: the rows as they are.
        step: Of the batch, which decides when the space is fitted anew.
        parts: How many such batches the step has.
    """
    from vidssl.mining.cascade import mine  # heavy, and a run that mines in the bank never needs it
    from vidssl.mining.select_torch import mined_on_device

    bank, written = [queue.rows(view) for view in views], len(queries[0]) * parts * world()
    asking, asked = (queries, bank) if space is None else space(step, written, queries, bank)
    if bank[0].is_cuda and backend in ("auto", "torch"):
        ids = mined_on_device(asking, asked, plan, forbidden)[:, :k]
    else:
        result = mine(asking, asked, plan, exclude=_exclusions(forbidden), valid=None, backend=backend)
        ids = torch.as_tensor(result.ids[:, :k], device=forbidden.device)
    mined = forbidden.new_zeros(forbidden.shape[0], queue.size + 1)
    mined.scatter_(1, torch.where(ids >= 0, ids, queue.size), True)  # -1 lands in a column that is cut off
    return mined[:, : queue.size]


@torch.no_grad()
def agreement_weights(
    mined: Tensor,
    queries: tuple[Tensor, Tensor],
    queue: RingQueue,
    views: tuple[str, str],
    space: FittedSpace | None = None,
    step: int = 0,
) -> Tensor:
    """float32 [B, K]: how much both views agree on each mined slot, with a mean of 1 over a row's; 1 where none was mined.

    The softmax over a row's mined slots of both views' mean cosine over `AGREEMENT`, times their number.

    Args:
        mined: Bool [B, K], of `mine_in_queue`; the other arguments are those that it was given.
        queries: [B, D] unit rows of the main and of the aux view.
        queue: A full queue.
        views: Names of the main and of the aux view in it.
        space: The space that was mined in, in which cosines are taken; None: the rows as they are.
        step: Of the batch.
    """
    bank = [queue.rows(view) for view in views]
    asking, asked = (queries, bank) if space is None else space(step, len(queries[0]) * world(), queries, bank)
    with torch.autocast(mined.device.type, enabled=False):
        cosines = [one.float() @ rows.float().T for one, rows in zip(asking, asked, strict=True)]
    shares = torch.where(mined, torch.stack(cosines).mean(0) / AGREEMENT, float("-inf")).softmax(1)
    return torch.where(mined, shares * mined.sum(1, keepdim=True), 1.0)


def _exclusions(forbidden: Tensor) -> Exclusions:
    counts = forbidden.sum(1).cpu().numpy()
    slots = forbidden.nonzero()[:, 1].cpu().numpy().astype(np.int64)  # row-major: already grouped by row
    return Exclusions(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), slots)
