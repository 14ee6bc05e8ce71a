"""What does a step need? Its samples' bytes and every random number, ready for a decoder that knows no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.cache import Cache
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.patience import Patience
from pipelines.dataset.reader import SampleError, ShardReader, Windows
from pipelines.dataset.shards import FLOW, RGB, Stream
from pipelines.loading.augment import INNER, Looks, drawn_looks
from pipelines.loading.crops import crop_looks
from pipelines.loading.windows import drawn_starts, span_of
from vidssl.errors import DataError
from vidssl.recipe import Augment, Clips, Loader

__all__ = ["Fed", "Feed", "Plan", "StreamName", "plans_ahead", "reader_for", "rows_to_take", "streams_of"]

StreamName = Literal["rgb", "flow"]
OF_FLOW = ("flow", "u", "v")
_STREAMS: dict[StreamName, Stream] = {"rgb": RGB, "flow": FLOW}


def streams_of(views: Sequence[str]) -> tuple[StreamName, ...]:
    """The stored streams that views are made of; what no view is made of is neither read nor decoded."""
    rgb: tuple[StreamName, ...] = ("rgb",) if any(view not in OF_FLOW for view in views) else ()
    flow: tuple[StreamName, ...] = ("flow",) if any(view in OF_FLOW for view in views) else ()
    return rgb + flow


@dataclass(frozen=True)
class Plan:
    """Which clips to make; nothing has been read yet.

    Attributes:
        step: Number of the batch.
        epoch: Pass over the data that the step begins in.
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
        videos: stream → uint8 arrays, one per row.
        tables: stream → int32 fragment tables, one per row.
    """

    plan: Plan
    videos: Mapping[str, tuple[NDArray[np.uint8], ...]] = field(default_factory=dict)
    tables: Mapping[str, tuple[NDArray[np.int32], ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Rows."""
        return len(self.plan.instance)


class Feed:
    """Plans batches and reads them; knows which samples are bad.

    Args:
        manifest: The packed data.
        clips: T, stride, clips per video.
        augment: What may be changed.
        seed: Seed of the run.
        patience: How long a disk that does not answer is asked again.
        streams: What is read of each sample.
        reader: Reads them; None: one that keeps nothing.
        windows: Read of each video only what holds its clips.
    """

    def __init__(
        self,
        manifest: Manifest,
        clips: Clips,
        augment: Augment,
        seed: int,
        patience: Patience | None = None,
        streams: tuple[StreamName, ...] = ("rgb",),
        reader: ShardReader | None = None,
        windows: bool = False,
    ) -> None:
        self.streams, self.windows = streams, windows
        self.reader = reader or ShardReader(manifest, patience)
        self.manifest, self.clips, self.augment, self.seed = manifest, clips, augment, seed
        self.span = span_of(clips.frames, clips.stride)

    def training_plan(
        self, step: int, epoch: int, instance: NDArray[np.int64], of_each: NDArray[np.int64] | None = None
    ) -> Plan:
        """Random windows and looks of a step, by address.

        Args:
            step: Number of the batch.
            epoch: Pass over the data that the step begins in.
            instance: int64 [B].
            of_each: int64 [B], the pass that each belongs to; None: `epoch`.
        """
        address = {"seed": self.seed, "epoch": epoch if of_each is None else of_each, "instance": instance}
        frames, count = self.manifest.samples.frames[instance], self.clips.per_video
        start = drawn_starts(frames, self.span, count, **address)
        looks = drawn_looks(self.augment, self._sides(instance), count, step=step, **address)
        alone = looks.alone[:, None]
        one = np.take_along_axis(start, np.maximum(alone, 0), axis=1)
        return Plan(step, epoch, instance, np.where(alone >= 0, one, start), looks)

    def window_plan(
        self,
        step: int,
        instance: NDArray[np.int64],
        start: NDArray[np.int64],
        crops: str = "centre",
        share: float = INNER,
    ) -> Plan:
        """Given windows; `start` is int64 [B]. The crops of a window are its clips, squares of a share of the short side."""
        looks = crop_looks(self._sides(instance), crops, self.augment.normalize, share)
        return Plan(step, 0, instance, np.repeat(start[:, None], looks.mirror.shape[1], axis=1), looks)

    def want(self, plan: Plan, known_bad: Collection[int]) -> None:
        """Say that a plan will be read soon.

        Raises:
            DataError: the index of a shard is damaged.
        """
        rows = [row for row, one in enumerate(plan.instance.tolist()) if one not in known_bad]
        streams = [_STREAMS[stream] for stream in self.streams]
        if self.windows:
            clips = {row: self._of_clips(plan, row) for row in rows}
            self.reader.want_windows([(int(plan.instance[row]), one, clips[row]) for row in rows for one in streams])
        else:
            self.reader.want(plan.instance[rows].tolist(), streams)

    def _of_clips(self, plan: Plan, row: int) -> Windows:
        return Windows(tuple(dict.fromkeys(plan.start[row].tolist())), self.span)

    def read(
        self,
        plan: Plan,
        known_bad: Collection[int],
        replace: bool,
        name: Callable[[Plan, int, str], None] = lambda plan, instance, reason: None,
    ) -> tuple[Fed, dict[int, str]]:
        """The bytes of a plan.

        Args:
            plan: Which clips.
            known_bad: Instances that are not to be tried again.
            replace: Bad rows carry the bytes and numbers of their donor; otherwise they are left out.
            name: Told of each instance that turns out to be bad, and why.

        Returns:
            What was read, and {row of the plan: why it could not be}.

        Raises:
            DataError: no row could be read and bad rows were to be replaced.
            StorageError: a shard cannot be reached.
        """
        read: dict[int, list[tuple[NDArray[np.uint8], NDArray[np.int32]]]] = {}
        faults: dict[int, str] = {}
        for row, instance in enumerate(plan.instance.tolist()):
            try:
                if instance in known_bad:
                    raise SampleError("it failed before")
                read[row] = [self._stored(plan, row, instance, _STREAMS[stream]) for stream in self.streams]
            except SampleError as error:
                faults[row] = str(error)
                name(plan, instance, str(error))
        rows = rows_to_take(len(plan.instance), faults, replace)
        of_stream = {stream: [read[row][number] for row in rows] for number, stream in enumerate(self.streams)}
        videos = {stream: tuple(video for video, _ in those) for stream, those in of_stream.items()}
        tables = {stream: tuple(table for _, table in those) for stream, those in of_stream.items()}
        return Fed(plan.taken(rows), videos, tables), faults

    def _stored(
        self, plan: Plan, row: int, instance: int, stream: Stream
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        if self.windows:
            return self.reader.read_windows(instance, stream, self._of_clips(plan, row))
        return self.reader.read(instance, stream)

    def _sides(self, instance: NDArray[np.int64]) -> NDArray[np.int16]:
        samples = self.manifest.samples
        return np.stack([samples.height[instance], samples.width[instance]], axis=1)


def reader_for(manifest: Manifest, loader: Loader, disk: Patience) -> ShardReader:
    """What reads the samples of a loader, with its cache.

    Raises:
        DataError: the folder of the cache holds what we did not make; a store that cannot be opened.
    """
    folder = None if loader.cache is None else Path(loader.cache).expanduser()
    cache = None if folder is None else Cache(folder, int(loader.cache_gb * 1e9), disk.say)
    return ShardReader(manifest, disk, cache, loader.reads, plans_ahead(loader) + 1)


def plans_ahead(loader: Loader) -> int:
    """Batches whose samples are on their way from a store: as many as may be ready, and the one that is being made."""
    return loader.prefetch + 1


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
