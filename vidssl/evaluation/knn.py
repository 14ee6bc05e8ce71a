"""Do a video's nearest neighbours name its class? The k-NN classifier: no training, no setting but k.

Weighted vote (Wu et al., CVPR 2018, section 3.4): a neighbour votes for its class with exp(cosine / 0.07); majority: each of
the k votes once. Neighbours and centring are those of the retrieval protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError
from vidssl.evaluation.retrieval import Side, describe, nearest, scores

__all__ = ["TEMPERATURE", "Votes", "accuracy", "knn"]

TEMPERATURE: Final = 0.07


class Votes(NamedTuple):
    """Shares of the vote, each row summing to one (zero where a query has no labelled neighbour).

    Attributes:
        weighted: float64 [Q, C], by exp(cosine / 0.07).
        majority: float64 [Q, C], one vote each.
        k: Neighbours that voted at most (fewer than asked for in a small gallery).
    """

    weighted: NDArray[np.float64]
    majority: NDArray[np.float64]
    k: int


def knn(
    query: Sequence[Side], gallery: Sequence[Side] | None, *, classes: int, k: int = 20, protocol: str = "p1_strict"
) -> Votes:
    """Class votes of each query's k nearest labelled videos.

    Args:
        query: One side for each stream, of the same videos (one stream: a list of one). Streams add their similarities.
        gallery: The same for the videos that vote; None: the queries themselves, without the asking video's group.
        classes: C.
        k: Neighbours.
        protocol: Of the description, one of `retrieval.PROTOCOLS`.

    Raises:
        DataError: no labelled video to vote.
        RecipeError: unknown protocol.
    """
    searched = query if gallery is None else gallery
    label = searched[0].label
    if not (label >= 0).any():
        raise DataError("no video of the gallery has a label, so no neighbour can name a class")
    made = [describe(one.feature, other.feature, protocol) for one, other in zip(query, searched, strict=True)]
    q, g = (np.concatenate([pair[i] for pair in made], axis=1) / np.sqrt(len(made)) for i in (0, 1))
    k = min(k, int((label >= 0).sum()))
    weighted, majority = (np.zeros((len(q), classes)) for _ in range(2))
    for rows, score in scores(q, g, query[0], None if gallery is None else gallery[0]):
        score[:, label < 0] = -np.inf
        order = nearest(score, k)
        cosine = np.take_along_axis(score, order, 1)
        votes = np.isfinite(cosine)
        weight = np.where(votes, np.exp((np.where(votes, cosine, 0.0) - 1.0) / TEMPERATURE), 0.0)
        place = np.arange(len(score))[:, None] + rows.start
        np.add.at(weighted, (place, label[order]), weight)  # -1 of an unlabelled video comes with the weight 0
        np.add.at(majority, (place, label[order]), votes.astype(float))
    return Votes(_shares(weighted), _shares(majority), k)


def accuracy(probability: NDArray[np.floating], label: NDArray[np.int64]) -> float:
    """Share of labelled rows whose highest entry of [N, C] is their class; equal highest entries share their chance.

    A row of NaN (a classifier that diverged) is a wrong answer.
    """
    known = label >= 0
    rows, right = np.asarray(probability, np.float64)[known], label[known]
    best = rows.max(1)
    ties = np.maximum((rows == best[:, None]).sum(1), 1)
    return float(np.mean((rows[np.arange(len(rows)), right] == best) / ties))


def _shares(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    total = votes.sum(1, keepdims=True)
    return np.divide(votes, total, out=np.zeros_like(votes), where=total > 0)
