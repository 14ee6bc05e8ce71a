"""What does a video look like over time? A small fingerprint by which its copies are known again (`pipelines.packing.copies`).

Four times a second the frame that will be stored is scaled to 32×32 grey levels, whose lowest frequencies (a cosine transform, as in pHash)
are kept as numbers, not as bits: so two prints can be laid over one another in time, mirrored, and cropped a little, and what
is left between them is a distance in grey levels. Brightness, the zeroth frequency, is left out. Of a video in which little moves
that holds noise, so the places where something does are kept too (`pipelines.packing.sparks`).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.packing import sparks

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["HERTZ", "MIRROR", "NUMBERS", "Printer", "read_print", "warps"]

HERTZ = 4
_SIDE = 32
_FREQUENCIES = 9
_LONGEST = 120
"""Seconds: of longer videos the first two minutes are compared."""

_STEP = 64
"""Numbers are kept in 64ths of a grey level."""
_WITH_SPARKS = b"vidssl-2"
_STILL = 2.0
"""Grey levels (root of the summed variances): a video in which less moves is still."""

_PAIRS = [(v, u) for v in range(_FREQUENCIES) for u in range(_FREQUENCIES) if 0 < v + u <= _FREQUENCIES]
_DOWN, _ACROSS = (np.array(column) for column in zip(*_PAIRS, strict=True))
NUMBERS = len(_PAIRS)
"""How many numbers a sample is."""

MIRROR: NDArray[np.float32] = np.where(_ACROSS % 2, -1, 1).astype(np.float32)
"""[NUMBERS]: what mirroring a video multiplies its print by."""


class Printer:
    """The fingerprint of one video in the making.

    Args:
        fps: Constant rate of its frames.
    """

    def __init__(self, fps: Fraction) -> None:
        self._samples, self._fine = _Sampled(fps, HERTZ, _SIDE), _Sampled(fps, sparks.HERTZ, sparks.SIDE)

    def add(self, frame: VideoFrame) -> None:
        """The next frame that is stored."""
        self._samples.add(frame)
        self._fine.add(frame)

    def finish(self) -> bytes:
        """The fingerprint, for `read_print`."""
        cosines = _cosines(0.0, 1.0)
        grey = np.stack(self._samples.greys).astype(np.float64)
        numbers = np.einsum("vy,tyx,ux->tvu", cosines, grey, cosines)[:, _DOWN, _ACROSS] / _SIDE
        still = numbers.var(axis=0).sum() < _STILL**2
        return (
            _WITH_SPARKS
            + len(numbers).to_bytes(4, "little")
            + np.rint(numbers * _STEP).astype("<i2").tobytes()
            + (sparks.sparks_of(np.stack(self._fine.greys)).to_bytes() if still else b"")
        )


class _Sampled:
    """So many grey pictures a second.

    Args:
        fps: Constant rate of the frames.
        hertz: Of the pictures.
        side: Their rows and columns.
    """

    def __init__(self, fps: Fraction, hertz: int, side: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._every, self._most, self._side, self._frames = fps / hertz, _LONGEST * hertz, side, 0
        self._scaler: Any = VideoReformatter()
        self.greys: list[NDArray[np.uint8]] = []

    def add(self, frame: VideoFrame) -> None:
        """The next frame."""
        from av.video.reformatter import Interpolation

        self._frames += 1
        if len(self.greys) >= self._most or len(self.greys) * self._every >= self._frames:
            return
        same = Interpolation.AREA | Interpolation.BITEXACT | Interpolation.ACCURATE_RND
        small = self._scaler.reformat(frame, self._side, self._side, format="gray", interpolation=same, threads=1)
        grey = np.array(small.to_ndarray(), np.uint8)
        while len(self.greys) * self._every < self._frames and len(self.greys) < self._most:
            self.greys.append(grey)  # more than once where there are fewer frames a second


def read_print(data: bytes) -> tuple[NDArray[np.int16], sparks.Sparks | None]:
    """A fingerprint: int16 [T, NUMBERS], in 64ths of a grey level, and what moves in a still video.

    What an older version staged is the numbers alone.
    """
    if not data.startswith(_WITH_SPARKS):
        return np.frombuffer(data, "<i2").astype(np.int16).reshape(-1, NUMBERS), None
    begin = len(_WITH_SPARKS) + 4
    count = int.from_bytes(data[begin - 4 : begin], "little")
    numbers, rest = np.frombuffer(data, "<i2", count * NUMBERS, begin), data[begin + 2 * count * NUMBERS :]
    return numbers.astype(np.int16).reshape(count, NUMBERS), sparks.read_sparks(rest) if rest else None


@lru_cache(maxsize=1)
def warps() -> NDArray[np.float32]:
    """What small crops make of a print: float32 [C, NUMBERS, NUMBERS], one matrix per crop (2.5 and 5 %, nine places each)."""
    made = []
    for kept in (0.975, 0.95):
        places = [place * (1 - kept) for place in (0.0, 0.5, 1.0)]
        of = {place: _cosines(0.0, 1.0) @ _cosines(place, kept).T for place in places}
        made += [of[y][np.ix_(_DOWN, _DOWN)] * of[x][np.ix_(_ACROSS, _ACROSS)] for y in places for x in places]
    return np.stack(made).astype(np.float32)


def _cosines(place: float, kept: float) -> NDArray[np.float64]:
    """[frequencies, side] orthonormal cosines, seen through a window that begins at `place` and is `kept` wide."""
    at = place + kept * (np.arange(_SIDE) + 0.5) / _SIDE
    rows = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * at) * np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    return rows
