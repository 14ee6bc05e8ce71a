"""What do the science checks train on? Real encoded motion videos, packed once, decoded once, cropped in memory.

Every video comes from a *source*, which fixes its motion (the class), background, pan, light, speed, shape and colour;
the `cuts` of a source differ in where its objects start. Background and shape follow the class with probability `corr`
(each is shared by several classes, so appearance narrows the class down but never names it); the rest is class-free.

Simplifications, on purpose: all windows are decoded once by the product's evaluation loader, and a training step draws
its clips from memory (`Clips.batch`): a start, a crop, a brightness and a contrast for each clip, constant over time.
No flips: left and right are two classes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from pipelines.dataset.manifest import Manifest
from pipelines.loader import EvalLoader, LoaderSpec
from pipelines.loading.augment import MEAN, STD
from pipelines.pack import pack
from pipelines.packing.options import pack_options
from pipelines.synthetic import MOTIONS, Scene, render, scene_of
from vidssl.batch import ClipBatch
from vidssl.files import written_aside
from vidssl.recipe import Augment, Loader
from vidssl.recipe import Clips as ClipSection
from vidssl.views import make_views

__all__ = ["Clips", "RealWorld", "World", "draw_sources", "load_world"]

COLOURS = ((20, 20, 30), (150, 40, 30), (30, 110, 50), (40, 50, 150))
SHAPES = ("disc", "square", "triangle", "cross")
STRIDE = 2
FPS = 25


@dataclass(frozen=True)
class World:
    """The videos and the clips made of them.

    Attributes:
        corr: How often background and shape are the class's own; otherwise they are drawn evenly.
        pan: The camera's fastest pan, in frame widths per frame of video; of the source, so that no class has its own.
        speeds: A source moves at 1 ± speeds.
        objects: How many move, 1 to 3.
        backgrounds: Textures; class c's own is c mod `backgrounds`.
        pool: Training sources of the pack; each seed draws `sources` of them, the same number of every class.
        sources: Training sources of one seed.
        cuts: Videos of a training source.
        test: Test videos, each a source of its own; all seeds are asked with the same.
        frames: Frames of a clip; a video holds twice as many at stride 2.
        size: Pixels of a clip; crops are drawn from 5/4 of it.
        jitter: Brightness and contrast are drawn from 1 ± jitter.
        seed: Of the videos.
    """

    corr: float = 0.8
    pan: float = 0.03
    speeds: float = 0.4
    objects: int = 1
    backgrounds: int = 5
    pool: int = 240
    sources: int = 150
    cuts: int = 4
    test: int = 1000
    frames: int = 8
    size: int = 32
    jitter: float = 0.4
    seed: int = 0

    @property
    def kept(self) -> int:
        """Pixels of a decoded frame, from which crops are drawn."""
        return self.size * 5 // 4

    @property
    def starts(self) -> int:
        """Different first frames of a clip in a decoded window."""
        return self.frames + 1

    def frames_from(self, start: int) -> slice:
        """Decoded frames of the clip that begins at `start`."""
        return slice(start, start + self.frames)

    def address(self) -> str:
        """Name of the folder that holds these videos."""
        words = {k: v for k, v in asdict(self).items() if k not in ("sources", "jitter", "every")}
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RealWorld(World):
    """Real clips, one folder for each class, all of them trained on and asked (leave one out).

    Attributes:
        folder: Under the folder that the environment's VIDSSL_CLIPS names.
        block: Clips whose numbers fall into one block of so many come from one recording.
        every: Of the decoded frames a clip takes each so many-th: its stride is `STRIDE` times this.
    """

    folder: str = "thermal"
    block: int = 8
    every: int = 1

    @property
    def starts(self) -> int:
        """Different first frames of a clip in a decoded window."""
        return 2 * self.frames - (self.frames - 1) * self.every

    def frames_from(self, start: int) -> slice:
        """Decoded frames of the clip that begins at `start`."""
        return slice(start, start + self.frames * self.every, self.every)

    def listed(self) -> list[tuple[str, str, str, str]]:
        """Path, class, split and source of every clip.

        Raises:
            SystemExit: VIDSSL_CLIPS is not set.
        """
        if not (root := os.environ.get("VIDSSL_CLIPS")):
            raise SystemExit(
                f"the {self.folder} clips are not part of this repository: set VIDSSL_CLIPS to their folder"
            )
        paths = sorted((Path(root) / self.folder).glob("*/*.mp4"))
        blocks = [int(path.stem.rpartition("_")[2]) // self.block for path in paths]
        return [
            (str(path.absolute()), path.parent.name, "train", f"{path.parent.name}-{block}")
            for path, block in zip(paths, blocks, strict=True)
        ]


@dataclass(frozen=True)
class Clips:
    """Decoded windows of some videos.

    Attributes:
        world: How they were made.
        pixels: uint8 [N, 3, 2T, S, S] with S = `world.kept`.
        label: int64 [N]; read by evaluation only.
        group: int64 [N], the source.
    """

    world: World
    pixels: Tensor
    label: NDArray[np.int64]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def taken(self, rows: NDArray[np.int64]) -> Clips:
        """Some of the videos, numbered anew."""
        return replace(self, pixels=self.pixels[torch.from_numpy(rows)], label=self.label[rows], group=self.group[rows])

    def batch(
        self, rows: NDArray[np.int64], views: Sequence[str], seed: int, step: int, per_video: int = 2
    ) -> ClipBatch:
        """A training batch; everything random is drawn from (seed, step)."""
        world, rng = self.world, np.random.default_rng((seed, step, 77))
        room = world.kept - world.size
        draws = rng.integers(0, [world.starts, room + 1, room + 1], size=(len(rows), per_video, 3))
        gains = rng.uniform(1 - world.jitter, 1 + world.jitter, size=(2, len(rows), per_video)).astype(np.float32)
        clips = torch.stack(
            [self._cut(row, where) for row, wheres in zip(rows, draws, strict=True) for where in wheres]
        )
        clips = _normalised(_looked(clips.float(), *(torch.from_numpy(gain.reshape(-1)) for gain in gains)))
        clips = clips.view(len(rows), per_video, *clips.shape[1:])
        return self._batch(rows, make_views(clips, views), draws[:, :, 0], step)

    def windows(self, views: Sequence[str], batch: int = 100) -> Iterator[ClipBatch]:
        """Three centre-cropped windows of every video (start, middle, end), one per row."""
        world = self.world
        edge, starts = (world.kept - world.size) // 2, (0, (world.starts - 1) // 2, world.starts - 1)
        for first in range(0, len(self), batch):
            rows = np.arange(first, min(first + batch, len(self)))
            for step, start in enumerate(starts):
                cut = self.pixels[first : first + batch, :, world.frames_from(start)]
                cut = cut[..., edge : edge + world.size, edge : edge + world.size]
                clips = _normalised(cut.float())[:, None]
                yield self._batch(rows, make_views(clips, views), np.full((len(rows), 1), start), step)

    def _cut(self, row: int, where: NDArray[np.int64]) -> Tensor:
        (start, top, left), size = where.tolist(), self.world.size
        return self.pixels[row, :, self.world.frames_from(start), top : top + size, left : left + size]

    def _batch(
        self, rows: NDArray[np.int64], clips: dict[str, Tensor], start: NDArray[np.int64], step: int
    ) -> ClipBatch:
        instance, group, label = (torch.from_numpy(one) for one in (rows, self.group[rows], self.label[rows]))
        return ClipBatch(clips, instance, group, label, epoch=0, step=step, start=torch.from_numpy(start))


def load_world(world: World, cache: Path) -> tuple[Clips, Clips]:
    """Training pool and test videos; made, packed and decoded where the cache does not hold them.

    Of real clips both are all there are: queries leave themselves and their source out.
    """
    folder = cache / world.address()
    stored = folder / "decoded.npz"
    if not stored.exists():
        folder.mkdir(parents=True, exist_ok=True)
        table = _write_videos(world, folder / "videos")
        manifest = pack("csv", table, folder / "packed", pack_options(["size=128"]))
        pixels = _decode(world, manifest)
        samples = manifest.samples
        asked = manifest.rows("test") if "test" in manifest.splits else ()  # real clips are trained on and asked
        is_test = np.isin(np.arange(len(samples.label)), asked)
        with written_aside(stored) as stream:
            np.savez(stream, pixels=pixels, label=samples.label, group=samples.group, is_test=is_test)
    data = np.load(stored)
    pixels, is_test = torch.from_numpy(data["pixels"]), data["is_test"]
    whole = Clips(world, pixels, data["label"].astype(np.int64), data["group"].astype(np.int64))
    train = whole.taken(np.flatnonzero(~is_test))
    return train, whole.taken(np.flatnonzero(is_test)) if is_test.any() else train


def draw_sources(pool: Clips, seed: int) -> Clips:
    """The training videos of a seed: `world.sources` sources, the same number of each class; of real clips all."""
    if isinstance(pool.world, RealWorld):
        return pool
    rng = np.random.default_rng((seed, 5))
    chosen: list[int] = []
    for label in np.unique(pool.label):
        groups = np.unique(pool.group[pool.label == label])
        chosen += rng.choice(groups, pool.world.sources // len(MOTIONS), replace=False).tolist()
    return pool.taken(np.flatnonzero(np.isin(pool.group, chosen)))


def _write_videos(world: World, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    rows = world.listed() if isinstance(world, RealWorld) else _encoded(world, out)
    table = out / "videos.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])
    return table


def _encoded(world: World, out: Path) -> list[tuple[str, str, str, str]]:
    rows = []
    plans = [("train", source, cut) for source in range(world.pool) for cut in range(world.cuts)]
    plans += [("test", world.pool + source, 0) for source in range(world.test)]
    for split, source, cut in plans:
        name, scene = f"{source:05d}-{cut}.mp4", _scene(world, source, cut)
        if not (out / name).exists():
            _encode(render(scene, frames=2 * STRIDE * world.frames, size=128, seed=world.seed), out / name)
        rows.append((name, scene.motion, split, str(source)))
    return rows


def _encode(pictures: NDArray[np.uint8], path: Path) -> None:
    with written_aside(path, durable=False) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20", "threads": "1"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _scene(world: World, source: int, cut: int) -> Scene:
    """What is the source's comes from (seed, source), where the objects start from the cut as well."""
    rng = np.random.default_rng((world.seed, source, 3))
    name = source % len(MOTIONS)
    own_background, own_shape = rng.uniform(size=2) < world.corr
    shared = scene_of(source, world.seed)
    turn, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1) * world.pan
    return replace(
        shared,
        pan=(pace * math.cos(turn), pace * math.sin(turn)),
        speed=rng.uniform(1 - world.speeds, 1 + world.speeds),
        background=name % world.backgrounds if own_background else int(rng.integers(world.backgrounds)),
        shape=SHAPES[(name // 2) % len(SHAPES) if own_shape else rng.integers(len(SHAPES))],
        colour=COLOURS[rng.integers(len(COLOURS))],
        things=scene_of((1 + cut) * 1_000_003 + source, world.seed).things[: world.objects],
    )


def _decode(world: World, manifest: Manifest) -> NDArray[np.uint8]:
    """uint8 [N, 3, 2T, S, S] of every video: loaded at twice the size, then the mean of 2x2 pixels."""
    section = ClipSection(frames=2 * world.frames, stride=STRIDE, size=2 * world.kept, per_video=1)
    spec = LoaderSpec(section, Augment(preset="none"), Loader(decode="py"), ("rgb",), batch=20, seed=0)
    rows = []
    loader = EvalLoader(manifest, spec, windows=1, device=torch.device("cpu"))
    for batch in loader:
        small = avg_pool3d(_grey_levels(batch.clips["rgb"][:, 0]), (1, 2, 2))
        rows.append(small.round().clamp(0, 255).byte())
    if loader.meter.bad:
        raise RuntimeError(f"{len(loader.meter.bad)} videos could not be decoded: {loader.meter.bad[0]}")
    return torch.cat(rows).numpy()


def _looked(clips: Tensor, light: Tensor, contrast: Tensor) -> Tensor:
    """Grey levels [M, 3, T, S, S] with each clip's brightness and contrast about its mean."""
    shape = (-1, 1, 1, 1, 1)
    mean = clips.mean(dim=(1, 2, 3, 4), keepdim=True)
    return ((clips - mean) * contrast.view(shape) + mean) * light.view(shape)


def _normalised(clips: Tensor) -> Tensor:
    mean, std = (torch.from_numpy(values).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
    return (clips - mean) / std


def _grey_levels(clips: Tensor) -> Tensor:
    mean, std = (torch.from_numpy(values).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
    return clips * std + mean
