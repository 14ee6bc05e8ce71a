"""Small banks, rows and a seeded order for the tests of the bank's server, client and actor."""

from __future__ import annotations

import time

import numpy as np

from cluster.bank.server import BankServer
from cluster.bank.spec import BankSpec, Push, Wanted
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


def all_rows(step: int = 0) -> Embeddings:
    """A push that gives every video a row: nothing can be mined for one that has none."""
    return rows(step, 7, np.arange(N))


def push(step: int, rank: int = 0, attempt: int = 0, ahead: int = 2) -> Push:
    wanted = Wanted.of(batch_ids(step + ahead, rank), step + ahead)
    return Push(attempt, rank, step, rows(step, rank), wanted)


def question(at: int, rank: int = 0, attempt: int = 0, have: int = -1) -> Push:
    """What is known for the rows of step `at`?"""
    wanted = Wanted.of(batch_ids(at, rank), at)
    return Push(attempt, rank, at - 2, None, Wanted(wanted.ids, wanted.at, np.full(BATCH, have)))


def answered(server: BankServer, at: int, rank: int = 0, attempt: int = 0, have: int = -1, seconds: float = 20):
    """Asks until all rows of step `at` have positives newer than `have`, for so long; None: they never had."""
    deadline = time.monotonic() + seconds
    while True:
        _, answer = server.serve(question(at, rank, attempt, have))
        if answer is not None and len(answer.place) == BATCH:
            return answer.positives
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.01)


def assert_same(one: Positives | None, other: Positives | None) -> None:
    assert one is not None
    assert other is not None
    for name in ("ids", "vectors", "mined_at", "survivors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def saved(server, root: str, step: int) -> str:
    """A snapshot that was asked for and waited for."""
    assert server.begin_save(root, step)
    until(lambda: server.saved(step) is not None)
    return server.saved(step)
