"""Which prototypes does a clip belong to, and how well does another view of it say so? Assignments and the swapped loss.

Sinkhorn's iteration gives every prototype the same mass over the rows of all ranks, and every row the mass one: no
clip can be explained by one prototype for all. It runs in log space, so that scores of any size stay finite (the
published code takes the exponential first and mends the overflow).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vidssl.distributed import world

__all__ = ["sinkhorn", "swapped_loss"]


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, queued: Tensor | None = None) -> Tensor:
    """Soft assignments of this rank's rows, balanced over the rows of all ranks (SwAV, Caron et al. 2020, equation 3).

    `iterations` times: every prototype's mass over all rows becomes equal, then every row's mass becomes one. The
    constant factors 1/P and 1/(W·n) of the published iteration cancel in its last step and are left out, so ranks may
    bring different numbers of rows. All leading dimensions share each message between ranks.

    Args:
        scores: [..., B, P], cosines of rows and prototypes; computed in float32 at least.
        epsilon: Smaller is sharper.
        iterations: At least 1.
        queued: [..., Q, P], scores of earlier rows of this rank that join the balance.

    Returns:
        [..., B, P], rows that sum to one, of `scores` only.
    """
    with torch.autocast(scores.device.type, enabled=False):
        table = _full(scores) if queued is None else torch.cat([_full(queued), _full(scores)], dim=-2)
        table = table / epsilon
        for _ in range(iterations):
            table = table - _log_mass(table)
            table = F.log_softmax(table, dim=-1)
        return table[..., -scores.shape[-2] :, :].exp()


def swapped_loss(scores: Tensor, assigned: Tensor, temperature: float = 0.1) -> Tensor:
    """Every view predicts the assignments of every other view (SwAV, equation 2; ViCC's four views likewise).

    Mean over assigning views i of the mean over views v ≠ i of the cross entropy of `assigned[i]` and
    softmax(`scores[v]` / temperature), mean over rows.

    Args:
        scores: [V, B, P], with gradient.
        assigned: [V, B, P], from `sinkhorn`.
        temperature: Of the predictions.

    Raises:
        ValueError: fewer than two views, or other shapes of scores and assignments.
    """
    views = scores.shape[0]
    if views < 2 or assigned.shape != scores.shape:
        raise ValueError(
            f"the swapped loss takes two views or more, all assigned: scores are {tuple(scores.shape)}, assignments {tuple(assigned.shape)}"
        )
    with torch.autocast(scores.device.type, enabled=False):
        said = F.log_softmax(_full(scores) / temperature, dim=-1)
        pairs = -torch.einsum("ibp,vbp->iv", assigned.to(said.dtype), said) / scores.shape[1]
        return (pairs.sum() - pairs.diagonal().sum()) / (views * (views - 1))


def _log_mass(table: Tensor) -> Tensor:
    """Log of each prototype's mass over the rows of all ranks: [..., n, P] → [..., 1, P]."""
    peak = table.amax(-2, keepdim=True)
    if world() > 1:
        dist.all_reduce(peak, dist.ReduceOp.MAX)
    mass = (table - peak).exp().sum(-2, keepdim=True)
    if world() > 1:
        dist.all_reduce(mass)
    return peak + mass.log()


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
