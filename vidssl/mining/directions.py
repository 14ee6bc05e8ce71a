"""Which directions of an embedding tell videos apart, and which of them do two views share? Covariances, shrunk.

`X → (X − m) C^(−1/2)` makes every direction count alike (whitening). The canonical directions of two views are the
singular vectors of `K = C_a^(−1/2) C_ab C_b^(−1/2)`; the singular values are the correlations of what the views say in
them. Both overfit where rows are few. Whitening has nothing to hold it but the shrinkage of the covariance towards a
multiple of the identity, as if D more rows had been seen that know no direction. A canonical direction is held by its
pairs: it counts only as far as its correlation is above the largest one of shuffled pairs, so little shrinkage will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEAST_SHRINKAGE",
    "SHARED_SHRINKAGE",
    "Moments",
    "Shared",
    "moments",
    "shared_directions",
    "shrinkage",
    "whitener",
]

LEAST_SHRINKAGE = 0.2
"""Share of the identity in a white space however many rows there are: what hardly varies is noise, and stays small."""
SHARED_SHRINKAGE = 0.05
"""Share of the identity where shared directions are looked for."""
SHUFFLES = 8
"""Shuffled pairings, whose largest correlation is called chance."""
_ALIKE = 1e-6
"""Variance of unit rows below which they count as all alike (the encoder has collapsed)."""
_BLOCK = 8192

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the rows of one view.

    Attributes:
        rows: n.
        mean: [D].
        covariance: [D, D], of n rows, not shrunk.
    """

    rows: int
    mean: Matrix
    covariance: Matrix

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def alike(self) -> bool:
        """Whether all rows are one row but for rounding, so that no direction means anything."""
        return bool(np.trace(self.covariance) < _ALIKE)


@dataclass(frozen=True, eq=False)
class Shared:
    """What two views have in common, strongest first.

    Attributes:
        first: [D, r] map of the first view's centred rows.
        second: [D, r] of the second view's.
        correlations: [r], canonical correlations above chance.
        chance: Largest canonical correlation of shuffled pairs.
    """

    first: Matrix
    second: Matrix
    correlations: Matrix
    chance: float

    @property
    def weights(self) -> Matrix:
        """[r]: √((ρ² − ρ₀²) / (1 − ρ₀²)), the part of each correlation ρ that chance ρ₀ does not explain."""
        chance = self.chance**2
        return np.sqrt(np.maximum(self.correlations**2 - chance, 0) / max(1 - chance, 1e-12))


def moments(rows_nD: NDArray) -> Moments:
    """Mean and covariance, summed in double precision over blocks of rows."""
    count, dim = rows_nD.shape
    mean = np.zeros(dim)
    for start in range(0, count, _BLOCK):
        mean += rows_nD[start : start + _BLOCK].sum(0, dtype=np.float64)
    mean /= count
    return Moments(count, mean, _product(rows_nD, rows_nD, mean, mean))


def shrinkage(rows: int, dim: int) -> float:
    """λ of the covariance (1 − λ) C + λ μ I: D rows that know no direction beside n that do, never below the least."""
    return max(LEAST_SHRINKAGE, dim / (rows + dim))


def whitener(of: Moments, share: float) -> Matrix:
    """[D, D] symmetric C^(−1/2) of the covariance with this share of the identity."""
    values, vectors = np.linalg.eigh(of.covariance)
    values = np.maximum(values, 0)
    values = (1 - share) * values + share * values.mean()
    return (vectors * values**-0.5) @ vectors.T


def shared_directions(first_nD: NDArray, second_nD: NDArray, of: tuple[Moments, Moments], seed: int) -> Shared:
    """Canonical directions of paired rows whose correlation is above that of shuffled pairs.

    Args:
        first_nD: Rows of one view.
        second_nD: Rows of the same videos in the other view.
        of: Their moments.
        seed: Of the shuffles.
    """
    white = whitener(of[0], SHARED_SHRINKAGE), whitener(of[1], SHARED_SHRINKAGE)

    left, values, right = np.linalg.svd(white[0] @ _product(first_nD, second_nD, of[0].mean, of[1].mean) @ white[1])
    chance = _chance(first_nD, second_nD, of, white, seed)
    number = int((values > chance).sum())
    maps = white[0] @ left[:, :number], white[1] @ right[:number].T
    return Shared(*maps, np.minimum(values[:number], 1.0), min(chance, 1.0))


def _chance(
    first_nD: NDArray, second_nD: NDArray, of: tuple[Moments, Moments], white: tuple[Matrix, Matrix], seed: int
) -> float:
    """Largest canonical correlation of shuffled pairs; in single precision, for two digits of it are enough."""
    rng, count, largest = np.random.default_rng((seed, 0xCCA)), len(first_nD), 0.0
    first, second = first_nD - of[0].mean.astype(np.float32), second_nD - of[1].mean.astype(np.float32)
    for _ in range(SHUFFLES):
        crossed = (first.T @ second[rng.permutation(count)]).astype(np.float64) / count
        largest = max(largest, float(np.linalg.norm(white[0] @ crossed @ white[1], 2)))
    return largest


def _product(first_nD: NDArray, second_nD: NDArray, first_mean: Matrix, second_mean: Matrix) -> Matrix:
    """[D, D] mean over rows of (x − mean)ᵀ (y − mean)."""
    total = np.zeros((first_nD.shape[1], second_nD.shape[1]))
    for start in range(0, len(first_nD), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += (first_nD[block] - first_mean).T @ (second_nD[block] - second_mean)
    return total / len(first_nD)
