"""Which videos are copies of one another? Fingerprints → pairs, in memory that grows with the videos and not with their pairs.

Candidates come first: for each video the nearest in what it shows (its mean print, and the mirrored one) and in how it moves (how
much each frequency changes, which a crop or a mirror leaves alone). FAISS looks them up, through an inverted file where there are
many. Then each pair is laid over one another at every shift of up to 2.5 s, and is a copy where what is left between the two is
small against what moves in them; or, for crops, where the one moves as the other does once it is cropped alike. Of still videos
that says nothing, and what tells them apart is where and when the little moves that does (`pipelines.packing.sparks`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.packing.prints import HERTZ, MIRROR, NUMBERS, warps
from pipelines.packing.sparks import LATER, OVERLAP, Sparks, StillLooks, same_sparks

__all__ = ["Copy", "Overlay", "Prints", "find_copies", "overlay"]

Array = NDArray[np.float32]

_STEP = 64
_SHIFT = int(LATER * HERTZ)
_LOOKS, _MOVES = 16, 48
"""Candidates of a video: so many that look alike, as many that look alike when mirrored, so many that move alike."""
_EXACT_UP_TO = 20_000
"""Videos above which candidates are looked up in an inverted file: approximately, and in a small share of the time."""
_BLOCK = 4096

# Fitted on 505 real clips and 500 copies of them (benchmarks/duplicates.py has the figures that they give).
_NOISE = 0.4
"""Grey levels that encoding leaves between a video and its copy."""
_LEFT = 0.55
"""Copies: squares of what is left over squares of what moves and of the noise."""
_LOOK, _MOVE, _MOVED = 0.85, 0.70, 0.40
"""Copies that are cropped: cosine of the mean prints, of the motion, and as `_LEFT` of the motion alone."""
_ENOUGH = 2 * HERTZ
"""Samples from which motion says something."""
_BLANK = 1.0
"""Grey levels: a video without more contrast (black, white, a fade) has nothing to be known by, and is no copy."""
_FARTHEST, _LIVELIER = 4.0, 4.0
"""No copies: mean prints farther apart than so many times the motion and the noise, and one more lively than the other."""


@dataclass(frozen=True)
class Copy:
    """Two videos that show the same; `mirrored` where one is the mirror image of the other; first < second."""

    first: int
    second: int
    mirrored: bool


@dataclass(frozen=True)
class Overlay:
    """Two prints laid over one another at the shift where least is left between them.

    Attributes:
        left: Mean square of what is left, over that of the motion and the noise.
        moves: Cosine of the two motions, at the shift where it is largest.
        moved: As `left`, of the motion alone, at that shift.
        samples: In the overlap there.
    """

    left: float
    moves: float
    moved: float
    samples: int

    @property
    def is_copy(self) -> bool:
        """Whether they are the same, uncropped."""
        return self.left < _LEFT

    @property
    def moves_alike(self) -> bool:
        """Whether they are the same but for something that stands still, as the edge of a crop does."""
        return self.samples >= _ENOUGH and self.moves >= _MOVE and self.moved < _MOVED


class Prints:
    """The fingerprints of all videos, one after the other in one array.

    Args:
        prints: int16 [T, NUMBERS] each.
        sparks: Of those that are still; empty: none is.
    """

    def __init__(self, prints: Sequence[NDArray[np.int16]], sparks: Sequence[Sparks | None] = ()) -> None:
        self.first = np.cumsum([0, *(len(one) for one in prints)])
        self._all = np.concatenate(prints) if prints else np.zeros((0, NUMBERS), np.int16)
        self.mean = np.stack([self[i].mean(0) for i in range(len(self))])
        deviation = np.stack([self[i].std(0) for i in range(len(self))])
        self.motion = np.log(deviation + 0.15).astype(np.float32)
        self.energy = (deviation**2).sum(1)
        self.blank = (self.mean**2).sum(1) + self.energy < _BLANK**2
        self._sparks = {video: one for video, one in enumerate(sparks) if one is not None}
        self._told = {video for video, one in self._sparks.items() if one.tell}
        self._looks = StillLooks({video: one.look for video, one in self._sparks.items()})

    def __len__(self) -> int:
        """How many videos."""
        return len(self.first) - 1

    def __getitem__(self, video: int) -> Array:
        """float32 [T, NUMBERS], grey levels."""
        return self._all[self.first[video] : self.first[video + 1]].astype(np.float32) / np.float32(_STEP)

    def both_still(self, one: int, other: int) -> bool:
        """Whether little moves in either."""
        return one in self._sparks and other in self._sparks

    def told(self, one: int, other: int) -> int:
        """How many of two are still but for something that is enough to know them by."""
        return (one in self._told) + (other in self._told)

    def spark_alike(self, one: int, other: int, mirrored: bool) -> bool:
        """Whether what little moves in two still videos is the same."""
        laid = self._looks.laid(one, other, mirrored)
        return same_sparks(self._sparks[one], self._sparks[other], laid, mirrored)


def find_copies(prints: Prints, file: Sequence[int]) -> list[Copy]:
    """All pairs of videos of which one is a copy of the other.

    Args:
        prints: Of N videos.
        file: [N]; what has the same number is never compared (clips of one source).
    """
    found: list[Copy] = []
    norms = np.stack([np.linalg.norm(prints.mean @ warp.T, axis=1) for warp in warps()], axis=1)
    first, second = _candidates(prints, np.asarray(file))
    for video, begin, stop in _runs(first):
        found += _confirmed(prints, norms, video, second[begin:stop])
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def _runs(values: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(value, first, stop) of each run of equal values."""
    edges = np.flatnonzero(np.diff(values, prepend=-1, append=-1)) if len(values) else np.zeros(0, np.int64)
    for begin, stop in itertools.pairwise(edges.tolist()):
        yield int(values[begin]), begin, stop


def _confirmed(prints: Prints, norms: Array, video: int, others: NDArray[np.int64]) -> Iterator[Copy]:
    mine = prints[video]
    for mirrored, sign in ((False, np.ones(NUMBERS, np.float32)), (True, MIRROR)):
        print_ = mine * sign
        mean, means = print_.mean(0), prints.mean[others]
        look, crop = _registered(mean, means, norms[others])
        # Two bounds on what would be found, which spare most of the looking.
        least = np.minimum(prints.energy[others], prints.energy[video]) + _NOISE**2
        most = np.maximum(prints.energy[others], prints.energy[video]) + _NOISE**2
        same = ((means - mean) ** 2).sum(1) < _FARTHEST * least
        moving = most < _LIVELIER * least
        alike = np.zeros(len(others), bool)
        for place in np.flatnonzero((look >= _LOOK) & (same | moving)).tolist():
            theirs, other = prints[others[place]], int(others[place])
            told = prints.told(video, other)  # one camera's films share all but what moves in them
            alike[place] = (
                (same[place] and told < 2 and overlay(print_, theirs).is_copy)
                or (prints.both_still(video, other) and prints.spark_alike(video, other, mirrored))
                or (moving[place] and not told and _cropped(print_, theirs, int(crop[place])).moves_alike)
            )
        for other in others[alike].tolist():
            yield Copy(min(video, other), max(video, other), mirrored)
        others = others[~alike]
        if not len(others):
            return


def _registered(mean: Array, means: Array, norms: Array) -> tuple[Array, NDArray[np.int64]]:
    """How much other videos [C] look like one at best, and cropped how: 0 not, 1 … W this one, W + 1 … the other."""
    cropped = np.concatenate([mean[None], warps() @ mean])
    cosines = (
        means @ cropped.T / np.maximum(np.linalg.norm(cropped, axis=1) * np.linalg.norm(means, axis=1)[:, None], 1e-3)
    )
    theirs = means @ (warps().transpose(0, 2, 1) @ mean).T / np.maximum(norms * np.linalg.norm(mean), 1e-3)
    both = np.concatenate([cosines, theirs], axis=1)
    return both.max(1), both.argmax(1)


def _cropped(one: Array, other: Array, crop: int) -> Overlay:
    count = len(warps())
    if crop == 0:
        return overlay(one, other)
    if crop <= count:
        return overlay(one @ warps()[crop - 1].T, other)
    return overlay(one, other @ warps()[crop - 1 - count].T)


def overlay(one: Array, other: Array) -> Overlay:
    """Lay two prints over one another.

    Args:
        one: float32 [T, NUMBERS].
        other: float32 [U, NUMBERS].
    """
    shifts = np.arange(-_SHIFT, _SHIFT + 1)
    begin, begun = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    common = np.minimum(len(one) - begin, len(other) - begun)
    keep = common >= max(1.0, OVERLAP * max(len(one), len(other)))
    if not keep.any():
        return Overlay(np.inf, -1.0, np.inf, 0)
    begin, begun, n = begin[keep], begun[keep], common[keep]
    cross = _diagonals(one @ other.T)[len(one) - 1 + begun - begin]
    (square, mean), (square_, mean_) = _sums(one, begin, n), _sums(other, begun, n)
    energy = np.maximum(square / n - (mean**2).sum(1), 0.0)
    energy_ = np.maximum(square_ / n - (mean_**2).sum(1), 0.0)
    both = cross / n - (mean * mean_).sum(1)
    scale = _NOISE**2 + np.minimum(energy, energy_)
    left = np.maximum(square + square_ - 2 * cross, 0.0) / n / scale
    moves = both / np.sqrt(energy * energy_ + 1e-9)
    best = int(moves.argmax())
    moved = float((energy + energy_ - 2 * both)[best] / scale[best])
    return Overlay(float(left.min()), float(moves[best]), moved, int(n[best]))


def _diagonals(product: Array) -> NDArray[np.float64]:
    """Sums along the diagonals of [T, U], from offset 1 - T to U - 1."""
    rows, columns = product.shape
    # Each row one place further to the right than the one before it: diagonals become columns.
    leaning = np.zeros((rows, rows + columns), np.float64)
    leaning[:, :columns] = product[::-1]
    return leaning.reshape(-1)[: rows * (rows + columns - 1)].reshape(rows, rows + columns - 1).sum(0)


def _sums(rows: Array, begin: NDArray[np.int64], n: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum of squares and mean row of rows begin … begin + n, for each."""
    total = np.concatenate([np.zeros((1, NUMBERS)), np.cumsum(rows, 0, dtype=np.float64)])
    squares = np.concatenate([[0.0], np.cumsum((rows.astype(np.float64) ** 2).sum(1))])
    return squares[begin + n] - squares[begin], (total[begin + n] - total[begin]) / n[:, None]


def _candidates(prints: Prints, file: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs that may be copies: int64 [P] each, the smaller number first, sorted."""
    import faiss

    unit = prints.mean / np.maximum(np.linalg.norm(prints.mean, axis=1, keepdims=True), 1e-6)
    looks, moves = _index(faiss, unit), _index(faiss, prints.motion)
    lengths, codes = np.diff(prints.first), [np.zeros(0, np.int64)]
    for first in range(0, len(prints), _BLOCK):
        rows = slice(first, first + _BLOCK)
        near = [
            _nearest(looks, unit[rows], _LOOKS),
            _nearest(looks, unit[rows] * MIRROR, _LOOKS),
            _nearest(moves, prints.motion[rows], _MOVES),
        ]
        other = np.concatenate(near, axis=1)
        video = np.broadcast_to(np.arange(first, first + len(other))[:, None], other.shape)
        other = np.where(other < 0, video, other)
        short = np.minimum(lengths[video], lengths[other]) >= OVERLAP * np.maximum(lengths[video], lengths[other])
        wanted = short & (file[video] != file[other]) & ~prints.blank[video] & ~prints.blank[other]
        codes.append(np.unique((np.minimum(video, other) * len(prints) + np.maximum(video, other))[wanted]))
    pairs = np.unique(np.concatenate(codes))
    return pairs // max(len(prints), 1), pairs % max(len(prints), 1)


def _index(faiss: Any, rows: Array) -> Any:
    rows = np.ascontiguousarray(rows)
    if len(rows) <= _EXACT_UP_TO:
        index = faiss.IndexFlatL2(NUMBERS)
    else:
        lists = int(4 * np.sqrt(len(rows)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(NUMBERS), NUMBERS, lists)
        index.nprobe = 16
        index.train(rows[np.random.default_rng(0).permutation(len(rows))[: 64 * lists]])
    index.add(rows)
    return index


def _nearest(index: Any, rows: Array, count: int) -> NDArray[np.int64]:
    return index.search(np.ascontiguousarray(rows), min(count + 1, index.ntotal))[1]
