"""Which sample, which rank, which epoch? One seeded permutation per epoch, cut into global batches.

Step t of an epoch takes places t·G … (t+1)·G − 1 of its permutation, G = batch · world, and rank r the r-th slice of that.
So every rank makes the same number of steps, an id appears at most once in an epoch, the same global batch holds the same
samples for any number of workers, and what comes next is known without reading anything. The cursor is one number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.loading.chance import permutation
from vidssl.errors import DataError

__all__ = ["Order"]


class Order:
    """The endless sequence of one rank's batches; stateless: a step number is the whole cursor.

    The last `N mod G` samples of each epoch's permutation are left out of that epoch; which ones, changes every epoch.

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
        self._permutation = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(rows)))

    @property
    def steps_per_epoch(self) -> int:
        """floor(N / G)."""
        return len(self.rows) // (self.batch * self.world)

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return step // self.steps_per_epoch

    def global_ids(self, step: int) -> NDArray[np.int64]:
        """Instances of all ranks in a step, int64 [G], rank after rank."""
        size = self.batch * self.world
        begin = step % self.steps_per_epoch * size
        return self.rows[self._permutation(self.epoch(step))[begin : begin + size]]

    def ids(self, step: int) -> NDArray[np.int64]:
        """Instances of this rank in a step, int64 [B]."""
        return self.global_ids(step)[self.rank * self.batch : (self.rank + 1) * self.batch]
