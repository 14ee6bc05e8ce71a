"""How are numbers spread? Bars of how many fall where, as text that goes straight into a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["counts", "histogram"]

_W, _TOP, _HEIGHT, _LEFT = 340, 16, 122, 8
_BARS = 24


def histogram(values: NDArray[np.floating], unit: str, bars: int = _BARS) -> str:
    """An SVG histogram.

    Args:
        values: [N], finite; the axis ends at their 99th percentile, and the last bar holds what lies beyond.
        unit: Of the values, behind the numbers of the axis.
        bars: How many.
    """
    if not len(values):
        return '<p class="missing">Nothing to count.</p>'
    low, most = float(values.min()), float(values.max())
    high = float(np.percentile(values, 99))
    beyond = most > high + (high - low) / bars
    high = high if beyond else most
    high = high if high > low else low + max(abs(low), 1.0) * 0.1
    count, edges = np.histogram(np.clip(values, low, high), bars, (low, high))
    width, tallest = (_W - 2 * _LEFT) / bars, int(count.max())
    parts = [f'<svg viewBox="0 0 {_W} {_TOP + _HEIGHT + 22}" role="img">']
    for at, number in enumerate(count.tolist()):
        tall = _HEIGHT * number / tallest
        told = f"{number}: {edges[at]:.4g} to {edges[at + 1]:.4g} {unit}"
        parts.append(
            f'<rect x="{_LEFT + at * width + 0.5:.1f}" y="{_TOP + _HEIGHT - tall:.1f}" width="{width - 1:.1f}" '
            f'height="{tall:.1f}" style="fill:var(--c0)"><title>{escape(told)}</title></rect>'
        )
    parts.append(f'<text x="{_LEFT}" y="11">{tallest} in the tallest bar</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value, sign = low + share * (high - low), "≥ " if beyond and share == 1 else ""
        parts.append(
            f'<text x="{_LEFT + share * (_W - 2 * _LEFT):.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="{anchor}">'
            f"{sign}{value:.3g} {escape(unit)}</text>"
        )
    return "".join(parts) + "</svg>"


def counts(items: Sequence[tuple[str, int]], most: int = 8) -> str:
    """Names and how many of each, as bars against the largest; of many the first, and a word on the rest."""
    largest, total = max((number for _, number in items), default=1), sum(number for _, number in items)
    cells = [
        f'<div class="bar"><span title="{escape(name)}">{escape(name)}</span>'
        f'<i><em style="width:{100 * number / max(largest, 1):.1f}%"></em></i><b>{number}</b></div>'
        for name, number in items[:most]
    ]
    rest = items[most:]
    left = sum(number for _, number in rest)
    note = f'<p class="note">and {len(rest)} more, {left} of {total}</p>' if rest else ""
    return f'<div class="bars one">{"".join(cells)}</div>{note}'
