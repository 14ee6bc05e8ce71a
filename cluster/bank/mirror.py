"""Who mines? The bank's process itself, or miners elsewhere that hold a copy of its rows and are told what changed.

A mirror says up to which write it has seen the bank. What it is sent begins there; where it does not (its process is a new
one), it says so and is sent everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.bank.rows import BankRows
from cluster.bank.spec import BankSpec
from vidssl.batch import Positives
from vidssl.mining.bank import DELTA_ROWS, EmbeddingBank
from vidssl.mining.deltas import Delta, Mark
from vidssl.mining.device import DeviceCopy
from vidssl.mining.rows import stored

__all__ = ["DistantMiner", "Mined", "Miner", "MinerGone", "Mirror", "OwnMiner"]

Ids = NDArray[np.int64]


class MinerGone(ConnectionError):
    """A miner's process cannot be reached just now; what it was mining has to be mined again."""


@dataclass(frozen=True)
class Mined:
    """What a miner found, and the CPU seconds that it took; a distant one leaves the vectors out."""

    found: Positives
    cpu_s: float


class Miner(Protocol):
    """Mines rows of a bank; used by one thread.

    Attributes:
        name: For sentences.
        losses: How often its process was lost, however many calls each cost.
    """

    name: str
    losses: int

    def mine(self, bank: BankRows, ids: Ids) -> Mined:
        """Positives of these videos, from the bank's rows as they are now.

        Raises:
            MinerGone: its process died or does not answer.
        """
        ...


class OwnMiner:
    """Mines in the bank's process."""

    name = "the bank's own miner"
    losses = 0

    def __init__(self, spec: BankSpec) -> None:
        self._spec = spec

    def mine(self, bank: BankRows, ids: Ids) -> Mined:
        """As `Miner.mine`."""
        spec, began = self._spec, time.thread_time()
        found = bank.mine(ids, spec.plan, spec.main, spec.aux, backend=spec.backend, threads=spec.threads)
        return Mined(found, time.thread_time() - began)


class Mirror:
    """A miner's side: a copy of the bank that follows it, on a device and in a dtype of its own.

    Args:
        spec: The run's bank.
        empty: A bank without rows as the run has it, but in this dtype.
        device: Where its rows are compared.
    """

    def __init__(self, spec: BankSpec, empty: EmbeddingBank, device: str = "cpu") -> None:
        self._spec, self._bank = spec, empty
        self._mark: Mark | None = None
        empty.device = None if device == "cpu" else DeviceCopy(device)

    def mine(self, since: Mark | None, delta: Delta, ids: Ids) -> Mined | None:
        """Follow the bank, then mine these videos.

        Args:
            since: What the sender takes for seen here.
            delta: What was written since.
            ids: int64 [B]; none: only follow.

        Returns:
            None: something else was seen here, all has to be sent again.
        """
        if not delta.fresh and since != self._mark:
            return None
        spec, began = self._spec, time.thread_time()
        rows = {view: stored(values, self._bank.dtype) for view, values in delta.rows.items()}
        self._bank.apply(replace(delta, rows=rows))
        self._mark = delta.mark
        threads = spec.cpus_per_miner
        found = self._bank.mine(ids, spec.plan, spec.main, spec.aux, backend=spec.backend, threads=threads)
        return Mined(replace(found, vectors=found.vectors[:, :0]), time.thread_time() - began)


class DistantMiner:
    """The bank's side: sends what changed and what to mine.

    Args:
        name: For sentences.
        call: Calls `Mirror.mine` there.

    Raises (both calls): MinerGone.
    """

    def __init__(self, name: str, call: Callable[[Mark | None, Delta, Ids], Mined | None]) -> None:
        self.name, self.losses, self._call = name, 0, call
        self._mark: Mark | None = None
        self._away = False

    def mine(self, bank: BankRows, ids: Ids) -> Mined:
        """As `Miner.mine`."""
        assert isinstance(bank, EmbeddingBank)  # shards mine by themselves: a recipe that asks for both is refused
        while True:
            delta = bank.changed_since(self._mark)
            last = len(delta.slots) < DELTA_ROWS
            try:
                mined = self._call(self._mark, delta, ids if last else ids[:0])
            except MinerGone:
                self._mark = None
                self.losses += not self._away
                self._away = True
                raise
            self._away = False
            self._mark = None if mined is None else delta.mark
            if mined is not None and last:
                return mined
