"""What do two streams see together? Sums of similarities for retrieval, means of probabilities for classification.

CoCLR, CPR and ViCC add the two similarity matrices of the videos that both streams have; a classifier of two streams answers
with the mean of their probability vectors. IIC's way for retrieval is `vidssl.evaluation.iic_retrieval.joint`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError
from vidssl.evaluation.retrieval import Recall, Side, describe, search

__all__ = ["common_rows", "mean_probability", "retrieve_fused"]


def common_rows(first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in both lists of the instances that both have, in ascending order of instance."""
    _, left, right = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return left.astype(np.int64), right.astype(np.int64)


def retrieve_fused(
    query: Sequence[Side],
    gallery: Sequence[Side] | None,
    *,
    protocol: str,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    neighbours: int = 5,
) -> Recall:
    """`retrieve` with the sum of the streams' similarity matrices; each stream is centred and made unit by itself.

    The dot product of rows laid side by side is the sum of the streams' dot products, so one product does it all. They
    are divided by the number of streams: the order is that of the sum, and the numbers stay cosines.

    Args:
        query: One side for each stream, the same videos in the same order.
        gallery: The same for the searched videos; None: leave one group out of the queries.
        protocol: One of `retrieval.PROTOCOLS`.
        ks: k of R@k.
        neighbours: Nearest videos returned for each query.

    Raises:
        DataError: streams of different videos; as `retrieve`.
        RecipeError: unknown protocol.
    """
    searched = query if gallery is None else gallery
    for sides in (query, searched):
        if any(not np.array_equal(side.instance, sides[0].instance) for side in sides):
            raise DataError("the two streams describe different videos; give the videos that both have, in one order")
    made = [describe(one.feature, other.feature, protocol) for one, other in zip(query, searched, strict=True)]
    scale = 1 / np.sqrt(len(made))
    q, g = (np.concatenate([pair[i] for pair in made], axis=1) * scale for i in (0, 1))
    return search(q, g, query=query[0], gallery=None if gallery is None else gallery[0], ks=ks, neighbours=neighbours)


def mean_probability(streams: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """The mean of the streams' class probabilities, each [N, C] of the same videos."""
    return np.mean([np.asarray(rows, np.float64) for rows in streams], axis=0)
