from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.synthetic import MOTIONS, make_motion_set, render, scene_of
from vidssl.errors import DataError

NAMES = list(MOTIONS)


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def dark_centre(frames: np.ndarray) -> np.ndarray:
    """Mean place (x, y) of the dark pixels of every frame: where the objects are, told without the module."""
    dark = frames.max(-1) < 60
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
    mass = np.maximum(dark.sum((1, 2)), 1)
    return np.stack([(dark * columns).sum((1, 2)) / mass, (dark * rows).sum((1, 2)) / mass], 1)


def clip_of(name: str, video: int = 0, frames: int = 32) -> np.ndarray:
    scene = scene_of(NAMES.index(name) + len(NAMES) * video, seed=3)
    assert scene.motion == name
    return render(scene, frames=frames, size=96, seed=3)


def test_the_files_are_h264_of_the_asked_size_and_length(tmp_path: Path) -> None:
    place = make_motion_set(tmp_path, videos=3, frames=10, size=64, seed=1)
    for row in table_of(place):
        with av.open(str(tmp_path / row["path"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 64)
            assert stream.average_rate == 25
        assert len(frames_of(tmp_path / row["path"])) == 10


def test_the_files_show_what_was_rendered(tmp_path: Path) -> None:
    make_motion_set(tmp_path, videos=1, frames=8, size=128, seed=1)
    wanted = render(scene_of(0, 1), frames=8, size=128, seed=1).astype(int)
    assert np.abs(frames_of(tmp_path / "videos/00000.mp4").astype(int) - wanted).mean() < 6


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        make_motion_set(tmp_path / name, videos=2, frames=6, size=32, seed=seed)
        return hashlib.sha256((tmp_path / name / "videos/00001.mp4").read_bytes()).hexdigest()

    assert digest("a", 1) == digest("b", 1) != digest("c", 2)


def test_a_scene_does_not_depend_on_how_many_there_are() -> None:
    assert scene_of(7, 0) == scene_of(7, 0) != scene_of(17, 0)


def test_every_class_has_two_thirds_train_and_one_third_test(tmp_path: Path) -> None:
    rows = table_of(make_motion_set(tmp_path, videos=3 * len(NAMES), frames=2, size=32, seed=0))
    for name in NAMES:
        assert sorted(row["split"] for row in rows if row["label"] == name) == ["test", "train", "train"]
    assert len({row["group"] for row in rows}) == len(rows)


def test_jobs_go_through_the_given_map(tmp_path: Path) -> None:
    seen: list[Any] = []

    def each(make: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
        for job in jobs:
            seen.append(job)
            yield make(job)

    make_motion_set(tmp_path, videos=3, frames=2, size=32, seed=0, each=each)
    assert len(seen) == 3
    assert len(list((tmp_path / "videos").iterdir())) == 3


def shift_between(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """The (x, y) shift under which the dark pixels of two frames agree best."""
    dark, later = before.max(-1) < 60, after.max(-1) < 60
    shifts = [(x, y) for x in range(-5, 6) for y in range(-5, 6)]
    return max(shifts, key=lambda shift: int((np.roll(dark, shift, (1, 0)) & later).sum()))


@pytest.mark.parametrize(("name", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_travellers_go_where_their_name_says(name: str, way: tuple[int, int]) -> None:
    for video in range(3):
        frames = clip_of(name, video)
        shifts = [shift_between(a, b) for a, b in pairwise(frames)]
        assert tuple(np.sign(np.median(shifts, axis=0))) == way


@pytest.mark.parametrize(("name", "turn"), [("clockwise", 1), ("counterclockwise", -1)])
def test_orbits_turn_as_their_name_says(name: str, turn: int) -> None:
    scene = scene_of(NAMES.index(name), seed=3)
    lone = replace(scene, things=(replace(scene.things[0], centre=(0.5, 0.5)),))
    steps = np.diff(dark_centre(render(lone, frames=24, size=96, seed=3)), axis=0)
    cross = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]  # y points down: clockwise is positive
    assert np.sign(np.median(cross)) == turn


@pytest.mark.parametrize(("name", "axis"), [("shake", 0), ("bounce", 1)])
def test_swayers_move_along_one_axis_and_come_back(name: str, axis: int) -> None:
    spread = np.mean([dark_centre(clip_of(name, video)).std(0) for video in range(6)], axis=0)
    assert spread[axis] > 2 * spread[1 - axis]


@pytest.mark.parametrize(("name", "sign"), [("grow", 1), ("shrink", -1)])
def test_zoomers_change_their_area(name: str, sign: int) -> None:
    steps = [np.diff((clip_of(name, video).max(-1) < 60).sum((1, 2))) for video in range(6)]
    assert np.sign(np.median(np.concatenate(steps))) == sign


def test_a_colour_histogram_cannot_tell_the_classes() -> None:
    videos = 24 * len(NAMES)
    seen = []
    for index in range(videos):
        pixels = render(scene_of(index, 5), frames=28, size=48, seed=5)[::4].reshape(-1, 3).astype(int) // 32
        seen.append(np.sqrt(np.bincount(pixels @ (64, 8, 1), minlength=512) / len(pixels)))
    rows = np.stack(seen) - np.mean(seen, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = rows @ rows.T
    np.fill_diagonal(likeness, -2)
    label = np.arange(videos) % len(NAMES)
    assert (label[likeness.argmax(1)] == label).mean() < 0.2  # chance .10


@pytest.mark.parametrize("wrong", [{"videos": 0}, {"frames": 0}])
def test_an_empty_set_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="give both at least 1"):
        make_motion_set(tmp_path, **{"videos": 1, "frames": 1, **wrong})


@pytest.mark.parametrize("size", [33, 16])
def test_a_size_that_cannot_be_encoded_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match="even size of at least 32"):
        make_motion_set(tmp_path, videos=1, size=size)
