"""Small banks, rows and a seeded order for the tests of the bank's server, client and actor."""

from __future__ import annotations

import numpy as np

from cluster.bank.spec import BankSpec, Push
from vidssl.batch import Embeddings, Positives
from vidssl.mining.plan import CascadePlan

N, DIM, BATCH = 48, 8, 6


def spec(**changes) -> BankSpec:
    plan = CascadePlan(N, 3, 0.5, 3)
    return BankSpec(**{"n_slots": N, "dim": DIM, "main": "residual", "aux": "rgb", "plan": plan} | changes)


def batch_ids(step: int, rank: int = 0) -> np.ndarray:
    """The seeded order: which instances a rank has in a step."""
    return np.random.default_rng(step).permutation(N)[rank * BATCH : (rank + 1) * BATCH].astype(np.int64)


def rows(step: int, rank: int = 0, ids: np.ndarray | None = None) -> Embeddings:
    rng = np.random.default_rng((step, rank))
    slots = batch_ids(step, rank) if ids is None else ids
    views = {}
    for view in ("residual", "rgb"):
        values = rng.standard_normal((len(slots), DIM)).astype(np.float32)
        views[view] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return Embeddings(views, slots, step, rank)


def push(step: int, rank: int = 0, attempt: int = 0, ahead: int = 2) -> Push:
    return Push(attempt, rows(step, rank), batch_ids(step + ahead, rank), step + ahead)


def assert_same(one: Positives | None, other: Positives | None) -> None:
    assert one is not None
    assert other is not None
    for name in ("ids", "vectors", "mined_at", "survivors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
