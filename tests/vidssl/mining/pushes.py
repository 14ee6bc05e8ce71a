"""Pushes of random unit rows, for the tests of banks."""

from __future__ import annotations

import numpy as np

from vidssl.batch import Embeddings

__all__ = ["VIEWS", "pushed"]

VIEWS = ("residual", "rgb")


def pushed(rng, slots, step, dim=4) -> Embeddings:
    """Rows of these slots, both views at random."""
    views = {}
    for view in VIEWS:
        rows = rng.standard_normal((len(slots), dim))
        views[view] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(views, np.array(slots, np.int64), step, 0)
