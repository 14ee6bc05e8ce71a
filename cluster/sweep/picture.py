"""One look at a sweep: the measure against the last pool, a line per S, a panel per k, rivals and chance as level lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.sweep.measure import Row, Study
from vidssl.files import written_aside
from vidssl.tables.strategies import RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_sweep"]

_STAGE_COLOURS = ("#3b6fb6", "#c4572b", "#4c8c4a", "#7d5aa6", "#8a6d3b", "#2a8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ((1.5, 1.5), (6, 2), (6, 2, 1.5, 2), (10, 2), (10, 2, 1.5, 2))
_INK, _FAINT, _LEVEL = "#333333", "#9a9a9a", "#1f1f1f"
_COLUMNS = 3
_NAMES = {
    "precision_at_k": "precision@k of the mined positives",
    "hit_at_k": "queries with a right positive",
    "coverage_median": "median class coverage",
    "agreement": "agreement of the views",
}


def draw_sweep(rows: Sequence[Row], metric: str, study: Study, path: Path) -> None:
    """Write the picture of all rows to `path` (PNG).

    Args:
        rows: Finished points of any k.
        metric: Measure on the y axis.
        study: Gives the class size, the size of the bank and chance.
        path: File to make or replace.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    ks = sorted({row.topk for row in rows})
    columns = 2 if len(ks) == 4 else min(len(ks), _COLUMNS)
    lines = -(-len(ks) // columns)
    figure = Figure(figsize=(1.6 + 4.3 * columns, 0.9 + 3.5 * lines), dpi=150, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, k in zip(axes.flat, ks, strict=False):
        _panel(axis, [row for row in rows if row.topk == k], metric, study)
        axis.set_title(f"k = {k}", loc="left", fontsize=10, color=_INK)
    for axis in list(axes.flat)[len(ks) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(_NAMES[metric], fontsize=9)
    figure.suptitle(
        f"{study.n_filled} videos in the bank, {len(study.queries)} queries",
        fontsize=10,
        color=_FAINT,
        x=0.01,
        ha="left",
    )
    handles = _legend(list(axes.flat)[: len(ks)])
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5, labelcolor=_INK
    )
    with written_aside(path) as stream:
        figure.savefig(stream, format="png")


def _panel(axis: Axes, rows: Sequence[Row], metric: str, study: Study) -> None:
    _frame(axis, study)
    cascades = [row for row in rows if row.strategy == "cascade"]
    stages = sorted({row.stages for row in cascades})
    for depth in stages:
        line = sorted((row.pool, getattr(row, metric)) for row in cascades if row.stages == depth)
        slot = (depth - 2) // 2 % len(_STAGE_COLOURS)  # a colour belongs to an S, whatever else is drawn
        axis.plot(
            *zip(*line, strict=True),
            color=_STAGE_COLOURS[slot],
            marker=_MARKERS[slot],
            ms=4.5,
            lw=1.6,
            label=f"cascade S={depth}",
            zorder=3,
        )
    for row in rows:
        if row.strategy in RIVALS:
            dashes = 0, _DASHES[RIVALS.index(row.strategy) % len(_DASHES)]
            name = "single (S=1)" if row.strategy == "single" else row.strategy
            axis.axhline(getattr(row, metric), color=_LEVEL, ls=dashes, lw=1.2, label=name, zorder=2)
    if metric == "precision_at_k" and study.labelled:
        axis.axhline(study.chance(), color=_FAINT, lw=1, label="chance", zorder=1)
    _mark_best(axis, rows, metric)


def _frame(axis: Axes, study: Study) -> None:
    axis.set_xscale("log")
    axis.set_xlabel("last pool p (candidates of the last stage)", fontsize=9)
    axis.grid(axis="y", color="#ececec", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_FAINT)
    axis.tick_params(which="both", colors=_INK, labelsize=8, length=3, pad=3, labelbottom=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if round(value / 10 ** np.floor(np.log10(value))) in (2, 5) else ""
    )
    if study.labelled:
        sizes = study.class_sizes
        axis.axvspan(float(sizes.min()), float(sizes.max()), color="#f3ead2", zorder=0, lw=0)
        axis.axvline(float(np.median(sizes)), color="#c9a94f", lw=1.2, label="class size (median, range)", zorder=1)


def _mark_best(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    cascades = [row for row in rows if row.strategy == "cascade"]
    if not cascades:
        return
    best = max(cascades, key=lambda row: getattr(row, metric))
    value = getattr(best, metric)
    axis.plot([best.pool], [value], marker="o", ms=10, mfc="none", mec=_INK, mew=1.1, zorder=4)
    axis.annotate(
        f"{value:.2f}",
        (best.pool, value),
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=8,
        ha="center",
        color=_INK,
    )


def _legend(axes: Sequence[Axes]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = sorted(
        handles,
        key=lambda label: (not label.startswith("cascade"), label == "chance", label.startswith("class"), label),
    )
    return {label: handles[label] for label in order}
