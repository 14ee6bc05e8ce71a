"""The same selection on a torch device: scores, int64 keys and `topk` of them, so ties are as defined as on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.select import Selection
from vidssl.mining.strategy import strategy_of

__all__ = ["score_on_device", "select_on_device"]

_LOW = 0xFFFFFFFF


def score_on_device(query_BD: Tensor, view_ND: Tensor, exclude: Exclusions, valid_N: Tensor | None) -> Tensor:
    """float32 scores [B, N] on the bank's device; forbidden columns hold -inf.

    Half-precision banks are raised to float32 first: results in half precision would merge scores into ties.
    """
    score = query_BD.float() @ view_ND.float().T
    if valid_N is not None:
        score.masked_fill_(~valid_N, -torch.inf)
    if exclude.slots.size:
        rows = torch.from_numpy(exclude.row_of_slot()).to(score.device)
        score[rows, torch.from_numpy(exclude.slots.copy()).to(score.device)] = -torch.inf
    return score


def select_on_device(scores_VBN: Sequence[Tensor], plan: CascadePlan, sizes: tuple[int, ...], trace: bool) -> Selection:
    """As `select.select_keys`, on the device of the scores; the results come back as arrays."""
    scores_VBN = strategy_of(plan.strategy).fuse_on_device(scores_VBN)
    rows, n_slots = scores_VBN[0].shape
    columns = torch.arange(n_slots, device=scores_VBN[0].device).expand(rows, n_slots)
    traced: list[np.ndarray] = []
    for stage, (view, size) in enumerate(zip(plan.views, sizes, strict=True)):
        last = stage == plan.depth - 1
        keys = _keys(scores_VBN[view].gather(1, columns) if stage else scores_VBN[view], columns)
        kept = keys.topk(min(size, keys.shape[1]), dim=1, sorted=last or trace).values
        columns = _LOW - (kept & _LOW)
        if trace:
            traced.append(_without_forbidden(columns, scores_VBN[view])[0].cpu().numpy())
    ids, score = _without_forbidden(columns, scores_VBN[plan.views[-1]])
    return ids.cpu().numpy(), score.cpu().numpy(), traced


def _without_forbidden(columns: Tensor, score_BN: Tensor) -> tuple[Tensor, Tensor]:
    score = score_BN.gather(1, columns)
    return columns.masked_fill(score == -torch.inf, -1), score


def _keys(score: Tensor, columns: Tensor) -> Tensor:
    bits = (score + 0.0).view(torch.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    keys |= _LOW - columns
    return keys
