"""One look at a sweep of trainings: every arm with its seeds and interval, how it got there, and quality against the last pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.sweep.outcome import Arm, Outcome
from cluster.sweep.trained import TrainedRow
from vidssl.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_arms"]

_BEST, _ALIKE, _APART, _STOPPED = "#3b6fb6", "#2a8c8c", "#c4572b", "#9a9a9a"
_INK, _FAINT, _GRID = "#333333", "#9a9a9a", "#ececec"
_SAID = {
    _BEST: "the best",
    _ALIKE: "cannot be told apart from it",
    _APART: "behind it",
    _STOPPED: "not finished",
}


def draw_arms(found: Outcome, rows: Sequence[TrainedRow], path: Path) -> None:
    """Write the picture to `path` (PNG).

    Args:
        found: Arms, best first.
        rows: Of all rungs.
        path: File to make or replace.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    pools, rungs = {arm.pool for arm in found.arms if arm.finished} - {None}, {row.percent for row in rows}
    panels = 1 + (len(pools) > 1) + (len(rungs) > 1)
    height = 1.7 + 0.34 * max(len(found.arms), 6)
    figure = Figure(figsize=(4.6 + 3.6 * (panels - 1) + 1.6, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, width_ratios=[1.5, *([1.0] * (panels - 1))])[0]
    _forest(axes[0], found)
    left = list(axes[1:])
    if len(pools) > 1:
        _against_pool(left.pop(0), found)
    if len(rungs) > 1:
        _along(left.pop(0), found, rows)
    used = dict.fromkeys(_colour(arm, found) for arm in found.arms)
    marks = [axes[0].plot([], [], "o", color=colour, label=_SAID[colour])[0] for colour in _SAID if colour in used]
    figure.legend(handles=marks, loc="outside lower left", ncols=4, frameon=False, fontsize=8, labelcolor=_INK)
    with written_aside(path) as stream:
        figure.savefig(stream, format="png")


def _forest(axis: Axes, found: Outcome) -> None:
    """A line per arm: its seeds, its mean, its interval."""
    for at, arm in enumerate(found.arms):
        colour, (low, high) = _colour(arm, found), arm.interval95
        shown = arm.finished or arm.rows
        axis.plot([100 * low, 100 * high], [at, at], color=colour, lw=2, alpha=0.5, solid_capstyle="butt", zorder=2)
        axis.plot([100 * row.r1 for row in shown], [at] * len(shown), "|", color=colour, ms=9, mew=1.2, zorder=3)
        axis.plot([100 * arm.r1], [at], "o", color=colour, ms=6, zorder=4)
    chance = 100 * found.arms[0].rows[0].chance
    axis.axvline(chance, color=_FAINT, lw=1, ls=(0, (3, 3)), zorder=1)
    axis.annotate(
        "chance",
        (chance, 0),
        xycoords=("data", "axes fraction"),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=7,
        color=_FAINT,
    )
    axis.set_yticks(range(len(found.arms)), [arm.label for arm in found.arms])
    axis.set_ylim(len(found.arms) - 0.5, -0.5)
    seeds, queries = max(len(arm.rows) for arm in found.arms), found.arms[0].rows[0].queries
    _frame(
        axis, "R@1 of held-out training groups, percent", f"{seeds} seed(s), {queries} videos asked; bars: 95 %", "x"
    )


def _against_pool(axis: Axes, found: Outcome) -> None:
    for arm in found.arms:
        if arm.finished and arm.pool is not None:
            colour, half = _colour(arm, found), np.array(arm.interval95) * 100
            axis.plot([arm.pool, arm.pool], half, color=colour, lw=1.6, alpha=0.5, zorder=2)
            axis.plot([arm.pool], [100 * arm.r1], "o", color=colour, ms=5, zorder=3)
    axis.set_xscale("log")
    pools = sorted({arm.pool for arm in found.arms if arm.finished and arm.pool is not None})
    axis.set_xticks(pools, [str(pool) for pool in pools])
    axis.set_xticks([], minor=True)
    _frame(axis, "last pool p", "R@1 against p", "y")


def _along(axis: Axes, found: Outcome, rows: Sequence[TrainedRow]) -> None:
    """R@1 of each training at its rungs."""
    colours = {arm.label: _colour(arm, found) for arm in found.arms}
    for key in dict.fromkeys(row.key for row in rows):
        line = sorted((row for row in rows if row.key == key), key=lambda row: row.percent)
        colour = colours[line[0].arm]
        axis.plot([row.percent for row in line], [100 * row.r1 for row in line], color=colour, lw=1.1, alpha=0.8)
        end = line[-1]
        axis.plot([end.percent], [100 * end.r1], "x" if end.state == "stopped" else "o", color=colour, ms=4.5)
    axis.set_xlim(0, 104)
    _frame(axis, "percent of a training", "R@1 at the rungs; ×: stopped", "y")


def _colour(arm: Arm, found: Outcome) -> str:
    if not arm.finished:
        return _STOPPED
    if arm is found.best:
        return _BEST
    return _APART if arm.apart else _ALIKE


def _frame(axis: Axes, below: str, title: str, grid: str) -> None:
    axis.set_xlabel(below, fontsize=8.5)
    axis.set_title(title, loc="left", fontsize=9, color=_INK)
    axis.grid(axis=grid, color=_GRID, lw=0.8, zorder=0)  # pyright: ignore[reportArgumentType]
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_FAINT)
    axis.tick_params(which="both", colors=_INK, labelsize=8, length=3)
