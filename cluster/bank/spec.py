"""What do workers and the bank say to each other? The run's bank in numbers, a push, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings
from vidssl.mining.cascade import Backend
from vidssl.mining.plan import CascadePlan

__all__ = ["BankSpec", "Began", "Push", "Verdict"]

Verdict = Literal["ok", "late", "lost"]
"""Answer to a push: taken; of an attempt or step that is over; or the bank lost the steps before it (deterministic)."""


@dataclass(frozen=True)
class BankSpec:
    """One run's bank, small enough to be sent to every worker.

    Attributes:
        n_slots: N, videos in the manifest.
        dim: D.
        main: View that mines first and last.
        aux: The trained view, whose rows are handed out.
        plan: The cascade.
        root: Folder of snapshots; "" for none.
        data_hash: Manifest hash that snapshots carry.
        world: Ranks that push.
        deterministic: Order pushes by (step, rank), mine between steps.
        lookahead: Steps between a push and the rows it asks for.
        max_staleness_steps: Older positives are not used.
        backend: As in `vidssl.mining.cascade.mine`.
        dtype: Of the bank's rows.
        threads: Of mining, matrix products included.
        snapshot_every_steps: Extra snapshots under `root/live` that a restarted bank finds; 0: none.
        keep: Snapshots kept.
        labelled: Whether mining precision is measured.
    """

    n_slots: int
    dim: int
    main: str
    aux: str
    plan: CascadePlan
    root: str = ""
    data_hash: str | None = None
    world: int = 1
    deterministic: bool = False
    lookahead: int = 2
    max_staleness_steps: int = 200
    backend: Backend = "auto"
    dtype: str = "float32"
    threads: int = 1
    snapshot_every_steps: int = 0
    keep: int = 2
    labelled: bool = False


@dataclass(frozen=True)
class Began:
    """What a bank answers to `BankServer.reset`.

    Attributes:
        attempt: Number of the training attempt; every push carries it.
        said: Where its rows are not those of the step, a sentence that says so; "" otherwise.
    """

    attempt: int
    said: str


@dataclass(frozen=True)
class Push:
    """What a worker sends after a step.

    Attributes:
        attempt: Number of the training attempt, from `BankServer.reset`.
        rows: The step's embeddings.
        next_ids: int64 [B], instances the rank will need positives for; None asks for nothing.
        next_step: The step in which it will need them.
    """

    attempt: int
    rows: Embeddings
    next_ids: NDArray[np.int64] | None
    next_step: int
