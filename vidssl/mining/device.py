"""Rows of a bank on a device: a copy that is brought up to date before each batch, by the rows that were written since."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.mining.rows import table

__all__ = ["DeviceCopy"]


class DeviceCopy:
    """Tables on a device. One thread at a time.

    Args:
        device: As torch names it.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._of: dict[str, NDArray] = {}
        self._tables: dict[str, Tensor] = {}
        self._stamps: NDArray[np.int64] | None = None

    def of(self, kept: Mapping[str, NDArray], stamps_N: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """The tables as they are now; whole where they are others than last time.

        Args:
            kept: view → [N, R] as a bank keeps rows.
            stamps_N: int64 [N], number of each slot's last write; copied before rows are read.
        """
        now = stamps_N.copy()
        same = self._stamps is not None and all(self._of.get(view) is rows for view, rows in kept.items())
        stale = np.flatnonzero(now != self._stamps) if same and self._stamps is not None else None
        if stale is None:
            self._tables = {view: _tensor(rows).to(self.device, copy=True) for view, rows in kept.items()}
        elif len(stale):
            slots = torch.from_numpy(stale).to(self.device)
            for view, rows in kept.items():
                self._tables[view][slots] = _tensor(rows[stale]).to(self.device)
        self._of, self._stamps = dict(kept), now
        return self._tables


def _tensor(rows: NDArray) -> Tensor:
    read = table(rows)
    return read if isinstance(read, Tensor) else torch.from_numpy(read)
