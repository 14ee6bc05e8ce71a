"""Which sample, which rank, which epoch? One seeded permutation per epoch, laid end to end, cut into global batches.

A step takes the next G = batch · world samples, and rank r the r-th slice of them. So all ranks make the same number of
steps, the same global batch holds the same samples for any number of workers, and what comes next is known without
reading anything. Where the sequence stands is a `Cursor`, which counts samples: it goes on with any other batch and any
other number of workers, and still every sample of an epoch comes exactly once in it.

The last samples of an epoch that fill no global batch share one with the first of the next epoch: none is left out, and
every step is whole. A sample that stands in both parts would come twice in that step, so its place in the new epoch is
passed over and *owed*: it comes first in the step after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.loading.chance import permutation
from vidssl.errors import DataError

__all__ = ["Cursor", "Order", "Taken", "steps_of"]


@dataclass(frozen=True)
class Cursor:
    """Where the sequence stands, whoever goes on from there.

    Attributes:
        epoch: The epoch that is gone through, from 0.
        taken: Samples of its permutation that were taken, below N.
        owed: Places of the permutation that were passed over, ascending; they come next.
    """

    epoch: int = 0
    taken: int = 0
    owed: tuple[int, ...] = ()

    @classmethod
    def of_steps(cls, steps: int, videos: int, together: int) -> Cursor:
        """Of a run that left the last `videos` mod `together` samples of every epoch out, as versions without a cursor did."""
        epoch, step = divmod(steps, videos // together)
        return cls(epoch, step * together)

    @classmethod
    def of_state(cls, state: Mapping[str, Any], videos: int) -> Cursor:
        """Of a loader's state; one of an older version counts steps of its own size."""
        if "taken" not in state:
            return cls.of_steps(int(state["step"]), videos, int(state["batch"]) * int(state["world"]))
        return cls(int(state["epoch"]), int(state["taken"]), tuple(int(place) for place in state["owed"]))

    def state(self) -> dict[str, Any]:
        """For `of_state`."""
        return {"epoch": self.epoch, "taken": self.taken, "owed": list(self.owed)}

    def seen(self, videos: int) -> int:
        """Samples taken since the beginning, of N = `videos` in an epoch."""
        return self.epoch * videos + self.taken


@dataclass(frozen=True)
class Taken:
    """One rank's samples of a step.

    Attributes:
        instance: int64 [B].
        epoch: int64 [B], the epoch that each belongs to; in rank order it never falls.
        first_epoch: That of the first sample of all ranks.
        after: Where the sequence stands then.
    """

    instance: NDArray[np.int64]
    epoch: NDArray[np.int64]
    first_epoch: int
    after: Cursor


class Order:
    """The endless sequence of one rank's batches; stateless: a cursor says all.

    Args:
        rows: int64 [N], the instances to go through.
        batch: B, samples of one rank in one step.
        rank: This rank, 0 … world − 1.
        world: Number of ranks.
        seed: Seed of the run.

    Raises:
        DataError: fewer samples than one global batch.
    """

    def __init__(self, rows: NDArray[np.int64], batch: int, *, rank: int, world: int, seed: int) -> None:
        if len(rows) < batch * world:
            raise DataError(
                f"{len(rows)} videos are fewer than one step needs ({batch} on each of {world} workers); "
                f"set trainer.batch={max(len(rows) // world, 1)} or pack more videos"
            )
        self.rows, self.batch, self.rank, self.world, self.seed = rows, batch, rank, world, seed
        # Four: batches are made ahead of time, and whoever makes them may be an epoch before who asks.
        self._permutation = lru_cache(maxsize=4)(lambda epoch: permutation(seed, epoch, len(rows)))

    def take(self, cursor: Cursor) -> Taken:
        """What this rank takes in the step that begins at `cursor`."""
        instance, epoch, after = self._together(cursor)
        own = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        return Taken(instance[own], epoch[own], cursor.epoch, after)

    def walk(self, cursor: Cursor | None = None) -> Iterator[Taken]:
        """Step after step from `cursor` (None: from the beginning), without an end."""
        cursor = cursor or Cursor()
        while True:
            taken = self.take(cursor)
            yield taken
            cursor = taken.after

    def _together(self, cursor: Cursor) -> tuple[NDArray[np.int64], NDArray[np.int64], Cursor]:
        """Instances and epochs [G] of all ranks, rank after rank, and where the sequence stands after them."""
        size, videos, passed = self.batch * self.world, len(self.rows), cursor.taken + len(cursor.owed)
        fresh = np.arange(passed, min(passed + size, videos))
        places = np.concatenate([np.array(cursor.owed, np.int64), fresh])[:size]
        instance = self.rows[self._permutation(cursor.epoch)[places]]
        if len(places) == size:
            after = Cursor(cursor.epoch, cursor.taken + size, cursor.owed[size:])
            after = Cursor(cursor.epoch + 1) if after.taken == videos else after
            return instance, np.full(size, cursor.epoch), after
        head, after = self._head(cursor.epoch + 1, instance, size - len(places))
        epoch = np.repeat([cursor.epoch, cursor.epoch + 1], [len(instance), len(head)])
        return np.concatenate([instance, head]), epoch, after

    def _head(self, epoch: int, tail: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], Cursor]:
        """The first `count` samples of an epoch that are not among `tail`, the last ones of the epoch before."""
        first = self.rows[self._permutation(epoch)[: len(tail) + count]]
        free = np.flatnonzero(~np.isin(first, tail))[:count]
        owed = np.setdiff1d(np.arange(free[-1]), free)
        return first[free], Cursor(epoch, count, tuple(owed.tolist()))


def steps_of(samples: int, together: int) -> int:
    """Steps of `together` samples that take at least so many samples."""
    return -(-samples // together)
