"""What do workers and the bank say to each other? The run's bank in numbers, a push, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings, Positives
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.cascade import Backend
from vidssl.mining.mapped import MappedRows
from vidssl.mining.plan import CascadePlan
from vidssl.mining.pool import EVERY_ROWS, PoolKind, SlotPool
from vidssl.mining.rows import stored
from vidssl.mining.space import AskedSpace
from vidssl.transfer import Later

__all__ = ["Answer", "BankSpec", "Began", "Push", "Verdict", "Wanted"]

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
        lookahead: `mining.lookahead`.
        epoch_steps: Steps in which every row is needed once.
        max_staleness_steps: Older positives are not used. None: one epoch, or what the miners need to come round, see
            `cluster.bank.table.Pace`.
        backend: As in `vidssl.mining.cascade.mine`.
        dtype: Of the bank's rows.
        threads: Of mining in the bank's process, matrix products included.
        miners: Actors that mine; 0: the bank's process does.
        cpus_per_miner: Cores of each.
        gpus_per_miner: Share of a GPU of each; 0: none.
        miner_dtype: Of their rows.
        miner_node: Ray resource of the nodes that they run on; "": any.
        snapshot_every_steps: Extra snapshots under `root/live` that a restarted bank finds; 0: none.
        keep: Snapshots kept.
        labelled: Whether mining precision is measured.
        space: As `mining.space`.
        refit_steps: As `mining.refit_steps`.
        shards: Processes that hold the rows; 1: the bank's own does.
        cpus_per_shard: Cores booked for each, and its threads; 0: none, and one thread.
        shard_node: Ray resource of the nodes that they run on; "": any.
        node: Ray resource of the nodes that the bank's process may run on; "": the driver's, as long as it has the memory.
        pool_slots: As `mining.pool_slots`.
        pool_of: As `mining.pool_of`.
        seed: Of the fits of the space, and of what is drawn.
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
    epoch_steps: int = 200
    max_staleness_steps: int | None = None
    backend: Backend = "auto"
    dtype: str = "float32"
    threads: int = 1
    miners: int = 0
    cpus_per_miner: int = 1
    gpus_per_miner: float = 0.0
    miner_dtype: str = "float32"
    miner_node: str = ""
    snapshot_every_steps: int = 0
    keep: int = 2
    labelled: bool = False
    space: AskedSpace = "raw"
    refit_steps: int | None = None
    shards: int = 1
    cpus_per_shard: int = 1
    shard_node: str = ""
    node: str = ""
    pool_slots: int | None = None
    pool_of: PoolKind = "random"
    seed: int = 0

    @property
    def views(self) -> tuple[str, ...]:
        """Views of its rows."""
        return tuple(dict.fromkeys((self.main, self.aux)))

    @property
    def pool(self) -> SlotPool | None:
        """What draws the slots to mine among; None: all of them. A deterministic run draws anew for every batch."""
        if self.pool_slots is None:
            return None
        return SlotPool(self.pool_slots, self.pool_of, self.seed, 1 if self.deterministic else EVERY_ROWS)

    @property
    def memory(self) -> int:
        """Bytes that the bank's process needs for rows and what is mined from them; with shards it holds slots alone."""
        width = 0 if self.shards > 1 else len(self.views) * self.dim * (4 if self.dtype == "float32" else 2)
        return self.n_slots * (2 * width + 64)  # twice: a snapshot is of one moment, and rows of the space lie beside

    @property
    def horizon(self) -> int:
        """Steps between a push and the rows that it says will be needed.

        A deterministic run waits for its answer. Otherwise a push is answered from what is known at that moment: rows that
        it names are mined meanwhile and come with the answer to the next push, one step later.
        """
        return self.lookahead + (not self.deterministic)

    def empty_bank(self, group: NDArray[np.int64] | None, dtype: str | None = None) -> EmbeddingBank:
        """A bank of this run without rows; `dtype`: other than the run's."""
        kept = dtype or self.dtype
        return EmbeddingBank(self.n_slots, self.dim, self.views, group, kept, self.pool, self.empty_space())

    def empty_space(self) -> MappedRows:
        """The space that it mines in, before anything was fitted."""
        return MappedRows(self.space, self.refit_steps, self.seed)


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
class Wanted:
    """Rows that a rank will need, R of them, of all steps that it has named and not come to yet.

    All of them are named with every push: a push that was lost, or a bank that was restarted, loses nothing for good.

    Attributes:
        ids: int64 [R], videos.
        at: int64 [R], the step that needs the row.
        have: int64 [R], when the positives that the rank has for it were mined; -1: it has none.
    """

    ids: NDArray[np.int64]
    at: NDArray[np.int64]
    have: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.int64], step: int) -> Wanted:
        """Rows of one step for which nothing is there yet."""
        return cls(ids, np.full(len(ids), step, np.int64), np.full(len(ids), -1, np.int64))

    @property
    def steps(self) -> list[int]:
        """The steps, in rising order."""
        return np.unique(self.at).tolist()


@dataclass(frozen=True)
class Push:
    """What a worker sends after a step: the one call of training to the bank.

    Attributes:
        attempt: Number of the training attempt, from `BankServer.reset`.
        rank: Who.
        step: The step that was done.
        rows: Its embeddings; None: only a question.
        wanted: What the rank will need next.
    """

    attempt: int
    rank: int
    step: int
    rows: Embeddings | None
    wanted: Wanted

    def arrived(self, dtype: str) -> Push:
        """The same, with its rows on the host, as a bank of this dtype keeps them; waits for rows under way from a GPU."""
        if self.rows is None:
            return self
        here = {
            view: stored(rows.read().numpy() if isinstance(rows, Later) else np.asarray(rows), dtype)
            for view, rows in self.rows.views.items()
        }
        return replace(self, rows=replace(self.rows, views=here))


@dataclass(frozen=True)
class Answer:
    """What is known, at the moment of a push, for the rows that the rank will need.

    Attributes:
        place: int64 [R], which rows of `Push.wanted` have newer positives than the rank has.
        positives: Of these rows.
    """

    place: NDArray[np.int64]
    positives: Positives
