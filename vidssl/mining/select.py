"""Given score matrices, which columns survive each stage? The numpy selections; features are never touched here.

Two ways with one result, the boundary being where they cost the same: batched int64 keys (score bits above, reversed
slot below, so that every key differs and ties are settled by the number itself) for small banks; a partition of the
values, a threshold and `flatnonzero` per row for large ones. Forbidden columns hold -inf in every view.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEYS_UP_TO", "Selection", "select_keys", "select_rows"]

FEW = 16
"""A stage that keeps less than one in this many looks at a floor first: partition is slow far from the middle."""
KEYS_UP_TO = 2048
"""Largest N for whole-batch keys. Where numpy sorts integers with AVX-512 they win up to 8k, on Zen 4 up to 1.5k."""

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
Selection = tuple[Ids, Scores, list[Ids]]
"""ids [B, k] best first (-1 where forbidden), their scores, and the columns after each stage when traced."""

_LOW = np.int64(0xFFFFFFFF)


def select_keys(scores_VBN: Sequence[Scores], views: tuple[int, ...], sizes: tuple[int, ...], trace: bool) -> Selection:
    """All queries at once by partition of int64 keys; exact, ties to the lower slot."""
    rows, n_slots = scores_VBN[0].shape
    columns = np.arange(n_slots, dtype=np.int64)[None]
    traced: list[Ids] = []
    keys = np.zeros((rows, 0), np.int64)
    for stage, (view, size) in enumerate(zip(views, sizes, strict=True)):
        score = np.take_along_axis(scores_VBN[view], columns, axis=1) if stage else scores_VBN[view]
        keys = _keys(score, columns)
        keep = min(size, keys.shape[1])
        keys.partition(keys.shape[1] - keep, axis=1)
        keys = keys[:, keys.shape[1] - keep :]
        if trace:
            traced.append(_best_first(keys, scores_VBN[view]))
        columns = _LOW - (keys & _LOW)
    ids = _best_first(keys, scores_VBN[views[-1]])
    return ids, _score_of(ids, scores_VBN[views[-1]]), traced


def select_rows(
    scores_VBN: Sequence[Scores], views: tuple[int, ...], sizes: tuple[int, ...], trace: bool, threads: int = 1
) -> Selection:
    """One query at a time by value partition and threshold; exact, ties to the lower slot."""
    rows = range(scores_VBN[0].shape[0])

    def one(row: int) -> list[Ids]:
        return _row([scores[row] for scores in scores_VBN], views, sizes, trace)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            stages_B = list(pool.map(one, rows))
    else:
        stages_B = [one(row) for row in rows]
    widths = sizes if trace else sizes[-1:]
    padded = [_pad([stages[i] for stages in stages_B], width) for i, width in enumerate(widths)]
    return padded[-1], _score_of(padded[-1], scores_VBN[views[-1]]), padded if trace else []


def _keys(score_Bm: Scores, columns_Bm: Ids) -> Ids:
    bits = (score_Bm + np.float32(0)).view(np.int32)  # -0.0 and 0.0 are one score, so they must be one integer
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # integers in the order of the floats
    return (ordered.astype(np.int64) << 32) | (_LOW - columns_Bm)


def _best_first(keys: Ids, score_BN: Scores) -> Ids:
    columns = _LOW - (np.sort(keys, axis=1)[:, ::-1] & _LOW)
    return np.where(np.isneginf(np.take_along_axis(score_BN, columns, axis=1)), -1, columns)


def _score_of(ids_Bk: Ids, score_BN: Scores) -> Scores:
    picked = np.take_along_axis(score_BN, np.maximum(ids_Bk, 0), axis=1)
    return np.where(ids_Bk >= 0, picked, -np.inf).astype(np.float32)


def _row(scores_VN: Sequence[Scores], views: Sequence[int], sizes: Sequence[int], trace: bool) -> list[Ids]:
    allowed = scores_VN[0] != -np.inf
    count = int(np.count_nonzero(allowed))
    stages: list[Ids] = []
    columns = np.zeros(0, np.int64)
    for stage, (view, size) in enumerate(zip(views, sizes, strict=True)):
        if stage:
            columns = columns[_top(scores_VN[view][columns], size)]
        else:  # on the whole row: gathering the allowed part of it would cost more than selecting does
            columns = np.flatnonzero(allowed) if size >= count else _top(scores_VN[view], size)
        if trace or stage == len(views) - 1:
            order = np.lexsort((columns, -scores_VN[view][columns]))
            stages.append(columns[order])
    return stages


def _top(score_m: Scores, size: int) -> Ids:
    """Positions of the `size` best, ascending; the first of equals at the threshold stay."""
    if size >= len(score_m):
        return np.arange(len(score_m))
    if size * FEW > len(score_m):
        return _cut(score_m, size)
    near = np.flatnonzero(score_m >= _floor(score_m, size))
    return near[_cut(score_m[near], size)] if len(near) > size else near


def _floor(score_m: Scores, size: int) -> np.float32:
    """A value that at least `size` scores reach: the size-th of the best of many small groups."""
    width = min(64, len(score_m) // (4 * size))
    groups = len(score_m) // width
    best = score_m[: width * groups].reshape(width, groups).max(axis=0)
    return np.partition(best, groups - size)[groups - size]


def _cut(score_m: Scores, size: int) -> Ids:
    cut = len(score_m) - size
    threshold = np.partition(score_m, cut)[cut]
    kept = np.flatnonzero(score_m >= threshold)
    if surplus := len(kept) - size:
        equals = np.flatnonzero(score_m[kept] == threshold)
        kept = np.delete(kept, equals[len(equals) - surplus :])
    return kept


def _pad(rows: Sequence[Ids], width: int) -> Ids:
    ids = np.full((len(rows), width), -1, np.int64)
    for row, kept in zip(ids, rows, strict=True):
        row[: len(kept)] = kept
    return ids
