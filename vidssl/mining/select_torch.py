"""The same selection on a torch device: scores, int64 keys and `topk` of them, so ties are as defined as on the CPU.

The host gives orders and waits once, at the end, for one tensor with everything in it: ids, scores, stages, and whether a
row was not finite. What goes up (queries, exclusions, filled slots) goes from pinned memory, which needs no wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vidssl.errors import BankError
from vidssl.mining.budget import device_budget
from vidssl.mining.plan import CascadePlan
from vidssl.mining.strategy import strategy_of
from vidssl.mining.task import Selection, Task
from vidssl.transfer import sent

__all__ = ["mine_on_device", "mined_on_device"]

CHUNK = 65_536
"""Bank rows raised from half precision at once: 32 MB."""
_LOW = 0xFFFFFFFF


def mine_on_device(task: Task) -> Selection:
    """As `vidssl.mining.whole.mine_whole`, where the bank lies.

    Args:
        task: With tensors; queries that lie elsewhere are sent. A budget of 0: a quarter of what is free there.

    Raises:
        BankError: a query or a filled bank row is not finite.
    """
    bank, device = cast(Sequence[Tensor], task.bank), cast(Tensor, task.bank[0]).device
    queries = [sent(cast(Tensor, query), device).float() for query in task.queries]
    unfilled = None if task.valid is None else sent(torch.from_numpy(~task.valid), device)
    pairs = sent(torch.from_numpy(np.stack([task.exclude.row_of_slot(), task.exclude.slots])), device)
    found, queries_fine = [], torch.stack([query.isfinite().all() for query in queries]).all()
    bank_fine = torch.ones_like(queries_fine)
    for part, scores in _scored(queries, bank, task.budget):
        rows, slots = pairs[:, task.exclude.indptr[part.start] : task.exclude.indptr[part.stop]]
        for score in scores:
            fine = score[0].isfinite()  # a bad bank row shows in the score of every query
            bank_fine &= (fine if unfilled is None else fine | unfilled).all()
            _forbid(score, rows - part.start, slots, unfilled)
        found.append(_select(scores, task.plan, task.sizes, task.trace))
    return _brought(found, torch.stack([queries_fine, bank_fine]), task)


@torch.no_grad()
def mined_on_device(
    queries: Sequence[Tensor],
    bank: Sequence[Tensor],
    plan: CascadePlan,
    forbidden_BN: Tensor,
    filled: int | None = None,
) -> Tensor:
    """The same where queries, exclusions and results all stay on the device: the host waits for nothing.

    Nobody looks whether rows are finite: that would be a wait. Who trains on what was mined sees it in the loss.

    Args:
        queries: [B, D] rows of the main view, then of the aux one.
        bank: [N, D] rows of the same views.
        plan: The cascade.
        forbidden_BN: Bool [B, N], slots that a query may not mine, unfilled ones among them.
        filled: How many slots are filled; None: all.

    Returns:
        int64 [B, min(k, N)], best first, -1 where fewer are allowed.
    """
    used, n_slots = 2 if plan.needs_aux else 1, forbidden_BN.shape[1]
    sizes, found = plan.sizes(n_slots if filled is None else filled), []
    for part, scores in _scored([query.float() for query in queries[:used]], bank[:used], 0):
        for score in scores:
            score.masked_fill_(forbidden_BN[part], -torch.inf)
        found.append(_select(scores, plan, sizes, trace=False)[:, : min(sizes[-1], n_slots)])
    return torch.cat(found)


def _scored(queries: Sequence[Tensor], bank: Sequence[Tensor], budget: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """As many queries at a time as the budget holds, with their scores of each view."""
    rows, n_slots = len(queries[0]), len(bank[0])
    per_query = n_slots * (4 * len(bank) + 32)  # scores, keys, and the survivors of the first stage
    height = max(1, (budget or device_budget(bank[0].device)) // per_query)
    for start in range(0, rows, height):
        part = slice(start, min(start + height, rows))
        yield part, [_score(query[part], view) for query, view in zip(queries, bank, strict=True)]


def _score(query_BD: Tensor, view_ND: Tensor) -> Tensor:
    """float32 [B, N]; half-precision rows are raised chunk by chunk: half-precision results would merge scores into ties.

    For the same reason a step's autocast, within which inline mining runs, ends here.
    """
    with torch.autocast(view_ND.device.type, enabled=False):
        if view_ND.dtype == torch.float32:
            return query_BD @ view_ND.T
        out = torch.empty((len(query_BD), len(view_ND)), dtype=torch.float32, device=view_ND.device)
        for a in range(0, len(view_ND), CHUNK):
            out[:, a : a + CHUNK] = query_BD @ view_ND[a : a + CHUNK].float().T
        return out


def _forbid(score: Tensor, rows: Tensor, slots: Tensor, unfilled: Tensor | None) -> None:
    if unfilled is not None:
        score.masked_fill_(unfilled, -torch.inf)
    score.index_put_((rows, slots), torch.full((), -torch.inf, device=score.device))


def _select(scores_VBN: Sequence[Tensor], plan: CascadePlan, sizes: tuple[int, ...], trace: bool) -> Tensor:
    """int64 [B, W]: ids, the bits of their scores, and with `trace` the ids of every stage, side by side."""
    scores_VBN = strategy_of(plan.strategy).fuse_on_device(scores_VBN)
    columns = torch.arange(scores_VBN[0].shape[1], device=scores_VBN[0].device)[None]
    traced: list[Tensor] = []
    for stage, (view, size) in enumerate(zip(plan.views, sizes, strict=True)):
        last = stage == plan.depth - 1
        keys = _keys(scores_VBN[view].gather(1, columns) if stage else scores_VBN[view], columns)
        kept = keys.topk(min(size, keys.shape[1]), dim=1, sorted=last or trace).values
        del keys
        columns = _LOW - (kept & _LOW)
        if trace:
            traced.append(_without_forbidden(columns, scores_VBN[view])[0])
    ids, score = _without_forbidden(columns, scores_VBN[plan.views[-1]])
    return torch.cat([ids, score.view(torch.int32).long(), *traced], dim=1)


def _without_forbidden(columns: Tensor, score_BN: Tensor) -> tuple[Tensor, Tensor]:
    score = score_BN.gather(1, columns)
    return columns.masked_fill(score == -torch.inf, -1), score


def _keys(score: Tensor, columns: Tensor) -> Tensor:
    """Integers in the order of the scores, above the reversed column: every key differs, and of equals the lower wins."""
    bits = (score + 0.0).view(torch.int32)  # -0.0 and 0.0 are one score, so they must be one integer
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    keys |= _LOW - columns
    return keys


def _brought(found: Sequence[Tensor], fine: Tensor, task: Task) -> Selection:
    """The one wait of the host."""
    table = torch.cat(list(found))
    flags = torch.nn.functional.pad(fine.long()[None], (0, table.shape[1] - 2))
    said = torch.cat([table, flags]).cpu().numpy()
    if not said[-1, 0]:
        raise BankError("a query is not finite; mine with finite unit rows only")
    if not said[-1, 1]:
        raise BankError("a bank row is not finite, so its scores are not numbers; push finite unit rows only")
    widths = np.minimum.accumulate([task.n_slots, *task.sizes])[1:]
    cuts = np.cumsum([widths[-1], widths[-1], *(widths if task.trace else ())])[:-1]
    ids, bits, *stages = np.split(said[:-1], cuts, axis=1)
    return ids, bits.astype(np.int32).view(np.float32), stages
