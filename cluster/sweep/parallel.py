"""Which values do the good points share? Parallel coordinates: a line per arm through its value on every axis to its R@1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cluster.sweep.outcome import Arm, Outcome
from cluster.sweep.space import axes_of
from vidssl.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AXES_PICTURE", "draw_axes"]

AXES_PICTURE: Final = "axes.png"
_INK, _FAINT, _STOPPED = "#333333", "#b8b8b8", "#c9c9c9"
_NONE: Final = "–"
_ROOM: Final = 0.18  # share of the room between two values over which lines that share one are spread


def draw_axes(found: Outcome, path: Path) -> bool:
    """Write the picture to `path` (PNG), where at least two axes have more than one value; returns whether it was.

    A picture of before that would say something else is removed.

    Args:
        found: Arms with their value on every axis; a rival has none on the axes of the cascade, and goes through "–" there.
        path: File to make or replace.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    points = list(found.arms)
    axes = {axis: values for axis, values in _axes(points).items() if len(values) > 1}
    if len(axes) < 2:
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(2.6 + 1.7 * len(axes), 4.4), dpi=150, layout="constrained")
    plane = figure.subplots()
    low, high = _range(found)
    for at, (axis, values) in enumerate(axes.items()):
        _rule(plane, at, axis, [(_height(number, len(values)), _text(value)) for number, value in enumerate(values)])
    ticks = np.linspace(low, high, 5)
    _rule(plane, len(axes), "R@1, percent", [((tick - low) / (high - low), f"{100 * tick:.1f}") for tick in ticks])
    for rank, arm in reversed(list(enumerate(points))):
        _line(plane, arm, rank, len(points), axes, (low, high), found.best)
    plane.set_xlim(-0.25, len(axes) + 0.35)
    plane.set_ylim(-0.06, 1.06)
    plane.axis("off")
    said = "the darker, the better; the widest line is the best point; dashed: stopped early"
    plane.set_title(f"every point through its values to its R@1\n{said}", loc="left", fontsize=8.5, color=_INK, pad=26)
    with written_aside(path) as stream:
        figure.savefig(stream, format="png")
    return True


def _line(
    plane: Axes,
    arm: Arm,
    rank: int,
    of: int,
    axes: Mapping[str, Sequence[Any]],
    scale: tuple[float, float],
    best: Arm | None,
) -> None:
    """One arm; lines of the same value are set apart a little, by their rank."""
    low, high = scale
    heights = []
    for axis, values in axes.items():
        step = 1 / max(len(values) - 1, 1)
        aside = (0.5 - (rank + 0.5) / of) * _ROOM * step
        heights.append(_height(values.index(arm.at.get(axis, _NONE)), len(values)) + aside)
    heights.append((arm.r1 - low) / (high - low))
    good = heights[-1]
    ended = bool(arm.finished)
    plane.plot(
        range(len(heights)),
        heights,
        color=_colour(good) if ended else _STOPPED,
        lw=2.8 if arm is best else 1.4,
        ls="-" if ended else (0, (4, 3)),
        alpha=1.0 if arm is best else 0.85,
        zorder=4 if arm is best else 2 + good,
    )


def _rule(plane: Axes, at: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
    """One axis with its values."""
    plane.plot([at, at], [-0.03, 1.03], color=_FAINT, lw=1, zorder=1)
    plane.annotate(name, (at, 1.06), ha="center", va="bottom", fontsize=8.5, color=_INK, annotation_clip=False)
    for height, text in ticks:
        plane.annotate(
            text,
            (at, height),
            xytext=(5, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=7.5,
            color=_INK,
            zorder=7,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
        )


def _axes(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Axis → values, with one for the arms that have none there."""
    return {
        axis: [_NONE] * any(axis not in arm.at for arm in arms) + values
        for axis, values in axes_of(arm.at for arm in arms).items()
    }


def _range(found: Outcome) -> tuple[float, float]:
    scores = [arm.r1 for arm in found.arms]
    low, high = min(scores), max(scores)
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def _height(number: int, of: int) -> float:
    return number / max(of - 1, 1)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 18 else f"{text[:17]}…"


def _colour(good: float) -> tuple[float, float, float]:
    """Light to dark blue."""
    light, dark = np.array([0.72, 0.81, 0.92]), np.array([0.06, 0.20, 0.45])
    red, green, blue = light + (dark - light) * min(max(good, 0.0), 1.0)
    return float(red), float(green), float(blue)
