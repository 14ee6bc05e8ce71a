"""Every engine mines in every space what the definition of the cascade gives on the space's own rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vidssl.mining.space_worlds import two_views
from vidssl.batch import Embeddings
from vidssl.mining import cascade
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.mapped import MappedRows
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import DTYPES, floats

VIEWS, D, CASES, ASKED = ("residual", "rgb"), 16, 30, 6
CLEAR = 3e-6
"""Scores closer than this may come in another order from another library's product."""


def by_definition(images, row, sizes, order, own):
    """The survivors in float64, best first; None where two of them are too close to call at a cut or in the order."""
    scores = [rows @ rows[row] for rows in images]
    alive = np.setdiff1d(np.arange(len(images[0])), own)
    for stage, (view, size) in enumerate(zip(order, sizes, strict=True)):
        ranked = alive[np.argsort(-scores[view][alive], kind="stable")]
        gaps = -np.diff(scores[view][ranked])
        if gaps[size - 1] < CLEAR or (stage == len(sizes) - 1 and (gaps[:size] < CLEAR).any()):
            return None
        alive = np.sort(ranked[:size])
    return ranked[: sizes[-1]]


@pytest.mark.parametrize("backend", ["whole", "stream", "torch", "faiss"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["raw", "white", "canonical"])
def test_every_engine_mines_in_every_space_what_the_definition_gives(kind, dtype, backend, monkeypatch):
    monkeypatch.setattr(cascade, "STREAM_FROM", 0 if backend == "stream" else 10**9)
    engine = "numpy" if backend in ("whole", "stream") else backend
    compared = 0
    for case in range(CASES):
        rng = np.random.default_rng(case)
        count, stages = int(rng.integers(120, 300)), int(rng.choice([1, 3, 4, 5]))
        plan = CascadePlan(count, stages, float(rng.uniform(0.4, 0.7)), 3)
        pairs = np.arange(count) // 2  # siblings, which no one may mine
        bank = EmbeddingBank(count, D, VIEWS, pairs, dtype, mapped=MappedRows(kind, seed=case))
        views, _ = two_views(count, D, seed=case)
        bank.push(Embeddings(views, np.arange(count), 0, 0))
        asked = rng.choice(count, ASKED, replace=False)
        found = bank.mine(asked, plan, *VIEWS, backend=engine).ids
        images = [floats(bank.mapped.tables(bank)[0][view]).astype(np.float64) for view in VIEWS]
        for row, slots in zip(asked, found, strict=True):
            expected = by_definition(images, row, plan.sizes(count), plan.views, [row - row % 2, row - row % 2 + 1])
            if expected is not None:
                compared += 1
                np.testing.assert_array_equal(slots, expected)
    assert compared >= 0.9 * CASES * ASKED
