"""Small labelled motion videos for the demo, tests and benchmarks: real H.264 files whose class is a motion.

What the objects do is the class: all of a video do the same. Everything else is shared by all classes and drawn at
random: the background (one of a few textures), the camera's slow pan, the light, shape and colour of the objects (out
of a few), their sizes and starting places. So neither colour nor background nor a single frame tells the class; only
frames in order do.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError
from vidssl.files import write_whole

__all__ = [
    "MOTIONS",
    "SHAPES",
    "Scene",
    "is_test",
    "make_motion_set",
    "make_motion_video",
    "make_official_set",
    "render",
    "scene_of",
]

FPS = 25
BACKGROUNDS = 2
THINGS = 3
COLOURS = ((20, 20, 30),)
SHAPES = ("disc", "square")

Floats = NDArray[np.float64]
Pose = tuple[Floats, Floats, Floats]
"""Object centre x, y in units of the frame's size, from the left and top, and its scale; one value per frame."""


@dataclass(frozen=True)
class Thing:
    """One of the moving objects of a scene; lengths in units of the frame's size."""

    centre: tuple[float, float]
    radius: float
    phase: float


@dataclass(frozen=True)
class Scene:
    """All that is random about one video; lengths in units of the frame's size, times in frames."""

    motion: str
    shape: str
    colour: tuple[int, int, int]
    background: int
    corner: tuple[float, float]
    pan: tuple[float, float]
    light: float
    speed: float
    things: tuple[Thing, ...]


def _travel(thing: Thing, speed: float, time: Floats, dx: float, dy: float) -> Pose:
    """A straight way across the frame, which leaves on one side and comes back on the other."""
    way = 0.026 * speed * time
    x, y = thing.centre[0] + dx * way, thing.centre[1] + dy * way
    margin = 0.1
    return (x + margin) % (1 + 2 * margin) - margin, (y + margin) % (1 + 2 * margin) - margin, np.ones_like(time)


def _orbit(thing: Thing, speed: float, time: Floats, sense: float) -> Pose:
    angle = thing.phase + sense * 2 * math.pi * speed * time / 26
    x, y = _still(thing, time)
    return x + 0.18 * np.cos(angle), y + 0.18 * np.sin(angle), np.ones_like(time)


def _zoom(thing: Thing, speed: float, time: Floats, sense: float) -> Pose:
    grown = (thing.phase / (2 * math.pi) + sense * speed * time / 24) % 1.0
    return (*_still(thing, time), 0.43 * 4.0**grown)


def _sway(thing: Thing, speed: float, time: Floats, dx: float, dy: float) -> Pose:
    swing = 0.15 * np.sin(thing.phase + 2 * math.pi * speed * time / 12)
    x, y = _still(thing, time)
    return x + dx * swing, y + dy * swing, np.ones_like(time)


def _still(thing: Thing, time: Floats) -> tuple[Floats, Floats]:
    return np.full_like(time, thing.centre[0]), np.full_like(time, thing.centre[1])


MOTIONS: Mapping[str, Callable[[Thing, float, Floats], Pose]] = {
    "left": partial(_travel, dx=-1, dy=0),
    "right": partial(_travel, dx=1, dy=0),
    "up": partial(_travel, dx=0, dy=-1),
    "down": partial(_travel, dx=0, dy=1),
    "clockwise": partial(_orbit, sense=1),  # y points down, so growing angles turn clockwise
    "counterclockwise": partial(_orbit, sense=-1),
    "grow": partial(_zoom, sense=1),
    "shrink": partial(_zoom, sense=-1),
    "shake": partial(_sway, dx=1, dy=0),
    "bounce": partial(_sway, dx=0, dy=1),
}
"""Class name → path of the object's centre and its scale over time."""


def scene_of(index: int, seed: int) -> Scene:
    """The scene of video `index`: classes take turns, everything else is drawn from (seed, index)."""
    rng = np.random.default_rng((seed, index))
    turn = rng.uniform(0, 2 * math.pi)
    pace = rng.uniform(0.001, 0.003)
    return Scene(
        motion=list(MOTIONS)[index % len(MOTIONS)],
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=COLOURS[rng.integers(len(COLOURS))],
        background=int(rng.integers(BACKGROUNDS)),
        corner=(rng.uniform(), rng.uniform()),
        pan=(pace * math.cos(turn), pace * math.sin(turn)),
        light=rng.uniform(0.8, 1.15),
        speed=rng.uniform(0.9, 1.1),
        things=tuple(_thing(rng, turn=2 * math.pi * i / THINGS) for i in range(THINGS)),
    )


def _thing(rng: np.random.Generator, turn: float) -> Thing:
    """An object near one corner of a triangle, so that a scene's objects rarely cover each other."""
    centre = (
        0.5 + 0.25 * math.cos(turn) + rng.uniform(-0.12, 0.12),
        0.5 + 0.25 * math.sin(turn) + rng.uniform(-0.12, 0.12),
    )
    return Thing(centre, radius=rng.uniform(0.08, 0.12), phase=rng.uniform(0, 2 * math.pi))


def render(scene: Scene, *, frames: int, size: int, seed: int) -> NDArray[np.uint8]:
    """The scene's frames, uint8 [frames, size, size, 3]; `seed` decides the shared backgrounds."""
    time = np.arange(frames, dtype=np.float64)
    canvas = _behind(scene, time, size, seed)
    for thing in scene.things:
        x, y, scale = MOTIONS[scene.motion](thing, scene.speed, time)
        rows = zip(canvas, x * size, y * size, scale * thing.radius * size, strict=True)
        for frame, cx, cy, radius in rows:
            _paint(frame, scene.shape, cx, cy, radius, np.asarray(scene.colour, np.float32))
    canvas *= np.float32(scene.light)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def make_motion_video(job: tuple[int, Path], *, frames: int, size: int, seed: int) -> None:
    """Render and encode one video; `job` is its index and the file to write."""
    index, path = job
    pictures = render(scene_of(index, seed), frames=frames, size=size, seed=seed)
    options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_motion_set(
    out: Path,
    *,
    videos: int,
    frames: int = 40,
    size: int = 128,
    seed: int = 0,
    each: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
) -> Path:
    """Write a set of motion videos and its table; the same seed writes the same scenes.

    Args:
        out: Folder to fill: `videos/00000.mp4` … and `videos.csv` (path, label, split, group).
        videos: How many; classes take turns, every third video of a class is in the split `test`.
        frames: Frames of each video, at 25 per second.
        size: Width and height, even.
        seed: Of everything random.
        each: Applies a function to every job, like `map`; a process pool's `map` makes it parallel.

    Returns:
        The path of `videos.csv`.

    Raises:
        DataError: `videos` or `frames` below 1, or `size` odd or below 32.
    """
    if videos < 1 or frames < 1:
        raise DataError(f"a motion set of {videos} videos with {frames} frames is empty; give both at least 1")
    if size < 32 or size % 2:
        raise DataError(f"motion videos of size {size} cannot be made; give an even size of at least 32")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    names = [f"videos/{index:05d}.mp4" for index in range(videos)]
    make = partial(make_motion_video, frames=frames, size=size, seed=seed)
    for _ in each(make, [(index, out / name) for index, name in enumerate(names)]):
        pass
    return _write_table(out / "videos.csv", names, seed)


def make_official_set(
    out: Path,
    *,
    groups: int,
    clips: int,
    frames: int = 40,
    size: int = 128,
    seed: int = 0,
    each: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
) -> Path:
    """Write a set of motion videos in the layout of UCF101, with two official splits.

    Args:
        out: Folder to fill: `videos/Left/v_Left_g01_c01.mp4` …, and `ucfTrainTestlist` with classInd.txt, trainlist01.txt ….
        groups: Of each class; a third of them is the test of split 1, the next third that of split 2.
        clips: Of each group.
        frames: Of each video, at 25 per second.
        size: Width and height, even.
        seed: Of everything random.
        each: As in `make_motion_set`.

    Returns:
        The folder of the videos.

    Raises:
        DataError: fewer than two groups, or no clip.
    """
    if groups < 2 or clips < 1:
        raise DataError(
            f"{groups} groups of {clips} clips cannot be split twice; give two groups and one clip at least"
        )
    classes = [motion.capitalize() for motion in MOTIONS]
    names: dict[str, tuple[int, int]] = {}
    for index in range(groups * clips * len(classes)):
        number, label = divmod(index, len(classes))
        group, clip = divmod(number, clips)
        name = classes[label]
        names[f"{name}/v_{name}_g{group + 1:02d}_c{clip + 1:02d}.mp4"] = (group, label)
    for name in classes:
        (out / "videos" / name).mkdir(parents=True, exist_ok=True)
    make = partial(make_motion_video, frames=frames, size=size, seed=seed)
    for _ in each(make, [(index, out / "videos" / name) for index, name in enumerate(names)]):
        pass
    _write_lists(out / "ucfTrainTestlist", classes, names, max(1, groups // 3))
    return out / "videos"


def _write_lists(folder: Path, classes: list[str], names: Mapping[str, tuple[int, int]], tested: int) -> None:
    folder.mkdir(exist_ok=True)
    write_whole(folder / "classInd.txt", "".join(f"{label} {name}\n" for label, name in enumerate(classes, start=1)))
    for fold in (1, 2):
        asked = range((fold - 1) * tested, fold * tested)
        test = [name for name, (group, _) in names.items() if group in asked]
        train = [f"{name} {label + 1}" for name, (group, label) in names.items() if group not in asked]
        write_whole(folder / f"testlist0{fold}.txt", "".join(f"{line}\n" for line in test))
        write_whole(folder / f"trainlist0{fold}.txt", "".join(f"{line}\n" for line in train))


def _write_table(path: Path, names: list[str], seed: int) -> Path:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("path", "label", "split", "group"))
    for index, name in enumerate(names):
        split = "test" if is_test(index) else "train"
        table.writerow((name, scene_of(index, seed).motion, split, index))
    write_whole(path, text.getvalue())
    return path


def is_test(index: int) -> bool:
    """Whether video number `index` of a motion set is in the split `test`."""
    return index // len(MOTIONS) % 3 == 2


def _behind(scene: Scene, time: Floats, size: int, seed: int) -> NDArray[np.float32]:
    """The background as the panning camera sees it, float32 [frames, size, size, 3]."""
    texture = _texture(scene.background, size, seed)
    period = texture.shape[0] // 2
    left = np.round((scene.corner[0] + scene.pan[0] * time) * size).astype(int) % period
    top = np.round((scene.corner[1] + scene.pan[1] * time) * size).astype(int) % period
    return np.stack([texture[t : t + size, s : s + size] for t, s in zip(top, left, strict=True)])


@lru_cache(maxsize=2 * BACKGROUNDS)
def _texture(which: int, size: int, seed: int) -> NDArray[np.float32]:
    """A smooth random picture that repeats after 2·size pixels, float32 [4·size, 4·size, 3]."""
    rng = np.random.default_rng((seed, 1_000_003, which))
    period = 2 * size
    row = np.arange(period)
    picture = np.zeros((period, period))
    for waves in rng.integers(-9, 10, size=(32, 2)):
        angle = 2 * math.pi * (waves[0] * row[:, None] + waves[1] * row[None, :]) / period
        shift = rng.uniform(0, 2 * math.pi)
        picture += np.sin(angle + shift) / (2 + np.abs(waves).sum())
    low, high = picture.min(), picture.max()
    grey = 75 + 100 * (picture - low) / max(high - low, 1e-9)
    return np.tile(grey[..., None], (2, 2, 3)).astype(np.float32)


def _paint(
    frame: NDArray[np.float32], shape: str, cx: float, cy: float, radius: float, colour: NDArray[np.float32]
) -> None:
    """Draw the object into `frame` (in place): its colour inside, a white rim around it."""
    size, reach = frame.shape[0], int(radius * 1.5) + 2
    top, bottom = max(int(cy) - reach, 0), min(int(cy) + reach + 1, size)
    left, right = max(int(cx) - reach, 0), min(int(cx) + reach + 1, size)
    if top >= bottom or left >= right:
        return
    v, u = np.mgrid[top:bottom, left:right].astype(np.float32)
    outside = _distance(shape, np.abs(u - cx), v - cy, radius)
    patch = frame[top:bottom, left:right]
    body, edge = np.clip(0.5 - outside, 0, 1)[..., None], np.clip(0.5 - outside - 0.25 * radius, 0, 1)[..., None]
    patch += body * (255 - patch)
    patch += edge * (colour - patch)


def _distance(shape: str, across: Floats, down: Floats, radius: float) -> Floats:
    """How far outside the shape each pixel is, in pixels (negative inside)."""
    if shape == "disc":
        return np.hypot(across, down) - radius
    if shape == "square":
        return np.maximum(across, np.abs(down)) - 0.85 * radius
    if shape == "triangle":
        return np.maximum(0.87 * across - 0.5 * down - 0.55 * radius, down - 0.8 * radius)
    arm = 0.38 * radius
    return np.minimum(np.maximum(across - radius, np.abs(down) - arm), np.maximum(across - arm, np.abs(down) - radius))
