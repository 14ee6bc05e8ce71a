"""Has the encoder collapsed? A few numbers on embeddings [N, D] that need no labels, and what they mean in words.

| number | healthy | collapsed |
|---|---|---|
| `rankme` (Garrido et al., ICML 2023, equation 2): exp of the entropy of the singular values | a good part of D | near 1 |
| `dimension_std` of unit rows, times √D | near 1 | near 0 |
| `uniformity` (Wang & Isola, ICML 2020, equation 7): log mean exp(−2‖x−y‖²) | −2 … −4 | near 0 |
| `alignment` (there, equation 6): mean ‖x−y‖² of two clips of a video | small, beside a low uniformity | near 0 |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidssl.errors import BankError

__all__ = [
    "Health",
    "PrototypeHealth",
    "alignment",
    "alignment_of_windows",
    "dimension_std",
    "examine",
    "examine_prototypes",
    "rankme",
    "uniformity",
]

MOST_PAIRS = 2048
"""Rows of which all pairs are taken; more are thinned evenly."""


@dataclass(frozen=True)
class Health:
    """Numbers of one set of embeddings.

    Attributes:
        rows: N.
        dim: D.
        rankme: Effective rank, 1 … min(N, D).
        std: Mean over dimensions of the standard deviation of unit rows, times √D: 1 for evenly spread rows.
        dead: Dimensions that hardly vary (under a tenth of the mean deviation).
        uniformity: See `uniformity`.
        alignment: See `alignment`; None where no second set was given.
        verdict: One sentence.
        collapsed: Whether the verdict is a complaint that makes training pointless.
    """

    rows: int
    dim: int
    rankme: float
    std: float
    dead: int
    uniformity: float
    alignment: float | None
    verdict: str
    collapsed: bool


def rankme(rows: ArrayLike) -> float:
    """Effective rank of [N, D]: exp(−Σ p log p), p = singular values over their sum; not centred, as published."""
    values = np.linalg.svd(_matrix(rows), compute_uv=False)
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def dimension_std(rows: ArrayLike) -> NDArray[np.float64]:
    """Standard deviation of each dimension of the unit rows, times √D, [D]: 1 everywhere on an evenly covered sphere."""
    unit = _unit(rows)
    return unit.std(axis=0) * np.sqrt(unit.shape[1])


def alignment(rows: ArrayLike, others: ArrayLike) -> float:
    """Mean squared distance of unit rows i of both sets (two clips of one video), 0 … 4.

    Raises:
        BankError: sets of different shape.
    """
    left, right = _unit(rows), _unit(others)
    if left.shape != right.shape:
        raise BankError(f"alignment compares rows in pairs; the sets have the shapes {left.shape} and {right.shape}")
    return float(((left - right) ** 2).sum(1).mean())


def alignment_of_windows(mean: ArrayLike, windows: ArrayLike) -> float:
    """`alignment` over all pairs of windows of a video, from the windows' mean alone.

    For n unit rows with mean m the mean squared distance of two different ones is 2n(1 − ‖m‖²)/(n − 1).

    Args:
        mean: [N, D], mean of each video's unit window rows.
        windows: [N], n of each video; videos of one window are left out.

    Returns:
        Mean over the videos; NaN where no video has two windows.
    """
    rows, n = _matrix(mean), np.asarray(windows, np.float64)
    several = n > 1
    if not several.any():
        return float("nan")
    rest = np.clip(1 - (rows[several] ** 2).sum(1), 0, None)
    return float((2 * n[several] * rest / (n[several] - 1)).mean())


def uniformity(rows: ArrayLike, sharpness: float = 2.0) -> float:
    """Log of the mean exp(−t‖x−y‖²) over pairs of different unit rows, at most 0; lower is more evenly spread."""
    unit = _thin(_unit(rows))
    if len(unit) < 2:
        return 0.0
    distance = np.clip(2 - 2 * unit @ unit.T, 0, 4)[np.triu_indices(len(unit), k=1)]
    return float(np.log(np.exp(-sharpness * distance).mean()))


def examine(rows: ArrayLike, others: ArrayLike | None = None, near: float | None = None) -> Health:
    """All numbers of one set, and the verdict.

    Args:
        rows: [N, D], any length of rows.
        others: [N, D], the other clip of the same videos.
        near: The alignment where it is known already (`alignment_of_windows`; NaN: there is none), instead of `others`.

    Raises:
        BankError: not a matrix, no rows, or values that are not finite.
    """
    matrix = _matrix(rows)
    spread = dimension_std(matrix)
    rank, even = rankme(_unit(matrix)), uniformity(matrix)
    dead = int((spread < 0.1 * spread.mean()).sum())
    verdict, collapsed = _verdict(rank, float(spread.mean()), dead, min(matrix.shape), matrix.shape[1])
    if near is None and others is not None:
        near = alignment(matrix, others)
    near = near if near is not None and np.isfinite(near) else None
    return Health(len(matrix), matrix.shape[1], rank, float(spread.mean()), dead, even, near, verdict, collapsed)


@dataclass(frozen=True)
class PrototypeHealth:
    """How a cross-prototype run (ViCC) uses its P prototypes.

    Attributes:
        prototypes: P.
        loss: Of the swapped prediction; ln P is an answer that says nothing.
        entropy: Of the mean assignment as a share of ln P: 1 is even use, 0 a single prototype; NaN where not measured.
        used: Share of the prototypes that are some row's best; NaN where not measured.
        verdict: One sentence.
        alarm: Whether training on is pointless.
    """

    prototypes: int
    loss: float
    entropy: float
    used: float
    verdict: str
    alarm: bool


def examine_prototypes(
    prototypes: int,
    loss: float,
    entropy: float = float("nan"),
    used: float = float("nan"),
    stuck: str | None = None,
) -> PrototypeHealth:
    """The verdict on prototypes from numbers that were logged.

    Args:
        prototypes: P.
        loss: Mean loss of the last steps.
        entropy: Of the mean assignment, over ln P (`prototypes/entropy`).
        used: Share of the prototypes that are some row's best (`prototypes/used`).
        stuck: What `vidssl.prototypes.stuck_at_ln_p` says of the whole log.

    Raises:
        BankError: fewer than two prototypes.
    """
    if prototypes < 2:
        raise BankError(f"prototypes are compared with each other; {prototypes} is given, at least 2 are needed")
    even = float(np.log(prototypes))
    verdict, alarm = f"healthy: the loss {loss:.2f} is below ln P = {even:.2f}", False
    if not np.isfinite(loss):
        verdict, alarm = "diverged: the loss is not finite; lower optim.lr", True
    elif entropy < 0.5:
        verdict, alarm = (
            f"collapsed: the assignments use about {prototypes**entropy:.0f} of {prototypes} prototypes; "
            "raise method.vicc.iterations or lower method.vicc.epsilon",
            True,
        )
    elif stuck is not None:
        verdict, alarm = f"stuck: {stuck}", True
    elif loss > 0.95 * even:
        verdict = f"nothing learned yet: the loss {loss:.2f} is near ln P = {even:.2f}, which every guess reaches"
    elif used < 0.1:
        verdict = f"narrow: only {100 * used:.0f} % of the prototypes are some row's best"
    return PrototypeHealth(prototypes, loss, entropy, used, verdict, alarm)


def _verdict(rank: float, std: float, dead: int, most: int, dim: int) -> tuple[str, bool]:
    if std < 0.05:
        return f"collapsed: all clips have nearly the same embedding (spread {std:.3f} of 1)", True
    if rank < max(1.5, 0.02 * most):
        return f"collapsed onto a line or a small plane: effective rank {rank:.1f} of at most {most}", True
    if rank < 0.1 * most:
        return (
            f"narrow: effective rank {rank:.1f} of at most {most}; look at learning rate, temperature and queue",
            False,
        )
    if std < 0.2:
        return f"narrow: all embeddings point the same way within a thin cone (spread {std:.2f} of 1)", False
    if dead > dim // 2:
        return f"half asleep: {dead} of {dim} dimensions hardly vary", False
    return f"healthy: effective rank {rank:.1f} of at most {most}, spread {std:.2f} of 1", False


def _matrix(rows: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(rows, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise BankError(f"embeddings come as rows [N, D]; the shape is {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise BankError("the embeddings hold NaN or infinity: training has diverged; lower optim.lr")
    return matrix


def _unit(rows: ArrayLike) -> NDArray[np.float64]:
    matrix = _matrix(rows)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def _thin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows[:: max(1, -(-len(rows) // MOST_PAIRS))]
