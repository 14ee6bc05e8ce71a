"""How does an experiment look at one glance? One panel per measure, one line per arm, a dot for every seed, a bar for the mean."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

__all__ = ["draw", "draw_worlds", "panels"]

TITLES = {
    "a": "CPR: whose positives show the same class?",
    "b": "IIC with and without intra-negatives, equal number of negatives",
    "c": "ViCC: across streams against one stream continued",
    "d": "precision@5 of mined positives, N=600",
}
WORLDS = {
    "e-even": "even: both views about equally good",
    "e-poor": "poor: residual stream hardly trained",
    "e-small": "small: 24 videos of a class, 240 in all",
    "e-shared": "shared: both views follow the background",
    "e-cycles": "even, after two cycles",
    "e-more": "even: other strategies",
    "e-soft": "even: weights by agreement",
    "e-thermal": "365 thermal clips",
    "e-gestures": "140 gestures, one network by IIC before",
}
HIDDEN = {"b": r"loss$", "d": r"^(?!.* N=600 k=5$)"}
"""Panels that are not drawn: there is no room for all."""
DOT, MARKED, BAR = "#7d8fa3", "#c4501b", "#1b2733"
ACROSS = 2
CLAIMED = ("cascade", "repeat", "rgb, stage 2 cross", "stage 2 cross")
PAIRED, PAIRS = "differences in each seed", 6

Values = dict[str, list[float]]


def panels(entry: Mapping[str, Any]) -> dict[str, Values]:
    """Measure → arm → value of every seed, in the order of the run."""
    found: dict[str, Values] = {}
    for one in entry["seeds"].values():
        for column, value in one["values"].items():
            panel, arm = column.split(" | ")
            found.setdefault(panel, {}).setdefault(arm, []).append(value)
    return found


def draw(name: str, entry: Mapping[str, Any], folder: Path) -> Path:
    """Write `folder/science-NAME.svg`; the arms of the primary claim are coloured."""
    found, hidden = panels(entry), HIDDEN.get(name, "^$")
    tables = {panel: arms for panel, arms in found.items() if not re.search(hidden, panel)} or found
    if "summary" in entry and name != "d":
        pairs = [pair for pair in entry["summary"]["differences"].items() if not pair[0].startswith("condition")]
        tables[PAIRED] = {what: row["values"] for what, row in pairs[:PAIRS]}
    seeds = ", ".join(entry["seeds"])
    made_of = "simulated rows" if name == "d" else "generated videos"
    title = f"{TITLES[name]}\n{made_of}; dots: seeds {seeds}; bar: mean"
    if name == "d":
        return _page(name, tables, title, folder, across=3, marked=("sum, canonical", "cascade, raw"))
    return _page(name, tables, title, folder)


def draw_worlds(entries: Mapping[str, Mapping[str, Any]], folder: Path, name: str = "e") -> Path:
    """Write `folder/science-NAME.svg`: of each world, every arm's mean R@1 of both streams less the published cascade's."""
    tables: dict[str, Values] = {}
    for world, entry in entries.items():
        arms, seeds = panels(entry)["both streams: R@1"], len(entry["seeds"])
        rival = arms.pop("cascade, raw")
        tables[f"{WORLDS[world]}, {seeds} seed{'s' * (seeds > 1)}"] = {
            arm: [one - other for one, other in zip(values, rival, strict=True)]
            for arm, values in arms.items()
            if arm != "before"
        }
    title = "R@1 after a phase, mean of both streams, less the published cascade's\ndots: seeds; bar: mean"
    across = min(ACROSS, len(tables))
    return _page(name, tables, title, folder, across, marked=("single, canonical",), paired=True)


def _page(
    name: str,
    tables: Mapping[str, Values],
    title: str,
    folder: Path,
    across: int = ACROSS,
    marked: tuple[str, ...] = CLAIMED,
    paired: bool = False,
) -> Path:
    down = -(-len(tables) // across)
    most = max(len(arms) for arms in tables.values())
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": name})
    figure, axes = plt.subplots(
        down, across, figsize=(5.2 * across, down * (0.8 + 0.21 * most)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, (panel, arms) in zip(axes.flat, tables.items(), strict=False):
        _panel(axis, panel, arms, ("",) if panel == PAIRED else marked, paired or panel == PAIRED)
    figure.suptitle(title, fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"science-{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _panel(axis: Axes, panel: str, arms: Values, marked: tuple[str, ...], paired: bool) -> None:
    chance = arms.get("random")  # so far from the rest that the rest would become one point
    arms = {arm: values for arm, values in arms.items() if arm != "random"}
    for row, (arm, values) in enumerate(arms.items()):
        colour = MARKED if arm.startswith(marked) else DOT
        axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.65, markersize=5, markeredgewidth=0)
        middle = statistics.mean(values)
        axis.plot([middle, middle], [row - 0.32, row + 0.32], color=BAR, linewidth=2)
        axis.annotate(
            f"{middle:+.3f}" if paired else f"{middle:.3f}",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=BAR,
        )
    axis.set_yticks(range(len(arms)), list(arms))
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_title(f"{panel} (random {statistics.mean(chance):.3f})" if chance else panel, fontsize=9.5, loc="left")
    if paired:
        axis.axvline(0, color=BAR, linewidth=0.8)
    axis.grid(axis="x", color="#e3e7ea", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
