"""What do the numbers look like? Curves, funnel, map and film strips as text that goes straight into a page.

Charts are inline SVG drawn with the page's own colours (`currentColor` and CSS variables `--c0 … --c9`, `--line`, `--card`),
so they follow light and dark, print sharply and load nothing. A chart is 340 units wide: one column on a phone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "Stage", "class_colour", "class_map", "film_strip", "funnel", "line_chart", "pca_2d"]

_W: Final = 340
_LEFT: Final = 46  # left and top edge and height of a chart's plane
_TOP: Final = 10
_HEIGHT: Final = 128
_POINTS: Final = 240  # points drawn of one curve; longer logs are averaged in bins
_NAMED: Final = 30  # classes that get a legend under the map


@dataclass(frozen=True)
class Curve:
    """One line of a chart: values over steps, NaN where nothing was logged."""

    name: str
    step: Sequence[float]
    value: Sequence[float]


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade: who ranked, how many were left on average, which share of them has the right class."""

    name: str
    left: float
    purity: float | None


def line_chart(curves: Sequence[Curve], *, floor: float | None = None, share: bool = False) -> str:
    """An SVG chart of one or more curves over steps.

    Args:
        curves: Lines; those without a finite value are left out.
        floor: Value the axis must reach down to (0 for rates and shares).
        share: Ticks as percentages.

    Returns:
        SVG text; a sentence in its place when there is nothing to draw.
    """
    drawn = [(i, curve.name, *_binned(curve)) for i, curve in enumerate(curves)]
    drawn = [item for item in drawn if len(item[2])]
    if not drawn:
        return '<p class="missing">Nothing was logged.</p>'
    x, y = np.concatenate([d[2] for d in drawn]), np.concatenate([d[3] for d in drawn])
    low = float(y.min()) if floor is None else min(float(y.min()), floor)
    ticks_y = _ticks(low, float(y.max()), 4)
    first, last = float(x.min()), float(x.max())
    to_x = _scale(first, last, _LEFT, _W - 12)
    to_y = _scale(ticks_y[0], ticks_y[-1], _TOP + _HEIGHT, _TOP)
    parts = [_svg_open(_TOP + _HEIGHT + 26)]
    for tick in ticks_y:
        at = to_y(tick)
        parts.append(f'<line class="gridline" x1="{_LEFT}" x2="{_W - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_number(tick, share)}</text>')
    for tick in _ticks(first, last, 4):
        if first <= tick <= last:
            text = f'<text x="{to_x(tick):.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{_number(tick)}</text>'
            parts.append(text)
    for i, name, xs, ys in drawn:
        points = [(to_x(a), to_y(b)) for a, b in zip(xs, ys, strict=True)]
        parts.append(_line(points, name, f"var(--c{i % 10})"))
    return "".join(parts) + "</svg>" + _legend([(f"var(--c{i % 10})", name) for i, name, _, _ in drawn])


def funnel(stages: Sequence[Stage]) -> str:
    """The cascade as an SVG funnel: bar width is how many are left (logarithmic), the number right is their purity."""
    if not stages:
        return '<p class="missing">No cascade was measured.</p>'
    row, middle, widest = 44, 128, 236
    most = max(math.log(1 + stage.left) for stage in stages)
    purest = max((stage.purity or 0.0 for stage in stages), default=0.0)
    narrow = 112  # the name of a stage has to fit
    widths = [narrow + (widest - narrow) * math.log(1 + stage.left) / max(most, 1e-9) for stage in stages]
    parts = [_svg_open(row * len(stages) + 22), f'<text x="{middle}" y="11" text-anchor="middle">videos left</text>']
    parts.append(f'<text x="{_W - 4}" y="11" text-anchor="end">right class</text>')
    for i, (stage, width) in enumerate(zip(stages, widths, strict=True)):
        top = 18 + i * row
        below = widths[i + 1] if i + 1 < len(widths) else width
        corners = [
            (middle - width / 2, top),
            (middle + width / 2, top),
            (middle + below / 2, top + row - 4),
            (middle - below / 2, top + row - 4),
        ]
        shape = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        share = (stage.purity or 0.0) / purest if purest > 0 else 0.0
        parts.append(f'<polygon points="{shape}" style="fill:var(--c2);fill-opacity:{0.12 + 0.5 * share:.2f}"/>')
        parts.append(
            f'<text class="strong" x="{middle}" y="{top + 17}" text-anchor="middle">{_count(stage.left)}</text>'
        )
        parts.append(f'<text class="on" x="{middle}" y="{top + 31}" text-anchor="middle">{escape(stage.name)}</text>')
        purity = "unknown" if stage.purity is None else f"{100 * stage.purity:.1f} %"
        parts.append(f'<text class="strong" x="{_W - 4}" y="{top + 24}" text-anchor="end">{purity}</text>')
    return "".join(parts) + "</svg>"


def class_map(
    xy: NDArray[np.floating], label: NDArray[np.integer], classes: Sequence[str], most: int = 2000, seed: int = 0
) -> str:
    """An SVG map of videos: one dot each, coloured by class, with a legend where the classes are few.

    Args:
        xy: [N, 2] positions.
        label: [N], -1 unknown (grey).
        classes: Names.
        most: Dots drawn; more videos are drawn at random from `seed`.
        seed: Of that draw.
    """
    width, height, edge = 680, 460, 26
    low, high = xy.min(0), xy.max(0)
    place = (xy - low) / np.where(high > low, high - low, 1.0) * [width - 2 * edge, height - 2 * edge] + edge
    shown = (
        np.arange(len(xy))
        if len(xy) <= most
        else np.sort(np.random.default_rng(seed).choice(len(xy), most, replace=False))
    )
    parts = [f'<svg class="map" viewBox="0 0 {width} {height}" role="img">']
    for i in shown:
        name = str(classes[int(label[i])]) if label[i] >= 0 else "unknown"
        colour = class_colour(int(label[i]), len(classes))
        parts.append(
            f'<circle r="4.5" cx="{place[i, 0]:.0f}" cy="{place[i, 1]:.0f}" style="fill:{colour}"><title>{escape(name)}</title></circle>'
        )
    present = [c for c in range(len(classes)) if (label == c).any()] if len(classes) <= _NAMED else []
    return "".join(parts) + "</svg>" + _legend([(class_colour(c, len(classes)), str(classes[c])) for c in present])


def class_colour(label: int, classes: int) -> str:
    """CSS colour of a class: the page's palette for up to ten, then evenly spread hues; grey when unknown."""
    if label < 0:
        return "hsl(0 0% 55%)"
    if classes <= 10:
        return f"var(--c{label})"
    return f"hsl({360 * label / max(classes, 1):.0f} 62% {(46, 58, 52)[label % 3]}%)"


def pca_2d(rows: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """The two directions in which [N, F] rows differ most: positions [N, 2] and the share of the variance they show.

    Signs are fixed (the largest weight of each direction is positive), so that the picture is the same each time.
    """
    centred = np.asarray(rows, np.float64) - np.asarray(rows, np.float64).mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    axes = axes * np.where(axes[np.abs(axes).argmax(0), range(2)] < 0, -1.0, 1.0)
    total = float(values.clip(0).sum())
    return centred @ axes, float(values[-2:].clip(0).sum()) / total if total > 0 else 0.0


def film_strip(frames_NHWC: NDArray[np.uint8], height: int = 84, quality: int = 82) -> str:
    """Frames side by side, oldest left, as a JPEG data URI.

    Args:
        frames_NHWC: [n, H, W, 3] RGB frames.
        height: Pixels of the strip.
        quality: JPEG quality.
    """
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames_NHWC]
    width = max(1, round(images[0].width * height / images[0].height))
    strip = Image.new("RGB", (len(images) * width + 2 * (len(images) - 1), height), (128, 128, 128))
    for i, image in enumerate(images):
        strip.paste(image.resize((width, height), Image.Resampling.LANCZOS), (i * (width + 2), 0))
    out = io.BytesIO()
    strip.save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _binned(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(curve.step, np.float64), np.asarray(curve.value, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= _POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose [low, high]."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if high else (0.0, 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """The straight map of [low, high] to [start, stop]."""
    slope = (stop - start) / (high - low if high > low else 1.0)
    return lambda value: start + (value - low) * slope


def _number(value: float, share: bool = False) -> str:
    if share:
        return f"{100 * value:.3g} %"
    if value and abs(value) < 1e-2:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _line(points: Sequence[tuple[float, float]], name: str, colour: str) -> str:
    if len(points) == 1:
        x, y = points[0]
        return f'<circle r="3" cx="{x:.1f}" cy="{y:.1f}" style="fill:{colour}"><title>{escape(name)}</title></circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="curve" style="stroke:{colour}" points="{path}"><title>{escape(name)}</title></polyline>'


def _svg_open(height: int) -> str:
    return f'<svg viewBox="0 0 {_W} {height}" role="img">'


def _legend(items: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours (CSS); nothing where there is nothing to tell apart."""
    if len(items) < 2:
        return ""
    keys = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for colour, name in items)
    return f'<p class="legend">{keys}</p>'
