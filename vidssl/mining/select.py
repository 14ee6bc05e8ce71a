"""Given score matrices, which columns survive each stage? Features are never touched here.

The size-th largest value of each row is found, then whatever reaches it is kept: many times cheaper than `topk`, and of
equals at the threshold the first slots stay. Forbidden columns hold -inf in every view.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.task import Ids, Scores, Selection

__all__ = ["best_first", "counted", "cut", "select", "top"]

DIRECT, WORTH = 768, 16_384
"""Width of a row, and scores in all, from which on a cut is searched instead of partitioned for."""
SAMPLED, SORTED, PROBES = 512, 512, 6
"""Scores of a row that are sorted to know where to look; how few between two of them are few enough to be sorted, and
after how many looks what is left is taken as it is. Up to 512 numpy sorts in registers, six times faster per score."""


def select(scores_VBN: Sequence[Scores], views: tuple[int, ...], sizes: tuple[int, ...], trace: bool) -> Selection:
    """All queries at once; exact, ties to the lower slot."""
    rows, n_slots = scores_VBN[0].shape
    begins = np.arange(rows)[:, None] * n_slots
    flat = [score.reshape(-1) for score in scores_VBN]
    places = kept = np.zeros((rows, 0), np.int64)
    here = scores_VBN[0]
    traced: list[Ids] = []
    for stage, (view, size) in enumerate(zip(views, sizes, strict=True)):
        here = flat[view].take(places) if stage else scores_VBN[view]
        kept = _kept(here, min(size, here.shape[1]))
        places = places.reshape(-1).take(kept) if stage else kept
        if trace:
            traced.append(best_first(places - begins, here.reshape(-1).take(kept))[0])
    return *best_first(places - begins, here.reshape(-1).take(kept)), traced


def best_first(columns_Bm: Ids, score_Bm: Scores) -> tuple[Ids, Scores]:
    """Ascending columns in the order of their scores, equals by column; -1 where forbidden."""
    order = np.argsort(-score_Bm, axis=1, kind="stable")
    columns, score = np.take_along_axis(columns_Bm, order, axis=1), np.take_along_axis(score_Bm, order, axis=1)
    return np.where(np.isneginf(score), -1, columns), score


def counted(mask_Bw: NDArray[np.bool_]) -> Ids:
    """int64 [B]: how many of each row are true."""
    rows, width = mask_Bw.shape
    if width % 1024:
        return np.array([np.count_nonzero(row) for row in mask_Bw])
    bytes_added = mask_Bw.reshape(rows, -1, 1024).view(np.uint64).sum(axis=2)  # eight counts of at most 128 in a word
    return bytes_added.view(np.uint8).sum(axis=1, dtype=np.int64)


def top(score_m: Scores, size: int) -> Ids:
    """Positions of the `size` best of one row, ascending; the first of equals at the threshold stay."""
    return _kept(score_m[None], min(size, len(score_m)))[0]


def cut(score_Bm: Scores, size: int) -> Scores:
    """float32 [B]: the size-th largest score of each row.

    A partition moves every score several times; here they are only compared. A sorted sample says where to look, the
    number of scores that reach some of its values says between which two the cut lies, and what lies there is sorted.
    """
    rows, width = score_Bm.shape
    if width < DIRECT or score_Bm.size < WORTH:
        return _partitioned(score_Bm, size)
    low, high, above, inside = _between(score_Bm, size)
    most = int(inside.max())
    if most > width // 2:  # equal scores everywhere
        return _partitioned(score_Bm, size)
    near = np.flatnonzero(np.logical_xor(score_Bm >= low, score_Bm >= high))
    table = np.full((rows, most), -np.inf, np.float32)
    begins = np.cumsum(inside) - inside
    places = np.arange(len(near)) + np.repeat(np.arange(rows) * most - begins, inside)
    table.reshape(-1)[places] = score_Bm.reshape(-1).take(near)
    return np.sort(table, axis=1)[np.arange(rows), most - (size - above)]


def _partitioned(score_Bm: Scores, size: int) -> Scores:
    return np.partition(score_Bm, score_Bm.shape[1] - size, axis=1)[:, -size]


def _between(score_Bm: Scores, size: int) -> tuple[Scores, Scores, Ids, Ids]:
    """[B, 1] two sampled values around each row's cut, [B] how many scores reach the upper one, and lie between."""
    rows, width = score_Bm.shape
    every, sample = np.arange(rows), np.sort(score_Bm[:, :: width // SAMPLED], axis=1)
    low, reach_low = np.zeros(rows, np.int64), np.full(rows, width)  # places in the sample; nothing is known yet
    high, reach_high = np.full(rows, sample.shape[1] + 1), np.zeros(rows, np.int64)
    edged = np.pad(sample, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))
    for probes in range(PROBES):
        if (reach_low - reach_high).max() <= SORTED and probes:
            break
        likely = low + (high - low) * ((reach_low - size) / np.maximum(reach_low - reach_high, 1))
        below, above = likely - low, high - likely
        aside = np.where(below < above, 2 + np.sqrt(below), -2 - np.sqrt(above)) if probes else 0
        probe = np.minimum(np.maximum(np.rint(likely + aside).astype(np.int64), low), high)
        reach = _reach(score_Bm, edged[every, probe])
        enough = reach >= size
        low, reach_low = np.where(enough, probe, low), np.where(enough, reach, reach_low)
        high, reach_high = np.where(enough, high, probe), np.where(enough, reach_high, reach)
    return edged[every, low][:, None], edged[every, high][:, None], reach_high, reach_low - reach_high


def _reach(score_Bm: Scores, value_B: Scores) -> Ids:
    return counted(score_Bm >= value_B[:, None])


def _kept(score_Bm: Scores, size: int) -> Ids:
    """int64 [B, size]: positions in the flattened matrix of what each row keeps, ascending."""
    rows, width = score_Bm.shape
    if size == 0:
        return np.zeros((rows, 0), np.int64)
    if size == width:
        return np.arange(rows * width).reshape(rows, width)
    threshold = cut(score_Bm, size)[:, None]
    kept = np.flatnonzero(score_Bm >= threshold)
    if len(kept) > rows * size:
        kept = _without_surplus(kept, score_Bm, threshold, size)
    return kept.reshape(rows, size)


def _without_surplus(kept: Ids, score_Bm: Scores, threshold_B1: Scores, size: int) -> Ids:
    """Drop the last of those that equal their row's threshold, as many as the row has too many."""
    rows, width = score_Bm.shape
    row = kept // width
    surplus = np.bincount(row, minlength=rows) - size
    equal = np.flatnonzero(score_Bm.reshape(-1)[kept] == threshold_B1[row, 0])
    after = np.cumsum(np.bincount(row[equal], minlength=rows))[row[equal]] - 1 - np.arange(len(equal))
    return np.delete(kept, equal[after < surplus[row[equal]]])
