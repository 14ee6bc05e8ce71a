"""A loader without cost: the first batches of a real one, again and again. Only to measure what a faster loader could bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.loader import LoaderMeter, TrainLoader
from vidssl.batch import ClipBatch

__all__ = ["CachedLoader"]


class CachedLoader:
    """Serves what a training asks of its loader; the real loader is closed after its first batches, and its cores are free.

    Args:
        loader: The real one, before its first batch.
        batches: How many are kept, on the device.
    """

    def __init__(self, loader: TrainLoader, batches: int) -> None:
        self._loader, self._wanted, self._delivered = loader, batches, 0
        self._kept: list[ClipBatch] = []
        self.meter = LoaderMeter()

    @property
    def seen(self) -> int:
        """Samples that all ranks together delivered."""
        return self._delivered * self._loader.spec.batch * self._loader.order.world

    def __next__(self) -> ClipBatch:
        kept = self._batches()[self._delivered % self._wanted]
        batch = replace(kept, step=self._delivered)
        self._delivered += 1
        return batch

    def upcoming(self, ahead: int) -> NDArray[np.int64]:
        """Instances of the batch `ahead` steps after the last delivered one, int64 [B]."""
        return self._batches()[(self._delivered + ahead - 1) % self._wanted].on_host("instance")

    def state_dict(self) -> dict[str, Any]:
        """That of the real loader: nothing goes on from a run with kept batches."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Never: a run with kept batches is begun and ended in one go."""
        raise RuntimeError("a loader with kept batches does not go on from a state")

    def close(self) -> None:
        """End the real loader."""
        self._loader.close()

    def _batches(self) -> list[ClipBatch]:
        if not self._kept:
            self._kept = [self._loader.next() for _ in range(self._wanted)]
            self._loader.close()
        return self._kept
