"""The three things that cross layers: `ClipBatch` (loader → method), `Embeddings` (worker → bank), `Positives` (bank → method).

Shape letters, used as name suffixes everywhere: B clips per rank, V views, C channels, T frames, H W, D embedding,
N bank slots, K queue length, k positives, S stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.transfer import Later, sent

__all__ = ["ClipBatch", "Embeddings", "Positives"]


@dataclass(frozen=True)
class ClipBatch:
    """One rank's clips of one step.

    Attributes:
        clips: view name → float tensor [B, n_clips, C, T, H, W], normalised; all views of a row show the same frames,
            crop and flip. Flow is in pixels per frame, or a picture normalised like RGB (`flow_encoding=parity`).
        instance: int64 [B], dense 0..N-1: the row of the manifest and the slot of the bank.
        group: int64 [B]; videos cut from one source share it and are never each other's positive.
        label: int64 [B], -1 unknown; read by metrics and UberNCE only, never by a miner.
        epoch: Epoch of the order that the first row of all ranks belongs to, from 0; the rows after it may be of the next.
        step: Global optimizer step this batch belongs to, from 0.
        start: int64 [B, n_clips], first source frame of each clip (what was seen can be said and repeated).
        host: Columns (instance, group, label, start) as the loader knew them, see `on_host`; those it left out are not there.
        part: Which part of the step's batch this is, from 0 (`trainer.accumulate`).
        parts: How many parts the step has.
    """

    clips: Mapping[str, Tensor]
    instance: Tensor
    group: Tensor
    label: Tensor
    epoch: int
    step: int
    start: Tensor
    host: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    part: int = 0
    parts: int = 1

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return int(self.instance.shape[0])

    @property
    def ends(self) -> bool:
        """Whether the step has no further part: what a step remembers is remembered now."""
        return self.part == self.parts - 1

    def on_host(self, name: Literal["instance", "group", "start"]) -> NDArray[np.int64]:
        """A column where the host can read it; one that did not come from a loader is read from the device, which waits."""
        return self.host[name] if name in self.host else getattr(self, name).cpu().numpy()

    def taken(self, rows: slice) -> ClipBatch:
        """Some of the rows."""
        columns = {name: getattr(self, name)[rows] for name in ("instance", "group", "label", "start")}
        host = {name: values[rows] for name, values in self.host.items()}
        return replace(self, clips={view: clips[rows] for view, clips in self.clips.items()}, host=host, **columns)

    def split(self, parts: int) -> list[ClipBatch]:
        """Parts of equally many rows, in order."""
        size = self.size // parts
        shares = [self.taken(slice(part * size, (part + 1) * size)) for part in range(parts)]
        return [replace(share, part=part, parts=parts) for part, share in enumerate(shares)]


@dataclass(frozen=True)
class Embeddings:
    """What one worker pushes to the bank after one step.

    Attributes:
        views: view name → [B, D] unit rows, float16 or float32 (or bits of bfloat16, see `vidssl.mining.rows`), or rows that
            are still under way to the host.
        instance: int64 [B], the slots they belong to.
        step: Step that made them.
        rank: Rank that made them.
    """

    views: Mapping[str, NDArray[np.floating | np.uint16] | Later]
    instance: NDArray[np.int64]
    step: int
    rank: int


@dataclass(frozen=True)
class Positives:
    """Mined positives of one batch.

    Attributes:
        ids: int64 [B, k] bank slots, best first, -1 where there is none.
        vectors: float32 [B, k, D], the trained view's bank rows of `ids` (zeros where -1).
        mined_at: int64 [B], the step whose embeddings the row was mined from; -1 where nothing was mined.
        survivors: int64 [B, S], how many candidates were left after each stage (0 where nothing was mined).
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    mined_at: NDArray[np.int64]
    survivors: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @classmethod
    def none(cls, rows: int, k: int, dim: int, stages: int = 0) -> Positives:
        """Positives of a batch for which nothing was mined: each row falls back to its own instance."""
        return cls(
            ids=np.full((rows, k), -1, np.int64),
            vectors=np.zeros((rows, k, dim), np.float32),
            mined_at=np.full(rows, -1, np.int64),
            survivors=np.zeros((rows, stages), np.int64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Positives]) -> Positives:
        """Rows of several, one after the other; at least one."""
        names = ("ids", "vectors", "mined_at", "survivors")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def tensors(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """`ids` and `vectors` as tensors on `device`."""
        place = torch.device(device)
        return sent(torch.as_tensor(self.ids), place), sent(torch.as_tensor(self.vectors), place)

    def split(self, parts: int) -> list[Positives]:
        """Those of `ClipBatch.split`."""
        names = ("ids", "vectors", "mined_at", "survivors")
        cut = {name: np.split(getattr(self, name), parts) for name in names}
        return [Positives(**{name: cut[name][part] for name in names}) for part in range(parts)]
