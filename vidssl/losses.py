"""What is minimised? Contrastive losses on one table of logits [B, 1+K(+k)]: column 0 is the row's own key.

All are written with logsumexp and computed in float32 at least, whatever autocast does around them. Columns that are
not `valid` leave the softmax; every row must keep one valid positive column.

| loss | formula per row | used by |
|---|---|---|
| `info_nce` | lse(all) − own | MoCo; InfoNCE of CoCLR and CPR |
| `mil_nce` | lse(all) − lse(positives) | CoCLR and CPR (after MIL-NCE, Miech et al. 2020, equation 1) |
| `mean_log_nce` | lse(all) − mean(positives) | UberNCE |
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["SelfPositive", "apply_self_rule", "contrast", "info_nce", "mean_log_nce", "mil_nce", "self_dropped"]

SelfPositive = Literal["keep", "drop_p", "remove"]


def contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float, appended: Tensor | None = None) -> Tensor:
    """Cosines over temperature: [own key, queue, appended rows], [B, 1+K(+k)].

    Args:
        query: [B, D] unit rows.
        key: [B, D] unit rows, each row's own key.
        queue: [K, D] unit rows.
        temperature: Of the softmax.
        appended: [B, k, D] rows that only the row itself is compared with (mined bank rows), or None.
    """
    with torch.autocast(query.device.type, enabled=False):
        query = _full(query)
        parts = [(query * key.to(query.dtype)).sum(-1, keepdim=True), query @ queue.to(query.dtype).T]
        if appended is not None:
            parts.append(torch.einsum("bd,bkd->bk", query, appended.to(query.dtype)))
        return torch.cat(parts, dim=1) / temperature


def info_nce(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over rows of −log softmax of column 0.

    Args:
        logits: [B, M].
        valid: Bool [B, M], columns that are in the softmax (all of them when None).
    """
    logits = _only(_full(logits), valid)
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def mil_nce(logits: Tensor, positive: Tensor, valid: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Mean over rows of −log of the positives' summed softmax: one good positive is enough.

    Args:
        logits: [B, M].
        positive: Bool [B, M]; at least one valid column in every row.
        valid: Bool [B, M], columns that are in the softmax (all of them when None).
        weights: [B, M] above 0: how often each positive counts in the sum of the positives; None: once, as published.
    """
    logits = _only(_full(logits), valid)
    counted = logits if weights is None else logits + weights.to(logits.dtype).log()
    return (logits.logsumexp(1) - _only(counted, positive).logsumexp(1)).mean()


def mean_log_nce(logits: Tensor, positive: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over rows of the positives' mean −log softmax: every positive counts (UberNCE).

    Args:
        logits: [B, M].
        positive: Bool [B, M]; at least one valid column in every row.
        valid: Bool [B, M], columns that are in the softmax (all of them when None).
    """
    logits = _full(logits)
    chosen = positive if valid is None else positive & valid
    mean = logits.masked_fill(~chosen, 0.0).sum(1) / chosen.sum(1)
    return (_only(logits, valid).logsumexp(1) - mean).mean()


def apply_self_rule(
    positive: Tensor, valid: Tensor, rule: SelfPositive, dropped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What becomes of the own key (column 0) in rows that have another valid positive.

    `keep`: it stays a positive. `drop_p`: in steps where `dropped` is drawn it is no positive but stays in the softmax,
    that is, it acts as a negative (as CoCLR and CPR are published; after InfoNCE the own key would win every row and
    silence the mined ones). `remove`: it leaves the softmax.

    Args:
        positive: Bool [B, M].
        valid: Bool [B, M].
        rule: One of keep, drop_p, remove.
        dropped: This step's draw, see `self_dropped`; only `drop_p` reads it.

    Returns:
        positive, valid (new tensors) and bool [B], the rows whose own key was dropped.
    """
    others = (positive & valid)[:, 1:].any(1)
    acts = rule == "remove" or (rule == "drop_p" and dropped)
    rows = others if acts else torch.zeros_like(others)
    first = torch.zeros_like(positive)
    first[:, 0] = rows
    return positive & ~first, (valid & ~first if rule == "remove" else valid.clone()), rows


def self_dropped(seed: int, step: int, share: float) -> bool:
    """Whether `drop_p` applies in this step: in `share` of the steps, the same on every rank and after a resume."""
    return bool(np.random.default_rng((seed, step, 0x5E1F)).random() < share)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _only(logits: Tensor, columns: Tensor | None) -> Tensor:
    return logits if columns is None else logits.masked_fill(~columns, float("-inf"))
