"""What does a step need? Its samples' bytes and every random number, ready for a decoder that knows no chance.

Samples are read positionally out of the shards (`os.pread` at the offsets of the index), so any order costs the same and
nothing has to be rewound.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.shards import ShardIndex, read_index
from pipelines.loading.augment import Looks, drawn_looks
from pipelines.loading.crops import crop_looks
from pipelines.loading.windows import drawn_starts, span_of
from vidssl.errors import DataError
from vidssl.recipe import Augment, Clips

__all__ = ["Fed", "Feed", "Plan", "ShardReader", "rows_to_take"]

OPEN_SHARDS = 128


@dataclass(frozen=True)
class Plan:
    """Which clips to make; nothing has been read yet.

    Attributes:
        step: Number of the batch.
        epoch: Pass over the data.
        instance: int64 [B].
        start: int64 [B, n_clips], first frames.
        looks: What is done to each clip.
    """

    step: int
    epoch: int
    instance: NDArray[np.int64]
    start: NDArray[np.int64]
    looks: Looks

    def taken(self, rows: NDArray[np.int64]) -> Plan:
        """Some rows, in that order."""
        return Plan(self.step, self.epoch, self.instance[rows], self.start[rows], self.looks.taken(rows))


@dataclass(frozen=True)
class Fed:
    """A plan with the bytes it needs.

    Attributes:
        plan: Which clips.
        videos: uint8 arrays, one per row.
        tables: int32 fragment tables, one per row.
    """

    plan: Plan
    videos: tuple[NDArray[np.uint8], ...]
    tables: tuple[NDArray[np.int32], ...]


class ShardReader:
    """Random access to the samples of a packed folder; indexes stay in memory, up to 128 shards stay open."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._first = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        self._indexes: dict[int, ShardIndex] = {}
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, instance: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Bytes and fragment table of a sample.

        Raises:
            DataError: the shard cannot be read, or the sample is shorter than its index or table say.
        """
        shard = int(self.manifest.samples.shard[instance])
        row = instance - int(self._first[shard])
        video = np.frombuffer(self._component(shard, row, "mp4"), np.uint8)
        table = np.frombuffer(self._component(shard, row, "gop"), "<i4")
        count = int(table[2]) if len(table) > 2 else 0
        if count < 1 or len(table) != 2 * count + 5 or table[0] < 1 or (np.diff(table[3 : 4 + count]) <= 0).any():
            raise DataError("its fragment table is damaged")
        if bytes(video[4:8]) != b"ftyp" or len(video) < table[3 + count]:
            raise DataError("its bytes are no MP4 of the length that its fragment table says")
        return video, table

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _component(self, shard: int, row: int, name: str) -> bytes:
        index = self._indexes.get(shard)
        if index is None:
            index = self._indexes[shard] = read_index(self.manifest.shard_path(shard))
        size = int(index.size[name][row])
        try:
            data = os.pread(self._descriptor(shard), size, int(index.offset[name][row]))
        except OSError as error:
            raise DataError(f"{self.manifest.shards[shard].name} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"{self.manifest.shards[shard].name} ends inside the sample")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.manifest.shard_path(shard), os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]


class Feed:
    """Plans batches and reads them; knows which samples are bad.

    Args:
        manifest: The packed data.
        clips: T, stride, clips per video.
        augment: What may be changed.
        seed: Seed of the run.
    """

    def __init__(self, manifest: Manifest, clips: Clips, augment: Augment, seed: int) -> None:
        self.reader = ShardReader(manifest)
        self.manifest, self.clips, self.augment, self.seed = manifest, clips, augment, seed
        self.span = span_of(clips.frames, clips.stride)

    def training_plan(self, step: int, epoch: int, instance: NDArray[np.int64]) -> Plan:
        """Random windows and looks of a step, by address."""
        address = {"seed": self.seed, "epoch": epoch, "instance": instance}
        frames, count = self.manifest.samples.frames[instance], self.clips.per_video
        start = drawn_starts(frames, self.span, count, **address)
        looks = drawn_looks(self.augment, self._sides(instance), count, **address)
        alone = looks.alone[:, None]
        one = np.take_along_axis(start, np.maximum(alone, 0), axis=1)
        return Plan(step, epoch, instance, np.where(alone >= 0, one, start), looks)

    def window_plan(
        self, step: int, instance: NDArray[np.int64], start: NDArray[np.int64], crops: str = "centre"
    ) -> Plan:
        """Given windows; `start` is int64 [B]. The crops of a window are its clips."""
        looks = crop_looks(self._sides(instance), crops, self.augment.normalize)
        return Plan(step, 0, instance, np.repeat(start[:, None], looks.mirror.shape[1], axis=1), looks)

    def read(self, plan: Plan, known_bad: Collection[int], replace: bool) -> tuple[Fed, dict[int, str]]:
        """The bytes of a plan.

        Args:
            plan: Which clips.
            known_bad: Instances that are not to be tried again.
            replace: Bad rows carry the bytes and numbers of their donor; otherwise they are left out.

        Returns:
            What was read, and {row of the plan: why it could not be}.

        Raises:
            DataError: no row could be read and bad rows were to be replaced.
        """
        read: dict[int, tuple[NDArray[np.uint8], NDArray[np.int32]]] = {}
        faults: dict[int, str] = {}
        for row, instance in enumerate(plan.instance.tolist()):
            try:
                if instance in known_bad:
                    raise DataError("it failed before")
                read[row] = self.reader.read(instance)
            except DataError as error:
                faults[row] = str(error)
        rows = rows_to_take(len(plan.instance), faults, replace)
        videos, tables = zip(*(read[row] for row in rows.tolist()), strict=True) if len(rows) else ((), ())
        return Fed(plan.taken(rows), videos, tables), faults

    def _sides(self, instance: NDArray[np.int64]) -> NDArray[np.int16]:
        samples = self.manifest.samples
        return np.stack([samples.height[instance], samples.width[instance]], axis=1)


def rows_to_take(rows: int, faults: Mapping[int, str], replace: bool) -> NDArray[np.int64]:
    """The good rows; with `replace` every row, the next good one (around the end) in place of each bad one.

    Raises:
        DataError: no row is good and bad ones were to be replaced.
    """
    good = np.array([row for row in range(rows) if row not in faults], np.int64)
    if not replace:
        return good
    if not len(good):
        raise DataError(f"none of the {rows} videos of a batch can be read; the last one: {list(faults.values())[-1]}")
    return good[np.searchsorted(good, np.arange(rows)) % len(good)]
