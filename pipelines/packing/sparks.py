"""Which still videos are copies? What little moves in them, where and when; and what stands still, to lay them over one another.

Where nearly nothing moves (a fixed camera, a bird far away) the lowest frequencies of `pipelines.packing.prints` hold noise and the
picture that every cut of the recording shares. So of such a video eight times a second the few places that differ most from the
picture that stands still are kept: *sparks*. Two videos are the same where sparks are in the same places at the same times, after
the one is cropped as the other is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["HERTZ", "LATER", "OVERLAP", "SIDE", "Sparks", "StillLooks", "read_sparks", "same_sparks", "sparks_of"]

Array = NDArray[np.float32]

HERTZ = 8
SIDE = 64
"""Rows and columns of the grey levels in which sparks are looked for."""
_KEPT = 24
"""Sparks of a sample."""
_LOOK = 32
"""Rows and columns of the picture that stands still."""
_FAINT, _SIGMAS = 2.0, 3.0
"""Sparks stand out by more grey levels than that, and by more than so many deviations of the noise."""
_DARK = 1.0
"""Samples whose sparks are weaker together say nothing."""
LATER = 2.5
"""Seconds by which a copy may begin sooner or later."""
OVERLAP = 0.6
"""Share of the longer video that the other one must cover."""
_FEWEST, _STRONG = 8, 20
"""Samples with sparks from which they say something; grey levels of a spark that is more than noise."""

# Fitted on 505 real clips and 1,500 copies of them, as those of `pipelines.packing.copies`.
_LAID = 0.9
"""Correlation of what stands still, from which on two videos may be the same."""
_PLACES = 0.4
"""Cosine of where their sparks were, from which on it is looked when."""
_CERTAIN, _LIKELY, _PEAK = 0.6, 0.35, 0.2
"""Copies: agreement at the best shift; or less of it, where it is by so much more than at other shifts."""


@dataclass(frozen=True)
class Sparks:
    """Of one video.

    Attributes:
        look: uint8 [32, 32], the picture that stands still.
        cell: uint16 [T, K], row · 64 + column of the places that differ most from it.
        size: int8 [T, K], by how many grey levels beyond the noise; 0: nothing.
    """

    look: NDArray[np.uint8]
    cell: NDArray[np.uint16]
    size: NDArray[np.int8]

    @property
    def tell(self) -> bool:
        """Whether something moves here by which the video is known, in many samples."""
        return int((np.abs(self.size.astype(int)).max(axis=1) >= _STRONG).sum()) >= _FEWEST

    def to_bytes(self) -> bytes:
        """For `read_sparks`."""
        return self.look.tobytes() + self.cell.astype("<u2").tobytes() + self.size.tobytes()


def sparks_of(samples: NDArray[np.uint8]) -> Sparks:
    """Sparks of uint8 [T, 64, 64], eight samples a second."""
    still = np.median(samples, axis=0).astype(np.float32)
    rest = samples.astype(np.float32) - still
    rest -= np.median(rest, axis=(1, 2), keepdims=True)  # a camera that changes its exposure
    noise = max(_FAINT, _SIGMAS * 1.4826 * float(np.median(np.abs(rest))))
    flat = rest.reshape(len(rest), -1)
    cell = np.argpartition(-np.abs(flat), _KEPT, axis=1)[:, :_KEPT]
    value = np.take_along_axis(flat, cell, axis=1)
    size = np.sign(value) * np.maximum(np.abs(value) - noise, 0)
    look = still.reshape(_LOOK, 2, _LOOK, 2).mean(axis=(1, 3))
    return Sparks(
        np.rint(look).astype(np.uint8), cell.astype(np.uint16), np.clip(np.rint(size), -127, 127).astype(np.int8)
    )


def read_sparks(data: bytes) -> Sparks:
    """What `Sparks.to_bytes` made."""
    look, rest = np.frombuffer(data, np.uint8, _LOOK**2), data[_LOOK**2 :]
    count = len(rest) // (3 * _KEPT)
    cell = np.frombuffer(rest, "<u2", count * _KEPT).reshape(count, _KEPT)
    size = np.frombuffer(rest, np.int8, offset=2 * count * _KEPT).reshape(count, _KEPT)
    return Sparks(look.reshape(_LOOK, _LOOK), cell.astype(np.uint16), size)


class StillLooks:
    """How one still picture lies in another: which crop of the one is the other.

    Args:
        looks: Number of a video → uint8 [32, 32].
    """

    def __init__(self, looks: Mapping[int, NDArray[np.uint8]]) -> None:
        self._looks = looks
        self._cropped = lru_cache(maxsize=512)(self._crops_of)

    def laid(self, video: int, other: int, mirrored: bool) -> tuple[float, int]:
        """(correlation at best, crop): 0: none, c: number c of the crops of `video`, -c: of `other`."""
        mine, theirs = self._cropped(video), self._cropped(other)
        if mirrored:
            mine = mine.reshape(-1, _LOOK, _LOOK)[:, :, ::-1].reshape(len(mine), -1)
        one, two = mine @ theirs[0], theirs @ mine[0]
        first, second = int(one.argmax()), int(two.argmax())
        return (float(one[first]), first) if one[first] >= two[second] else (float(two[second]), -second)

    def _crops_of(self, video: int) -> Array:
        """[crops, 1024], each less its mean and of unit length."""
        look = self._looks[video].astype(np.float32)
        made = np.stack([rows @ look @ columns.T for rows, columns in _windows()]).reshape(len(_windows()), -1)
        made -= made.mean(axis=1, keepdims=True)
        return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-3)


def same_sparks(one: Sparks, other: Sparks, laid: tuple[float, int], mirrored: bool) -> bool:
    """Whether the same moves at the same time in two still videos.

    Args:
        one: Of the one video.
        other: Of the other.
        laid: What `StillLooks.laid` gave.
        mirrored: Whether the one is to be mirrored.
    """
    alike, crop = laid
    if alike < _LAID:
        return False
    for at in (0, crop) if crop else (0,):  # a copy that is not cropped may look as if it were
        mine, theirs = (one, max(at, 0), mirrored), (other, max(-at, 0), False)
        if float(_places(*mine) @ _places(*theirs)) >= _PLACES and _agree(_drawn(*mine), _drawn(*theirs)):
            return True
    return False


def _agree(one: tuple[Array, NDArray[np.bool_]], other: tuple[Array, NDArray[np.bool_]]) -> bool:
    """Whether the share of lit samples that agree is large at one shift, and small at the others."""
    (a, lit), (b, lit_) = one, other
    product = a @ b.T
    found: dict[int, float] = {}
    most = int(LATER * HERTZ)
    for shift in range(-most, most + 1):
        begin, begun = max(shift, 0), max(-shift, 0)
        common = min(len(a) - begin, len(b) - begun)
        if common < max(1.0, OVERLAP * max(len(a), len(b))):
            continue
        either = int((lit[begin : begin + common] | lit_[begun : begun + common]).sum())
        if either >= _FEWEST:
            found[shift] = float(np.trace(product[begin : begin + common, begun : begun + common])) / either
    best = max(found, key=lambda shift: found[shift], default=0)
    elsewhere = [value for shift, value in found.items() if abs(shift - best) > HERTZ // 2]
    share = found.get(best, 0.0)
    return share >= _CERTAIN or (share >= _LIKELY and bool(elsewhere) and share - float(np.mean(elsewhere)) >= _PEAK)


def _places(sparks: Sparks, crop: int, mirrored: bool) -> Array:
    """Where sparks were at any time, a unit row [1024]: looked at first, for it takes a twentieth of the time."""
    place, weight, _ = _splat(sparks, crop, mirrored, _LOOK)
    drawn = np.bincount(place, np.abs(weight), _LOOK**2).astype(np.float32)
    return drawn / max(float(np.linalg.norm(drawn)), _DARK)


def _drawn(sparks: Sparks, crop: int, mirrored: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Sparks on a grid, unit rows [T, 4096], and which samples have any."""
    place, weight, sample = _splat(sparks, crop, mirrored, SIDE)
    shape = len(sparks.size), SIDE**2
    drawn = np.bincount(sample * shape[1] + place, weight, shape[0] * shape[1]).reshape(shape).astype(np.float32)
    strength = np.linalg.norm(drawn, axis=1)
    lit = strength > _DARK
    return drawn / np.maximum(strength, _DARK)[:, None] * lit[:, None], lit


def _splat(
    sparks: Sparks, crop: int, mirrored: bool, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Sparks as weights on the four nearest places of a grid of so many rows: place, weight and sample of each."""
    sample, spark = np.nonzero(sparks.size)
    cell, size = sparks.cell[sample, spark].astype(np.int64), sparks.size[sample, spark].astype(np.float32)
    top, left, kept = _crops()[crop]
    y, x = (
        ((cell // SIDE + 0.5) / SIDE - top) / kept * side - 0.5,
        ((cell % SIDE + 0.5) / SIDE - left) / kept * side - 0.5,
    )
    if mirrored:  # last, as `laid` mirrors what it has cropped
        x = side - 1 - x
    low_y, low_x = np.floor(y), np.floor(x)
    at_y, at_x = np.stack([low_y, low_y, low_y + 1, low_y + 1]), np.stack([low_x, low_x + 1, low_x, low_x + 1])
    weight = size * (1 - np.abs(y - at_y)) * (1 - np.abs(x - at_x))
    inside = (at_y >= 0) & (at_y < side) & (at_x >= 0) & (at_x < side)
    place = (at_y * side + at_x).astype(np.int64)
    return place[inside], weight[inside].astype(np.float32), np.broadcast_to(sample, place.shape)[inside]


@lru_cache(maxsize=1)
def _crops() -> tuple[tuple[float, float, float], ...]:
    """(top, left, kept) of small crops in shares of the frame; the first is none."""
    small = [
        (y * (1 - kept), x * (1 - kept), kept)
        for kept in (0.975, 0.95)
        for y in (0.0, 0.25, 0.5, 0.75, 1.0)
        for x in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return ((0.0, 0.0, 1.0), *small)


@lru_cache(maxsize=1)
def _windows() -> list[tuple[Array, Array]]:
    """Matrices [32, 32] that take each crop out of a picture and scale it up again: of its rows, of its columns."""

    def window(place: float, kept: float) -> Array:
        at = np.clip((place + kept * (np.arange(_LOOK) + 0.5) / _LOOK) * _LOOK - 0.5, 0, _LOOK - 1)
        below = np.minimum(at.astype(int), _LOOK - 2)
        made = np.zeros((_LOOK, _LOOK), np.float32)
        made[np.arange(_LOOK), below] = 1 - (at - below)
        made[np.arange(_LOOK), below + 1] += at - below
        return made

    return [(window(top, kept), window(left, kept)) for top, left, kept in _crops()]
