"""Who asks and who is searched? Test → train where the data has both splits, else everybody leaves one group out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.evaluation.heldout import Sides, classification_sides
from vidssl.evaluation.retrieval import Side
from vidssl.saved.embeddings import Embedded

__all__ = ["classifier_sides", "sides_of"]


def sides_of(streams: Sequence[NDArray[np.floating]], store: Embedded) -> tuple[list[Side], list[Side] | None]:
    """Queries and gallery, one side for each stream; without a gallery the queries search each other."""

    def side(rows: NDArray[np.floating], mask: NDArray[np.bool_]) -> Side:
        return Side(rows[mask], store.label[mask], store.group[mask], store.instance[mask])

    train, test = store.split == "train", store.split == "test"
    if train.any() and test.any():
        return [side(rows, test) for rows in streams], [side(rows, train) for rows in streams]
    return [side(rows, np.ones(len(store), bool)) for rows in streams], None


def classifier_sides(store: Embedded, held_out: float) -> Sides:
    """Who teaches a classifier and who is asked.

    Raises:
        DataError: nobody could be.
    """
    return classification_sides(store.label, store.group, store.split, held_out, seed=0)
