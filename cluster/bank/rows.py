"""Where do the bank's rows lie? In the bank's own process, or in shards elsewhere; the server sees no difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.bank.spec import BankSpec
from vidssl.batch import Embeddings, Positives
from vidssl.mining.arrivals import Taken
from vidssl.mining.cascade import Backend
from vidssl.mining.mapped import MappedRows
from vidssl.mining.moments import Moment
from vidssl.mining.plan import CascadePlan
from vidssl.mining.snapshots import InParts, load_snapshot

__all__ = ["BankRows", "OwnProcess", "PartedMoment", "Place", "Say"]

Say = Callable[[str], None]


class PartedMoment(InParts, Protocol):
    """As `vidssl.mining.moments.Moment`, of rows elsewhere.

    Attributes:
        kept_rows: Rows that were set aside because they were overwritten meanwhile.
        most_bytes: Most memory that it took, of all shards together.
    """

    kept_rows: int
    most_bytes: int

    def __enter__(self) -> PartedMoment:
        """Close it when the block ends."""
        ...

    def __exit__(self, *error: object) -> None:
        """Nothing is set aside any more."""
        ...


class BankRows(Protocol):
    """What the bank's process asks of its rows: an `EmbeddingBank`, or a `ShardedBank`.

    Attributes:
        n_slots: N.
        version: int64 [N], step of the last write, -1 where never written.
        step: Newest step that was written, -1 at first.
        mapped: The space that is mined in.

    Raises (`vectors`, `mine`): MinerGone, where the rows cannot be reached just now.
    """

    n_slots: int
    version: NDArray[np.int64]
    step: int
    mapped: MappedRows

    @property
    def filled(self) -> int:
        """Slots that hold a row."""
        ...

    def push(self, rows: Embeddings) -> Taken:
        """As `EmbeddingBank.push`; waits for nobody."""
        ...

    def rewind(self, step: int) -> None:
        """As `EmbeddingBank.rewind`."""
        ...

    def vectors(self, ids: NDArray[np.int64], view: str) -> NDArray[np.float32]:
        """As `EmbeddingBank.vectors`."""
        ...

    def mine(
        self,
        ids: NDArray[np.int64],
        plan: CascadePlan,
        main: str,
        aux: str,
        *,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> Positives:
        """As `EmbeddingBank.mine`, after everything that was pushed before."""
        ...

    def moment(self) -> Moment | PartedMoment:
        """As `EmbeddingBank.moment`.

        Raises:
            StorageError: the rows cannot be reached just now.
        """
        ...


class Place(Protocol):
    """Makes banks, one for each attempt; the former one goes on until the new one is there."""

    def empty(self, wait: bool = True) -> BankRows:
        """A bank without rows.

        Args:
            wait: Until its processes are there; otherwise they may come up later.

        Raises:
            StorageError: they do not.
        """
        ...

    def load(self, path: Path, say: Say) -> BankRows:
        """A bank with the rows of a snapshot.

        Raises:
            BankError: it is damaged or does not fit.
            StorageError: the processes that should read it do not answer.
        """
        ...

    def only(self, bank: BankRows) -> None:
        """Give back what other banks made here still hold."""
        ...


class OwnProcess:
    """Rows in this process.

    Args:
        spec: The run's bank.
        group: int64 [N] or None, see `EmbeddingBank`.
    """

    def __init__(self, spec: BankSpec, group: NDArray[np.int64] | None) -> None:
        self._spec, self._group = spec, group

    def empty(self, wait: bool = True) -> BankRows:
        """See `Place.empty`."""
        return self._spec.empty_bank(self._group)

    def load(self, path: Path, say: Say) -> BankRows:
        """See `Place.load`."""
        return load_snapshot(path, self._spec.empty_bank(self._group), self._spec.data_hash, say)

    def only(self, bank: BankRows) -> None:
        """See `Place.only`: a bank here goes with whoever holds it."""
