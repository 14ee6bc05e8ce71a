"""Where a bank begins that lies in shards: with no rows, or with those of a snapshot, of which each shard reads its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from cluster.bank.rows import BankRows, Say
from cluster.bank.shard_actor import Opened
from cluster.bank.shards import ShardedBank
from cluster.bank.spec import BankSpec
from vidssl.errors import StorageError
from vidssl.mining.snapshots import fitting_info, other_dtype, space_of

__all__ = ["ShardPlace"]

START_S = 120.0


class ShardPlace:
    """Makes banks in the same shards, one for each attempt.

    Args:
        actors: Handles of `ShardActor`, in the order of their slots.
        cuts: First slot of each, and N.
        spec: The run's bank.
        group: int64 [N] or None.
        say: Told about shards that were lost.
    """

    def __init__(
        self, actors: Sequence[Any], cuts: Sequence[int], spec: BankSpec, group: NDArray[np.int64] | None, say: Say
    ) -> None:
        self._actors, self._cuts, self._spec, self._group, self._say = actors, cuts, spec, group, say
        self._numbers = 0
        self._present: list[ShardedBank] = []

    def empty(self, wait: bool = True) -> BankRows:
        """See `cluster.bank.rows.Place`."""
        bank = self._bank()
        if wait:
            bank.begun(self._opened(bank, None), -1)
        else:
            bank.watch.expect(None)
        return bank

    def load(self, path: Path, say: Say) -> BankRows:
        """See `cluster.bank.rows.Place`."""
        bank = self._bank()
        info, _ = fitting_info(path, bank, self._spec.data_hash)
        bank.begun(self._opened(bank, str(path)), info.bank_step)
        bank.mapped = space_of(path, info, bank)
        if other := other_dtype(path, info, bank.dtype):
            say(other)
        return bank

    def only(self, bank: BankRows) -> None:
        """See `cluster.bank.rows.Place`."""
        self._forget([other for other in self._present if other is not bank])

    def _bank(self) -> ShardedBank:
        self._numbers += 1
        bank = ShardedBank(self._actors, self._cuts, self._spec, self._group, self._numbers, self._say)
        self._present.append(bank)
        return bank

    def _opened(self, bank: ShardedBank, source: str | None) -> list[Opened]:
        try:
            return ray.get([actor.open.remote(bank.watch.number, source) for actor in self._actors], timeout=START_S)
        except RayTaskError as error:
            self._forget([bank])
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayError, TimeoutError) as error:
            self._forget([bank])
            raise StorageError(
                f"the bank's {len(self._actors)} shards did not start within {START_S:g} s ({type(error).__name__}); "
                "look at the run's Ray log"
            ) from error

    def _forget(self, banks: Sequence[ShardedBank]) -> None:
        for bank in banks:
            bank.watch.close()
            self._present.remove(bank)
        for actor in self._actors:
            actor.forget.remote([bank.watch.number for bank in banks])
