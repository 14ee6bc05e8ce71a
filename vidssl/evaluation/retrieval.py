"""Do the nearest videos show the same class? Nearest-neighbour retrieval, as CoCLR, CPR, ViCC (P1) and IIC (P2) measure it.

P1: a video is described by the mean of its windows' unit features; the set is centred, rows are made unit again, neighbours
are ranked by dot product, and R@k is the share of queries with at least one video of their class among the k nearest.

Protocols:
    p1_strict: windows over the whole video; query and gallery are centred by the *gallery* (training) mean.
    p1_ref: the same windows; query and gallery are each centred by their own mean, as in the papers' code (transductive).
    centre: one window in the middle of the video, centred as p1_strict.
    p2: the mean of ten windows' last maps (`vidssl.evaluation.iic_retrieval`), compared by cosine, not centred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError, RecipeError

__all__ = ["PROTOCOLS", "Recall", "Side", "describe", "nearest", "retrieve", "scores", "search", "unit_rows", "wilson"]

PROTOCOLS: Final = ("p1_strict", "p1_ref", "centre", "p2")
_ROWS: Final = 256  # queries scored at once: bounds the score matrix to 256 x N floats
_FLAT: Final = 1e-5  # a centred row shorter than this is rounding: such a video points nowhere

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Videos on one side of a search.

    Attributes:
        feature: [N, F], each row the mean of a video's window features (P1: unit ones).
        label: int64 [N], -1 unknown.
        group: int64 [N], videos cut from one source share it.
        instance: int64 [N], their rows in the manifest.
    """

    feature: NDArray[np.floating]
    label: Ints
    group: Ints
    instance: Ints


@dataclass(frozen=True)
class Recall:
    """What one search found.

    Attributes:
        at: k → mean R@k over the labelled queries.
        chance: k → what a random order of the same gallery would score, exactly.
        first: float64 [Q], R@1 of each query (between 0 and 1 where neighbours tie), NaN where the query has no label.
        neighbours: int64 [Q, n] gallery positions, nearest first, -1 where there are fewer.
        similarity: float64 [Q, n] their cosine, NaN where there are fewer.
        queries: Labelled queries.
        unanswerable: Labelled queries with no video of their class in the gallery left for them (they count as misses).
        gallery: Videos searched.
        omitted: k that were asked for but are no smaller than the gallery: they would always be hits.
    """

    at: dict[int, float]
    chance: dict[int, float]
    first: Array
    neighbours: Ints
    similarity: Array
    queries: int
    unanswerable: int
    gallery: int
    omitted: tuple[int, ...]


def unit_rows(rows: NDArray[np.floating], flat: float = 0.0) -> Array:
    """Rows of [N, F] scaled to length one; rows no longer than `flat` become zero."""
    rows64 = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows64, axis=1, keepdims=True)
    return np.divide(rows64, length, out=np.zeros_like(rows64), where=length > max(flat, np.finfo(np.float64).tiny))


def describe(query: NDArray[np.floating], gallery: NDArray[np.floating], protocol: str) -> tuple[Array, Array]:
    """Query and gallery features, centred as the protocol says and of length one.

    Raises:
        RecipeError: unknown protocol.
    """
    _known(protocol)
    if protocol == "p2":
        return unit_rows(query), unit_rows(gallery)
    centre = np.asarray(gallery, np.float64).mean(0)
    own = np.asarray(query, np.float64).mean(0) if protocol == "p1_ref" else centre
    return unit_rows(query - own, _FLAT), unit_rows(gallery - centre, _FLAT)


def retrieve(
    query: Side, gallery: Side | None, *, protocol: str, ks: Sequence[int] = (1, 5, 10, 20, 50), neighbours: int = 5
) -> Recall:
    """Search `gallery` for each query; without a gallery, leave one group out of the queries themselves.

    Equal similarities share their chance: where several neighbours tie at the k-th place, the query scores the probability
    that a random choice among them is a hit, so that the result does not depend on the order of storage.

    Args:
        query: The videos that ask.
        gallery: The videos that are searched; None: `query` without the asking video and its group.
        protocol: One of `PROTOCOLS`.
        ks: k of R@k.
        neighbours: Nearest videos returned for each query.

    Raises:
        RecipeError: unknown protocol.
        DataError: fewer than two videos, or no labelled query.
    """
    side = query if gallery is None else gallery
    _enough(query, side)
    return search(
        *describe(query.feature, side.feature, protocol), query=query, gallery=gallery, ks=ks, neighbours=neighbours
    )


def search(
    q: Array,
    g: Array,
    *,
    query: Side,
    gallery: Side | None,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    neighbours: int = 5,
) -> Recall:
    """`retrieve` on descriptions that are ready: unit rows q [Q, F] and g [N, F], in the order of the two sides.

    Raises:
        DataError: fewer than two videos, or no labelled query.
    """
    side = query if gallery is None else gallery
    _enough(query, side)
    use = tuple(k for k in ks if k < len(side.label))
    hit, chance, near, cosine, lost = [], [], [], [], 0
    for rows, score in scores(q, g, query, gallery):
        same = (query.label[rows, None] == side.label[None, :]) & np.isfinite(score)
        known = query.label[rows] >= 0
        hit.append(_hits(score, same, known, use))
        chance.append(_chance(np.isfinite(score), same, known, use))
        lost += int((~same.any(1) & known).sum())
        order = nearest(score, neighbours)
        best = np.take_along_axis(score, order, 1)
        near.append(np.where(np.isfinite(best), order, -1))
        cosine.append(np.where(np.isfinite(best), best, np.nan))
    hits = np.concatenate(hit)
    return Recall(
        at={k: float(np.nanmean(hits[:, i])) for i, k in enumerate(use)},
        chance={k: float(value) for k, value in zip(use, np.nanmean(np.concatenate(chance), 0), strict=True)},
        first=hits[:, use.index(1)] if 1 in use else np.full(len(q), np.nan),
        neighbours=np.concatenate(near).astype(np.int64),
        similarity=np.concatenate(cosine),
        queries=int((query.label >= 0).sum()),
        unanswerable=lost,
        gallery=len(side.label),
        omitted=tuple(k for k in ks if k not in use),
    )


def scores(q: Array, g: Array, query: Side, gallery: Side | None) -> Iterator[tuple[slice, Array]]:
    """Blocks of queries and their similarities [b, N] to the gallery; -inf where leaving a group out forbids a video."""
    for start in range(0, len(q), _ROWS):
        rows = slice(start, start + _ROWS)
        score = q[rows] @ g.T
        if gallery is None:
            score[query.group[rows, None] == query.group[None, :]] = -np.inf
            score[np.arange(len(score)), np.arange(start, start + len(score))] = -np.inf
        yield rows, score


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in n independent queries (Wilson's score interval)."""
    z, n = 1.96, max(n, 1)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _known(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise RecipeError(f"unknown protocol '{protocol}'; type evaluation.protocol= one of {', '.join(PROTOCOLS)}")


def _enough(query: Side, side: Side) -> None:
    if len(side.label) < 2 or len(query.label) < 1:
        raise DataError(f"retrieval needs at least 2 videos to search, {len(side.label)} are given")
    if not (query.label >= 0).any():
        raise DataError(
            "no query has a label, so R@k is unknown; pack a folder with one sub-folder per class, or use `vidssl embed`"
        )


def nearest(score: Array, n: int) -> Ints:
    """Positions of the n highest scores of each row, highest first; ties: lower position (no full sort of N)."""
    n = min(n, score.shape[1])
    if n == 0:
        return np.zeros((len(score), 0), np.int64)
    least = np.partition(score, score.shape[1] - n, axis=1)[:, score.shape[1] - n]
    order = np.empty((len(score), n), np.int64)
    for row, (values, bar) in enumerate(zip(score, least, strict=True)):
        among = np.flatnonzero(values >= bar)
        order[row] = among[np.argsort(-values[among], kind="stable")[:n]]
    return order


def _hits(score: Array, same: NDArray[np.bool_], known: NDArray[np.bool_], ks: tuple[int, ...]) -> Array:
    """[Q, len(ks)] probability of a hit; NaN where the query has no label."""
    best = np.where(same, score, -np.inf).max(1, keepdims=True)
    above = (score > best).sum(1)
    tied = ((score == best) & np.isfinite(score)).sum(1)
    right = ((score == best) & same).sum(1)
    found = same.any(1)
    columns = [np.where(found, 1.0 - _all_miss(tied, right, k - above), 0.0) for k in ks]
    return np.where(known[:, None], np.stack(columns, 1) if columns else np.zeros((len(score), 0)), np.nan)


def _chance(
    allowed: NDArray[np.bool_], same: NDArray[np.bool_], known: NDArray[np.bool_], ks: tuple[int, ...]
) -> Array:
    n, right = allowed.sum(1), same.sum(1)
    columns = [np.where(right > 0, 1.0 - _all_miss(n, right, np.full_like(n, k)), 0.0) for k in ks]
    return np.where(known[:, None], np.stack(columns, 1) if columns else np.zeros((len(n), 0)), np.nan)


def _all_miss(n: Ints, right: Ints, draws: Ints) -> Array:
    """Probability that `draws` of n things, `right` of them good, hold no good one: C(n-right, draws) / C(n, draws)."""
    miss = np.ones(len(n))
    for step in range(int(max(draws.max(initial=0), 0))):
        left = np.maximum(n - right - step, 0) / np.maximum(n - step, 1)
        miss = np.where(step < draws, miss * left, miss)
    return miss
