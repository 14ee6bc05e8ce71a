"""Which size does a packed video have, and how does a frame get there? Scale, turn, crop; all sizes even."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["Geometry", "arrange_planes", "plan_geometry"]

_SOUND_PIXEL = (Fraction(1, 4), Fraction(4))


@dataclass(frozen=True)
class Geometry:
    """The way from a decoded frame to a packed one.

    Attributes:
        scaled: (width, height) after scaling, before the turn.
        turns: Quarter turns counterclockwise.
        size: (width, height) of the packed video: the turned frame, cropped around its centre.
        notes: What a user should know of it, in words.
    """

    scaled: tuple[int, int]
    turns: int
    size: tuple[int, int]
    notes: tuple[str, ...]


def plan_geometry(
    width: int, height: int, *, pixel: Fraction | None, rotation: int, short_side: int, max_aspect: float
) -> Geometry:
    """The short side becomes `short_side`; the long side follows, at most `max_aspect` times as long (cropped).

    Args:
        width: Of the decoded frame, pixels.
        height: Of the decoded frame, pixels.
        pixel: Width : height of one pixel (sample aspect ratio); None or absurd: square.
        rotation: Degrees counterclockwise from the display matrix; taken to the nearest quarter turn.
        short_side: Even number of pixels.
        max_aspect: Longest side in units of the short one.
    """
    shape = Fraction(pixel) if pixel and _SOUND_PIXEL[0] <= pixel <= _SOUND_PIXEL[1] else Fraction(1)
    wide, high = width * shape, Fraction(height)
    scale = Fraction(short_side) / min(wide, high)
    scaled = _even(wide * scale), _even(high * scale)
    turns = round(rotation / 90) % 4
    shown = scaled if turns % 2 == 0 else scaled[::-1]
    longest = _even(Fraction(max_aspect) * short_side)
    size = min(shown[0], longest), min(shown[1], longest)
    notes = [f"turned by {turns * 90} degrees"] if turns else []
    if shape != 1:
        notes.append(f"pixels of {shape.numerator}:{shape.denominator} made square")
    if min(width, height) < short_side:
        notes.append(f"enlarged from {width}x{height}")
    if size != shown:
        notes.append(f"cropped to {max_aspect:g}:1 around the centre")
    return Geometry(scaled, turns, size, tuple(notes))


def arrange_planes(yuv: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Turn and crop a yuv420p frame without touching a sample.

    Args:
        yuv: uint8 [H·3/2, W] of the scaled frame: Y, then U, then V, as PyAV lays them out.
        geometry: From `plan_geometry`.

    Returns:
        uint8 [h·3/2, w] of the packed frame.
    """
    width, height = geometry.scaled
    flat, luma = yuv.reshape(-1), width * height
    planes = (
        flat[:luma].reshape(height, width),
        flat[luma : luma + luma // 4].reshape(height // 2, width // 2),
        flat[luma + luma // 4 :].reshape(height // 2, width // 2),
    )
    wide, high = geometry.size
    turned = [np.rot90(plane, geometry.turns) for plane in planes]
    cropped = [_centre(turned[0], wide, high), *(_centre(plane, wide // 2, high // 2) for plane in turned[1:])]
    return np.concatenate([plane.reshape(-1) for plane in cropped]).reshape(high * 3 // 2, wide)


def _even(length: Fraction) -> int:
    return max(2, 2 * round(length / 2))


def _centre(plane: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    top, left = (plane.shape[0] - height) // 2, (plane.shape[1] - width) // 2
    return plane[top : top + height, left : left + width]
