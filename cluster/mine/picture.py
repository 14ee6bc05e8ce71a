"""One look at a table: the measure against the last pool, a line per S, a panel per k and space, rivals as level lines.

And one at the classes: the class mining recall of each, of the best point and of what it stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.mine.measure import Row
from cluster.mine.study import Study
from cluster.mine.table import value_of
from vidssl.files import written_aside
from vidssl.tables.strategies import RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_classes", "draw_points"]

_STAGE_COLOURS = ("#3b6fb6", "#c4572b", "#4c8c4a", "#7d5aa6", "#8a6d3b", "#2a8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ((1.5, 1.5), (6, 2), (6, 2, 1.5, 2), (10, 2), (10, 2, 1.5, 2))
_INK, _FAINT, _LEVEL = "#333333", "#9a9a9a", "#1f1f1f"
_COLUMNS = 3
_NAMED_CLASSES = 120
"""Classes whose names can still be read."""
_NAMES = {
    "precision_at_k": "precision@k of the mined positives",
    "hit_at_k": "queries with a right positive",
    "class_mining_recall_median": "median class mining recall",
    "agreement": "agreement of the views (misleads: no quality)",
}


def draw_points(rows: Sequence[Row], metric: str, study: Study, path: Path) -> None:
    """Write the picture of all rows to `path` (PNG).

    Args:
        rows: Finished points of any k.
        metric: Measure on the y axis; without labels agreement, and nothing is marked as best.
        study: Gives the class size, the size of the bank and chance.
        path: File to make or replace.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    shown = metric if study.labelled else "agreement"
    rows = [row for row in rows if getattr(row, shown) is not None]
    spaces = list(dict.fromkeys(row.space for row in rows))
    panels = [(k, space) for k in sorted({row.topk for row in rows}) for space in spaces]
    columns = len(spaces) if len(spaces) > 1 else 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    lines = -(-len(panels) // max(columns, 1))
    figure = Figure(figsize=(1.6 + 4.3 * columns, 0.9 + 3.5 * lines), dpi=150, layout="constrained")
    axes = figure.subplots(max(lines, 1), max(columns, 1), squeeze=False, sharex=True, sharey=True)
    for axis, (k, space) in zip(axes.flat, panels, strict=False):
        _panel(axis, [row for row in rows if (row.topk, row.space) == (k, space)], shown, study)
        axis.set_title(f"k = {k}" + (f", {space}" if len(spaces) > 1 else ""), loc="left", fontsize=10, color=_INK)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(_NAMES[shown], fontsize=9)
    about = f"{study.n_filled} videos in the bank, {len(study.queries)} queries"
    figure.suptitle(about, fontsize=10, color=_FAINT, x=0.01, ha="left")
    handles = _legend(list(axes.flat)[: len(panels)])
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5, labelcolor=_INK
    )
    with written_aside(path) as stream:
        figure.savefig(stream, format="png")


def draw_classes(
    best: str, per_class: Mapping[str, float], beside: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Write the class mining recall of each class to `path` (PNG), the worst class at the bottom.

    Args:
        best: The point in a few words.
        per_class: Class → recall of that point.
        beside: The same of others, by name.
        path: File to make or replace.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    names = sorted(per_class, key=lambda name: (per_class[name], name))
    named = len(names) <= _NAMED_CLASSES
    figure = Figure(figsize=(7.2, 1.7 + (0.23 if named else 0.05) * len(names)), dpi=150, layout="constrained")
    axis, height = figure.subplots(), np.arange(len(names))
    for slot, (name, recall) in enumerate(beside.items()):
        at = [recall.get(one, np.nan) for one in names]
        axis.plot(
            at, height, _MARKERS[slot + 1], color=_STAGE_COLOURS[slot + 1], ms=4.5, mfc="none", label=name, zorder=3
        )
    axis.barh(height, [per_class[name] for name in names], color=_STAGE_COLOURS[0], alpha=0.8, label=best, zorder=2)
    middle = float(np.median(list(per_class.values())))
    axis.axvline(middle, color=_LEVEL, lw=1.1, ls=(0, _DASHES[0]), label=f"median {middle:.3f}", zorder=4)
    axis.set_yticks(height if named else [], names if named else [])
    axis.set_xlim(0, 1.015)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.set_xlabel("share of the class's videos that another video of the class mined", fontsize=9)
    axis.set_title(
        "Class mining recall" + ("" if named else f" of {len(names)} classes"), loc="left", fontsize=10, color=_INK
    )
    axis.grid(axis="x", color="#ececec", lw=0.8, zorder=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=8, length=0)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, labelcolor=_INK)
    with written_aside(path) as stream:
        figure.savefig(stream, format="png")


def _panel(axis: Axes, rows: Sequence[Row], metric: str, study: Study) -> None:
    _frame(axis, study)
    cascades = [row for row in rows if row.strategy == "cascade"]
    stages = sorted({row.stages for row in cascades})
    for depth in stages:
        line = sorted((row.pool, value_of(row, metric)) for row in cascades if row.stages == depth)
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
        if row.strategy in (*RIVALS, "aux"):
            dashes = 0, _DASHES[(*RIVALS, "aux").index(row.strategy) % len(_DASHES)]
            name = "single (S=1)" if row.strategy == "single" else row.strategy
            colour = _FAINT if row.strategy == "aux" else _LEVEL
            axis.axhline(value_of(row, metric), color=colour, ls=dashes, lw=1.2, label=name, zorder=2)
    if metric == "precision_at_k" and study.labelled:
        axis.axhline(study.chance(), color=_FAINT, lw=1, label="chance", zorder=1)
    if study.labelled:
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
    best = max(cascades, key=lambda row: value_of(row, metric))
    value = value_of(best, metric)
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
