"""The one door: packed data in, `ClipBatch` after `ClipBatch` out, exactly repeatable from any step.

Part one (order, windows, looks, bytes) holds all randomness, by address; part two (the DALI graph) is stateless. So the
state of a loader is the cursor of the order after the batches it delivered: it counts samples, so that any number of
workers with any batch can go on from it, and batches made ahead of time never leak into it.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.patience import AGAIN, Patience, Say, say_in_log
from pipelines.loading.augment import INNER
from pipelines.loading.beside import beside
from pipelines.loading.crops import Crops, crops_of_window
from pipelines.loading.decode import resolve_decode
from pipelines.loading.feed import Feed, Plan, reader_for, streams_of
from pipelines.loading.flow import refuse_without_flow, views_of
from pipelines.loading.meter import LoaderMeter
from pipelines.loading.order import Cursor, Order, Taken, steps_of
from pipelines.loading.prefetch import Prefetched
from pipelines.loading.stages import Stages
from pipelines.loading.stream import BadSample, ClipStream, Made
from pipelines.loading.windows import Rule, padded_in_front, window_starts
from vidssl.batch import ClipBatch
from vidssl.errors import CheckpointError, DeviceError
from vidssl.recipe import Augment, Clips, Loader
from vidssl.transfer import sent

__all__ = ["EvalLoader", "LoaderMeter", "LoaderSpec", "TrainLoader"]


@dataclass(frozen=True)
class LoaderSpec:
    """What kind of batches to make.

    Attributes:
        clips: Frames, stride, size, clips per video, form of the residual.
        augment: Preset and flips (training only), scale of the colours (always).
        loader: Decoder, threads, batches ahead, error budget, patience with disks.
        views: Streams to make of each clip.
        batch: Videos of one rank in a training step; windows at once in evaluation.
        seed: Seed of order, windows and augmentation.
        flow_channels: Channels of the view `flow`, 2 or 3 (`model.flow_channels`).
    """

    clips: Clips
    augment: Augment
    loader: Loader
    views: tuple[str, ...]
    batch: int
    seed: int
    flow_channels: int = 2


class TrainLoader:
    """Endless training batches of one rank.

    Nothing is started before the first batch is asked for, so a state can be loaded first.

    Args:
        manifest: The packed data.
        spec: Kind of batches.
        rank: This rank.
        world: Number of ranks.
        device: Where the clips go.
        split: Split to train on; None: everything.
        instances: int64, the videos to train on, instead of a split.
        say: Told of disks that do not answer, and when they do again.
        on_bad: Told of each bad sample when it is found; on the thread that reads.

    Raises:
        DataError: fewer videos than one global batch, no such split, a decoder that does not know the pack's codec, or a
            view of flow and a pack without.
        DeviceError: a GPU or decoder that is not there.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: LoaderSpec,
        *,
        rank: int,
        world: int,
        device: torch.device,
        split: str | None = None,
        instances: NDArray[np.int64] | None = None,
        say: Say = say_in_log,
        on_bad: Callable[[BadSample], None] = lambda bad: None,
    ) -> None:
        self.manifest, self.spec, self.split, self.device = manifest, spec, split, _usable(device)
        self._say, self._on_bad = say, on_bad
        refuse_without_flow(manifest, spec.views)
        if rank == 0 and not manifest.checked:
            say(_unchecked(manifest))
        rows = manifest.rows(split) if instances is None else instances
        self._chosen = None if instances is None else f"{len(rows)} videos, {zlib.crc32(rows.tobytes()):08x}"
        self.order = Order(rows, spec.batch, rank=rank, world=world, seed=spec.seed)
        self.decode = resolve_decode(spec.loader.decode, manifest.codec, device, training=True)
        self.meter = LoaderMeter()
        self._delivered, self._cursor = 0, Cursor()
        self._ahead: deque[Taken] = deque()
        self._prefetched: Prefetched[tuple[ClipBatch, tuple[BadSample, ...]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that it takes, from the beginning of an epoch, until all its videos were seen: the last may bring some of the next."""
        return steps_of(len(self.order.rows), self.spec.batch * self.order.world)

    @property
    def seen(self) -> int:
        """Samples that all ranks together delivered, since the run began."""
        return self._cursor.seen(len(self.order.rows))

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        return self.next()

    def next(self) -> ClipBatch:
        """The next batch.

        Raises:
            DataError: more bad samples than `loader.bad_rate` and `loader.bad_floor` allow.
            StorageError: a shard that cannot be reached for `loader.patience` seconds.
        """
        if self._prefetched is None:
            closed = threading.Event()
            self.meter.disk = Patience(self.spec.loader.patience, self._say, closed)
            self._prefetched = Prefetched(self._batches, self.spec.loader.prefetch, "vidssl-loader", closed)
        self.meter.stages.asked += 1
        self.meter.stages.ready += self._prefetched.filled
        before = time.perf_counter()
        batch, bad = next(self._prefetched)
        self.meter.wait_s += time.perf_counter() - before
        self.meter.batches += 1
        self.meter.bad.extend(bad)
        self._cursor = self._peek(1).after
        self._ahead.popleft()
        self._delivered += 1
        return batch

    def upcoming(self, ahead: int) -> NDArray[np.int64]:
        """Instances of this rank's batch `ahead` steps after the last delivered one, int64 [B]; 1 is the next one.

        They are what the order says; a row whose sample turns out bad comes with another row's instance.
        """
        return self._peek(ahead).instance

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands after the last delivered batch, as JSON can hold it; equal on all ranks.

        `epoch`, `taken` and `owed` are the order's cursor, `step` counts batches. Bad samples are no part of it: whoever
        goes on from here tries them again.
        """
        split = {"batch": self.spec.batch, "world": self.order.world}
        return {**self._identity(), **split, "step": self._delivered, **self._cursor.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader that gave `state` stood: same samples, same frames, same pixels.

        With another batch or number of workers the rest of the epoch comes in other batches, each sample of it once. A
        state of an older version has no cursor, and its run left the last samples of every epoch out; from here on they come.

        Raises:
            CheckpointError: the state belongs to other data or another seed.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise CheckpointError(
                    f"the loader's state has {name}={state.get(name)}, this run has {here}: "
                    "its order would not go on; resume with the same setting or start a new run"
                )
        self.close()
        self._delivered, self._cursor = int(state["step"]), Cursor.of_state(state, len(self.order.rows))
        self._ahead.clear()
        self.meter.bad = []

    def close(self) -> None:
        """End the background thread."""
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def _identity(self) -> dict[str, Any]:
        about = {"data": self.manifest.hash, "split": self.split, "seed": self.spec.seed}
        return about if self._chosen is None else about | {"instances": self._chosen}

    def _batches(self) -> Iterator[tuple[ClipBatch, tuple[BadSample, ...]]]:
        spec = self.spec
        feed = _feed(self.manifest, spec, self.meter.disk)
        stages, ways = self.meter.stages, {"replace": True, "on_bad": self._on_bad}
        stream = _stream(spec, feed, self.device, spec.clips.per_video, stages=stages, **ways)
        for made in stream.batches(self._plans(feed, self._delivered, self._cursor)):
            with stages.timed("handover"):
                batch = _batch_of(made, made.clips, self.manifest, spec, self.device)
            yield batch, made.bad

    def _plans(self, feed: Feed, step: int, cursor: Cursor) -> Iterator[Plan]:
        for taken in self.order.walk(cursor):
            yield feed.training_plan(step, taken.first_epoch, taken.instance, taken.epoch)
            step += 1

    def _peek(self, ahead: int) -> Taken:
        """This rank's samples `ahead` steps after the last delivered ones."""
        while len(self._ahead) < ahead:
            self._ahead.append(self.order.take(self._ahead[-1].after if self._ahead else self._cursor))
        return self._ahead[ahead - 1]


class EvalLoader:
    """Windows of given videos, one window and crop per row (`n_clips` = 1): video by video, window by window, crop by crop.

    A video that cannot be decoded is left out and named in `meter.bad`; `ClipBatch.step` counts batches. All crops of a
    window are in one batch, so row r of a batch shows crop r mod `crops_per_window`. A window is decoded once for its ten
    crops.

    Args:
        manifest: The packed data.
        spec: Kind of batches; preset and clips per video are not read. `batch` counts rows; a batch holds one window at least.
        instances: int64, the videos, in the order wanted; None: all.
        windows: The most windows of a video; 0 or None: no limit.
        rule: Which windows: `spread`, `p1` or `p2`, see `pipelines.loading.windows`.
        crops: Which part of the frame: `centre`, `inner` or `ten`, see `pipelines.loading.crops`. Under `p2` the centre is `inner`,
            as published.
        share: Side of the squares of `inner` and `ten` in short sides of the frame (`evaluation.crop`).
        device: Where the clips go.

    Attributes:
        instance: int64 [R], video of each row if no video is bad.
        start: int64 [R], first frame of each row's window.
        crop: int64 [R], number of each row's crop.

    Raises:
        DataError: a decoder that does not know the pack's codec, or a view of flow and a pack without.
        DeviceError: a GPU or decoder that is not there.
        RecipeError: an unknown rule or crop.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: LoaderSpec,
        *,
        windows: int | None,
        device: torch.device,
        instances: NDArray[np.int64] | None = None,
        rule: Rule = "spread",
        crops: Crops = "centre",
        share: float = INNER,
    ) -> None:
        self.manifest, self.device, self.rule, self.share = manifest, _usable(device), rule, share
        self.crops: Crops = "inner" if rule == "p2" and crops == "centre" else crops
        self.crops_per_window = crops_of_window(self.crops)
        refuse_without_flow(manifest, spec.views)
        self._windows_at_once = max(spec.batch // self.crops_per_window, 1)
        self.spec = replace(spec, augment=spec.augment.model_copy(update={"preset": "none"}))
        if not manifest.checked:
            _say_once(_unchecked(manifest))
        self.decode = resolve_decode(spec.loader.decode, manifest.codec, device)
        self.meter = LoaderMeter()
        self._prefetched: Prefetched[Made] | None = None
        rows = manifest.rows() if instances is None else instances
        starts = [
            window_starts(rule, int(frames), spec.clips.frames, spec.clips.stride, windows)
            for frames in manifest.samples.frames[rows]
        ]
        self._video = np.repeat(rows, [len(one) for one in starts])
        self._start = np.concatenate([*starts, np.empty(0, np.int64)])
        self.instance = np.repeat(self._video, self.crops_per_window)
        self.start = np.repeat(self._start, self.crops_per_window)
        self.crop = np.tile(np.arange(self.crops_per_window), len(self._video))

    def __len__(self) -> int:
        """Batches, if no video is bad."""
        return -(-len(self._video) // self._windows_at_once)

    def __iter__(self) -> Iterator[ClipBatch]:
        self.close()
        closed = threading.Event()
        self.meter = LoaderMeter(disk=Patience(self.spec.loader.patience, say_in_log, closed, AGAIN))
        feed = _feed(self.manifest, self.spec, self.meter.disk)
        sized = replace(self.spec, batch=self._windows_at_once)
        crops = self.crops_per_window
        stream = _stream(sized, feed, self.device, crops, replace=False, together=crops > 1)
        ahead = self._prefetched = Prefetched(
            lambda: stream.batches(self._plans(feed)), self.spec.loader.prefetch, "vidssl-windows", closed
        )
        before = time.perf_counter()
        try:
            for made in ahead:
                self.meter.wait_s += time.perf_counter() - before
                self.meter.batches += 1
                self.meter.bad.extend(made.bad)
                yield self._batch(made)
                before = time.perf_counter()
            self.meter.bad = list(stream.bad)
        finally:  # also when the caller drops the iterator half way
            ahead.close()

    def close(self) -> None:
        """End the background thread."""
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def _plans(self, feed: Feed) -> Iterator[Plan]:
        for step in range(len(self)):
            part = slice(step * self._windows_at_once, (step + 1) * self._windows_at_once)
            yield feed.window_plan(step, self._video[part], self._start[part], self.crops, self.share)

    def _batch(self, made: Made) -> ClipBatch:
        plan, clips = made.plan, made.clips
        if self.rule == "p1":
            frames = self.manifest.samples.frames[plan.instance]
            clips = {name: padded_in_front(one, frames, self.spec.clips.stride) for name, one in clips.items()}
        rows = np.repeat(np.arange(len(plan.instance)), self.crops_per_window)
        flat = replace(made, plan=replace(plan.taken(rows), start=plan.start.reshape(-1, 1)))
        each = {name: one.flatten(0, 1)[:, None] for name, one in clips.items()}
        return _batch_of(flat, each, self.manifest, self.spec, self.device)


@lru_cache(maxsize=8)
def _say_once(sentence: str) -> None:
    say_in_log(sentence)


def _unchecked(manifest: Manifest) -> str:
    return (
        f"{manifest.root} was packed before samples had checksums: a damaged byte that still decodes is not noticed; "
        "pack again with fresh=true to have every read checked"
    )


def _usable(device: torch.device) -> torch.device:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"clips were asked for on {device}, this machine has no usable GPU; type trainer.device=cpu")
    return device


def _stream(
    spec: LoaderSpec,
    feed: Feed,
    device: torch.device,
    per_video: int,
    *,
    replace: bool,
    on_bad: Callable[[BadSample], None] = lambda bad: None,
    together: bool = False,
    stages: Stages | None = None,
) -> ClipStream:
    decode = resolve_decode(spec.loader.decode, feed.manifest.codec, device, training=replace)
    kind = {"per_video": per_video, "together": together, "replace": replace, "on_bad": on_bad, "stages": stages}
    return ClipStream(feed, decode, spec.loader, rows=spec.batch, device=device, **kind)


def _feed(manifest: Manifest, spec: LoaderSpec, disk: Patience) -> Feed:
    reader = reader_for(manifest, spec.loader, disk)
    windows = spec.loader.read == "windows"
    return Feed(manifest, spec.clips, spec.augment, spec.seed, disk, streams_of(spec.views), reader, windows)


def _batch_of(
    made: Made, clips: Mapping[str, Tensor], manifest: Manifest, spec: LoaderSpec, device: torch.device
) -> ClipBatch:
    rows, samples = made.plan.instance, manifest.samples
    columns = {"instance": rows, "group": samples.group[rows], "label": samples.label[rows]}
    host = {name: column.astype(np.int64) for name, column in {**columns, "start": made.plan.start}.items()}
    with beside(device) as lent:
        there = {name: sent(torch.from_numpy(column), device) for name, column in host.items()}
        views = views_of(clips, spec.views, spec.clips, manifest.flow, spec.flow_channels)
        lent += [*there.values(), *views.values()]
    instance, group, label, start = there.values()
    return ClipBatch(views, instance, group, label, made.plan.epoch, made.plan.step, start, host)
