"""In which space are scores taken? In the rows as they are, or after a linear map that was fitted on the rows themselves.

| `mining.space` | what a row becomes |
|---|---|
| raw | itself, as published |
| white | `unit((x − m) C^(−1/2))`, each view by itself: every direction counts alike |
| canonical | `unit((x − m) C^(−1/2) U w)`: the directions that both views share, each as much as it is shared |
| auto | canonical or raw, by how many rows there are and how much the views share; the reason is said |

Rows stay unit rows and scores inner products, so every engine and every strategy works in every space. Where the rows
do not carry a map (too few, all alike, nothing shared) what is asked for falls back to raw, and says why. The
mathematics stands in `vidssl.mining.directions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.errors import BankError
from vidssl.mining.directions import Matrix, Moments, moments, shared_directions, shrinkage, whitener

__all__ = ["FIT_ROWS", "AskedSpace", "Space", "SpaceKind", "fit_space", "project", "raw_space", "refit_due"]

SpaceKind = Literal["raw", "white", "canonical"]
AskedSpace = Literal["raw", "white", "canonical", "auto"]
Rows = TypeVar("Rows", NDArray, Tensor)

FIT_ROWS = 65_536
"""Rows that a map is fitted on; of more a random sample is taken."""
LEAST_DIRECTIONS = 4
"""Shared directions below which rows would be told apart by next to nothing."""
AUTO_ROWS, AUTO_DIRECTIONS = 3, 5
"""Rows per dimension and shared directions from which `auto` leaves the raw rows, for canonical ones.

In docs/results.md (d) canonical rows with exactly four directions lost to raw ones, with five and more they did not where
both views know the class. White rows lose .1 where nothing is shared above chance and many rows are there, so that `auto`
never takes them: what helps them elsewhere (a second view that knows nothing) cannot be seen without labels.
"""


@dataclass(frozen=True, eq=False)
class Space:
    """A linear map for each view.

    Attributes:
        kind: What it is.
        views: Names of the views, in order; empty: raw, whatever the views.
        means: view → float32 [D]; empty for raw.
        matrices: view → float32 [D, R]; empty for raw.
        weights: float32 [R], of the shared directions, strongest first (canonical only).
        rows: Rows it was fitted on.
        why: In words, for the log.
    """

    kind: SpaceKind
    views: tuple[str, ...]
    means: Mapping[str, NDArray[np.float32]]
    matrices: Mapping[str, NDArray[np.float32]]
    weights: NDArray[np.float32]
    rows: int
    why: str

    @property
    def columns(self) -> int | None:
        """R, width of a mapped row; None where rows stay as they are."""
        return next((matrix.shape[1] for matrix in self.matrices.values()), None)

    def apply(self, view: str | int, rows: Rows) -> Rows:
        """Rows of one view in this space.

        Args:
            view: Its name, or its place among `views`.
            rows: [..., D], array or tensor, float32 or half precision.

        Returns:
            float32 [..., R] unit rows; a row that lies on the mean becomes zeros. Raw: the rows as they are, in float32.

        Raises:
            BankError: a view that the space was not fitted for.
        """
        if self.kind == "raw":
            return _float(rows)
        name = self.views[view] if isinstance(view, int) else view
        if name not in self.matrices:
            raise BankError(f"the mining space was fitted for {', '.join(self.views)}, not for {name}")
        mean, matrix = self.means[name], self.matrices[name]
        if isinstance(rows, Tensor):
            return project(rows, torch.from_numpy(mean).to(rows.device), torch.from_numpy(matrix).to(rows.device))
        return _project_array(rows, mean, matrix)

    def describe(self) -> str:
        """One line for logs and reports."""
        return f"{self.kind} ({self.why})"


def raw_space(why: str = "as asked", rows: int = 0) -> Space:
    """The identity."""
    return Space("raw", (), {}, {}, np.zeros(0, np.float32), rows, why)


def fit_space(kind: AskedSpace, rows: Mapping[str, NDArray], *, seed: int = 0) -> Space:
    """The space of a kind for these rows; the same rows and seed give the same one.

    Args:
        kind: What is asked for.
        rows: view → [n, D] unit rows of the same n videos, one view or two; of more than `FIT_ROWS` a sample is read.
        seed: Of the sample and of the shuffled pairs.

    Returns:
        What was asked for or, where the rows do not carry it, raw; `why` says so.

    Raises:
        BankError: no view or more than two, views of different shapes, rows that are not finite.
    """
    views, tables = _checked(rows)
    count, dim = tables[0].shape
    if kind == "raw":
        return raw_space(rows=count)
    if count > FIT_ROWS:
        chosen = np.sort(np.random.default_rng((seed, 0xF17)).choice(count, FIT_ROWS, replace=False))
        tables = [table[chosen] for table in tables]
    of = [moments(table) for table in tables]
    for view, one in zip(views, of, strict=True):
        if not np.isfinite(one.covariance).all():
            raise BankError(f"{view} rows are not finite, so no mining space can be fitted; push finite unit rows only")
    if flat := [view for view, one in zip(views, of, strict=True) if one.alike]:
        return raw_space(f"the {' and '.join(flat)} rows are all alike", count)
    if count <= dim:
        return raw_space(f"{count} rows of width {dim} fit no map; it needs more rows than columns", count)
    if kind == "auto" and count < AUTO_ROWS * dim:
        return raw_space(f"auto: {count} rows of width {dim} are fewer than {AUTO_ROWS} per column", count)
    if kind == "white":
        return _white(views, of, count, f"{count} rows of width {dim}")
    return _canonical(kind, views, tables, of, count, seed)


def refit_due(step: int, fitted_at: int, refit_steps: int | None, fresh: float) -> bool:
    """Whether a space is fitted (anew) at this step.

    Args:
        step: Now.
        fitted_at: Step of the last fit; -1: none yet.
        refit_steps: As `mining.refit_steps`: past each multiple; None: when half of the rows are new.
        fresh: Share of the rows that were written after the last fit.
    """
    if fitted_at < 0:
        return True
    return fresh >= 0.5 if refit_steps is None else step // refit_steps > fitted_at // refit_steps


def project(rows: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """`unit((rows − mean) matrix)` in float32, on the device of the rows."""
    mapped = (rows.float() - mean) @ matrix
    return mapped / mapped.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _project_array(rows: NDArray, mean: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """In double precision: a row is then the same to the last bit whatever rows are mapped beside it."""
    mapped = (rows.astype(np.float64) - mean) @ matrix.astype(np.float64)
    return (mapped / np.maximum(np.linalg.norm(mapped, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def _canonical(
    kind: AskedSpace, views: tuple[str, ...], tables: list[NDArray], of: list[Moments], count: int, seed: int
) -> Space:
    if len(views) == 1:
        alone = f"one view, {views[0]}, shares nothing with another"
        return raw_space(f"auto: {alone}", count) if kind == "auto" else _white(views, of, count, alone)
    shared = shared_directions(tables[0], tables[1], (of[0], of[1]), seed)
    number, least = len(shared.correlations), AUTO_DIRECTIONS if kind == "auto" else LEAST_DIRECTIONS
    says = f"{number} shared directions above chance {shared.chance:.2f}, {count} rows of width {of[0].dim}"
    if number < least:
        return raw_space(_said(kind, f"{says}: fewer than {least} carry no space"), count)
    weights = shared.weights
    maps = shared.first * weights, shared.second * weights
    return _space("canonical", views, of, maps, weights, count, _said(kind, says))


def _white(views: tuple[str, ...], of: list[Moments], count: int, why: str) -> Space:
    return _space(
        "white", views, of, tuple(whitener(one, shrinkage(one.rows, one.dim)) for one in of), np.zeros(0), count, why
    )


def _space(
    kind: SpaceKind,
    views: tuple[str, ...],
    of: list[Moments],
    maps: tuple[Matrix, ...],
    weights: Matrix,
    count: int,
    why: str,
) -> Space:
    means = {view: one.mean.astype(np.float32) for view, one in zip(views, of, strict=True)}
    matrices = {view: np.ascontiguousarray(one, np.float32) for view, one in zip(views, maps, strict=True)}
    return Space(kind, views, means, matrices, weights.astype(np.float32), count, why)


def _said(kind: AskedSpace, why: str) -> str:
    return f"auto: {why}" if kind == "auto" else why


def _checked(rows: Mapping[str, NDArray]) -> tuple[tuple[str, ...], list[NDArray]]:
    views, tables = tuple(rows), list(rows.values())
    alike = len({table.shape for table in tables}) == 1
    if not 1 <= len(tables) <= 2 or not alike or tables[0].ndim != 2:
        raise BankError(
            f"a mining space is fitted on one view or two, [n, D] each; given {[(v, t.shape) for v, t in rows.items()]}"
        )
    return views, tables


def _float(rows: Rows) -> Rows:
    return rows.float() if isinstance(rows, Tensor) else rows.astype(np.float32, copy=False)
