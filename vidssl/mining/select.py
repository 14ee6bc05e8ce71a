"""Given score matrices, which columns survive each stage? Features are never touched here.

The size-th largest value of each row is found, then whatever reaches it is kept: many times cheaper than `topk`, and of
equals at the threshold the first slots stay. Forbidden columns hold -inf in every view.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.task import Ids, Scores, Selection

__all__ = ["best_first", "best_of", "counted", "select", "top"]


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
        kept = best_of(here, min(size, here.shape[1]))
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
    return best_of(score_m[None], min(size, len(score_m)))[0]


def best_of(score_Bm: Scores, size: int) -> Ids:
    """int64 [B, size]: positions in the flattened matrix of what each row keeps, ascending."""
    rows, width = score_Bm.shape
    if size == 0:
        return np.zeros((rows, 0), np.int64)
    if size == width:
        return np.arange(rows * width).reshape(rows, width)
    threshold = np.partition(score_Bm, width - size, axis=1)[:, width - size, None]
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
