"""How long, and how much disk? By formula, from the sizes of the data sets and from rates that are stated.

| what | seconds |
|---|---|
| packing | pixels × (seconds of a core per pixel, without and with flow) / cores |
| a training, a fine-tuning | epochs × videos × clips of a video / clips per second |
| features, tests | videos × windows × crops × networks / (3 × clips per second): without a backward pass, which costs twice the forward one |

Clips per second are those that a training logs. Without the word `clips_s` they are assumed: 171 for every GPU of the recipe,
the best published rate of training with a loader (SPDL, R3D-18 on 16x112x112 clips, 8 H100); 60 for a twin on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vidssl.recipe import Recipe, phase_recipe

if TYPE_CHECKING:
    from pipelines.packing.options import PackOptions

__all__ = ["SIZES", "TWIN", "Size", "disk", "packing", "phase_seconds", "rate_of", "shown", "size_of", "supervised"]

_RATE_OF_A_GPU, _RATE_OF_A_TWIN = 171.0, 60.0
_SECONDS_A_PIXEL, _BYTES_A_PIXEL = 7e-8, 0.024
"""Of one core for RGB, measured on 320x240 camera clips; flow comes on top (`pipelines.packing.flow.cost`)."""
_FORWARD: Final = 3.0
_CHECKPOINTS: Final = 2.5e8
"""Bytes of the checkpoints of one phase."""


@dataclass(frozen=True)
class Size:
    """How much a data set is.

    Attributes:
        videos: All.
        train: In the training split.
        frames: Of all videos.
        width: Pixels.
        height: Pixels.
    """

    videos: int
    train: int
    frames: int
    width: int
    height: int


SIZES: Final = {
    "ucf101": Size(13_320, 9_537, 2_484_000, 320, 240),
    "hmdb51": Size(6_766, 3_570, 632_000, 320, 240),
    "k400": Size(260_000, 240_000, 70_000_000, 340, 256),
}
"""The official data sets, rounded, while they are not packed."""
TWIN: Final = Size(180, 120, 180 * 32, 128, 128)


def size_of(known: Size, packed: Path) -> Size:
    """The size of a data set: of its pack where there is one."""
    from pipelines.dataset.manifest import load_manifest
    from vidssl.errors import DataError

    try:
        manifest = load_manifest(packed, verify="nothing")
    except DataError:
        return known
    held = manifest.samples
    side = (int(held.width.max()), int(held.height.max()))
    return Size(len(manifest), len(manifest.training_rows()), int(held.frames.sum()), *side)


def rate_of(recipe: Recipe, twin: bool, given: float | None) -> float:
    """Clips per second of the whole training."""
    return given or (_RATE_OF_A_TWIN if twin else _RATE_OF_A_GPU * recipe.trainer.workers)


def packing(size: Size, options: PackOptions) -> tuple[float, float]:
    """Seconds on this machine's cores, and bytes, of a pack with these options."""
    from pipelines.packing.flow import cost

    width = round(options.size * size.width / size.height)
    pixels = size.frames * width * options.size
    seconds, stored = pixels * _SECONDS_A_PIXEL, pixels * _BYTES_A_PIXEL
    form = options.flow_form()
    more = (0.0, 0.0) if form is None else cost(form, {(width, options.size): size.frames})
    return (seconds + more[0]) / len(os.sched_getaffinity(0)), stored + more[1]


def phase_seconds(recipe: Recipe, train: int, rate: float) -> list[tuple[str, float]]:
    """Seconds of every phase of a training by name; of one without phases, of `run`."""
    parts = [(one.name, phase_recipe(recipe, one)) for one in recipe.phases] or [("run", recipe)]
    return [(name, _clips(own, train) / rate) for name, own in parts]


def _clips(recipe: Recipe, train: int) -> float:
    trainer = recipe.trainer
    videos = trainer.steps * trainer.batch * trainer.workers if trainer.steps is not None else trainer.epochs * train
    return float(videos * recipe.clips.per_video)


def supervised(recipe: Recipe, epochs: int, size: Size, rate: float) -> float:
    """Seconds of a fine-tuning and its test."""
    return epochs * size.train / rate + shown(recipe, size.videos - size.train, size, rate, crops=True)


def shown(recipe: Recipe, videos: int, size: Size, rate: float, *, networks: int = 1, crops: bool = False) -> float:
    """Seconds of showing all windows of some videos to networks."""
    asked, clips = recipe.evaluation, recipe.clips
    every = max(clips.frames * clips.stride // 2 - 1, 1)
    there = max(1.0, size.frames / max(size.videos, 1) / every)
    most = {"centre": 1, "p2": 10}.get(asked.protocol, asked.windows)
    windows = 10 if asked.protocol == "p2" else min(there, most) if most else there
    return videos * windows * (10 if crops and asked.crops == "ten" else 1) * networks / (_FORWARD * rate)


def disk(packs: Sequence[float], phases: int) -> float:
    """Bytes that are needed at once: while it is packed, a pack lies there twice."""
    return sum(packs) + max(packs, default=0.0) + phases * _CHECKPOINTS
