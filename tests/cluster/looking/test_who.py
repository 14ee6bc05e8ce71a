"""Videos looked at by this process and by real Ray tasks: the same numbers, whoever looks and whatever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cluster.looking.parts as parts
from cluster.looking.look import Look
from cluster.looking.who import Lookers, on_tasks, tasks_of
from pipelines.dataset.manifest import load_manifest
from pipelines.loader import LoaderSpec
from vidssl.encoder import build_encoder
from vidssl.errors import DataError, DeviceError
from vidssl.evaluation.encode import Described, EncoderReader, HistogramReader
from vidssl.recipe import Recipe


@pytest.fixture(scope="module")
def recipe():
    return Recipe.model_validate({"name": "r", "data": "nowhere", "clips": {"frames": 4, "stride": 2, "size": 32}})


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 15)


def look_at(packed, recipe, *more: nn.Module) -> Look:
    manifest = load_manifest(packed)
    spec = LoaderSpec(recipe.clips, recipe.augment, recipe.loader, ("rgb",), 6, 0)
    torch.manual_seed(0)
    encoder = build_encoder(recipe.model, "rgb").eval()
    readers = (EncoderReader(encoder, "rgb", "trained/"), HistogramReader(), *more)
    return Look(manifest, spec, 2, "spread", "centre", 0.875, readers)


def here(look: Look, keep: Path, say=lambda line: None) -> Described:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Lookers(torch.device("cpu"), say=say).describe(look, look.manifest.rows(), keep)
    finally:
        torch.set_num_threads(before)


def assert_same(one: Described, other: Described) -> None:
    assert one.rows.keys() == other.rows.keys()
    for name, rows in one.rows.items():
        np.testing.assert_array_equal(rows, other.rows[name], err_msg=name)
    for name in ("instance", "missing", "seen"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.windows == other.windows


def test_tasks_find_bit_for_bit_what_one_process_finds(ray_cluster, packed, recipe, small_parts, tmp_path):
    look = look_at(packed, recipe)
    alone = here(look, tmp_path / "alone")
    assert len(alone.instance) == 40
    by_tasks = Lookers(torch.device("cpu"), tasks=2).describe(look, look.manifest.rows(), tmp_path / "tasks")
    assert_same(alone, by_tasks)


def test_parts_change_nothing_but_the_rounding_of_the_encoder(packed, recipe, tmp_path, monkeypatch):
    look = look_at(packed, recipe)
    whole = here(look, tmp_path)
    monkeypatch.setattr(parts, "PART", 7)
    cut = here(look, tmp_path)
    np.testing.assert_array_equal(whole.instance, cut.instance)
    for name, rows in whole.rows.items():
        np.testing.assert_allclose(rows, cut.rows[name], atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_a_task_that_is_killed_is_begun_again_and_the_numbers_are_the_same(
    ray_cluster, packed, recipe, small_parts, tmp_path
):
    once = tmp_path / "killed"

    class Killed(nn.Module):
        """Reads nothing; the first process that it looks in dies."""

        def forward(self, clips):
            if not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

    look = look_at(packed, recipe)
    alone = here(look, tmp_path / "alone")
    dying = look_at(packed, recipe, Killed())
    found = Lookers(torch.device("cpu"), tasks=2).describe(dying, look.manifest.rows(), tmp_path / "tasks")
    assert once.exists()
    assert_same(alone, found)


def test_a_look_that_was_stopped_goes_on_with_the_parts_that_are_left(packed, recipe, small_parts, tmp_path):
    class Stopped(nn.Module):
        """Reads nothing; the user stops it in the third part."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, clips):
            self.calls += 1
            if self.calls == 11:
                raise KeyboardInterrupt
            return {}

    said: list[str] = []
    stopping = Stopped()
    look = look_at(packed, recipe, stopping)
    with pytest.raises(KeyboardInterrupt):
        here(look, tmp_path / "kept", said.append)
    calls = stopping.calls
    found = here(look, tmp_path / "kept", said.append)
    assert said == ["30 of 40 videos were looked at before"]
    assert stopping.calls - calls == 4  # 10 videos of 2 windows, 6 at once
    assert_same(found, here(look_at(packed, recipe), tmp_path / "anew"))


def test_other_weights_or_another_device_do_not_take_what_was_kept(packed, recipe):
    look, rows = look_at(packed, recipe), np.arange(3)
    first = look.digest(rows, "cpu")
    assert first == look_at(packed, recipe).digest(rows, "cpu")
    assert first != look.digest(rows, "cuda")
    assert first != look.digest(rows[:2], "cpu")
    with torch.no_grad():
        next(look.readers[0].parameters())[0] += 1
    assert first != look.digest(rows, "cpu")


def test_a_disk_that_keeps_nothing_is_said_once_and_changes_nothing(packed, recipe, small_parts, tmp_path):
    (tmp_path / "file").touch()
    said: list[str] = []
    found = here(look_at(packed, recipe), tmp_path / "file" / "kept", said.append)
    assert len(found.instance) == 40
    assert len(said) == 1
    assert said[0].startswith("parts of this evaluation cannot be kept")


def test_a_damaged_part_is_looked_at_again(packed, recipe, small_parts, tmp_path):
    look = look_at(packed, recipe)
    whole = here(look, tmp_path)
    (kept,) = tmp_path.iterdir()
    middle = sorted(kept.iterdir())[1]
    middle.write_bytes(middle.read_bytes()[:100])
    said: list[str] = []
    assert_same(whole, here(look, tmp_path, said.append))
    assert said == ["25 of 40 videos were looked at before"]


def test_parts_of_which_no_video_can_be_read_are_an_error_only_together():
    none = Described({}, np.empty(0, np.int64), np.arange(2), 0, np.empty(0, np.int64))
    one = Described({"a": np.ones((1, 3), np.float32)}, np.array([2]), np.array([3]), 4, np.array([4]))
    both = parts.joined([none, one])
    assert (both.instance.tolist(), both.missing.tolist(), both.windows) == ([2], [0, 1, 3], 4)
    with pytest.raises(DataError, match="none of 4 videos could be read; type vidssl verify PACKED"):
        parts.joined([none, none])


def test_more_tasks_than_the_cluster_has_are_refused_in_one_sentence(ray_cluster, recipe):
    asked = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"workers": 99})})
    with (
        pytest.raises(DeviceError, match=r"evaluation\.workers=99 .* type evaluation\.workers=2, or 0"),
        tasks_of(asked, print),
    ):
        pass


def test_tasks_look_where_they_are_asked_for_or_where_a_cluster_is_named(recipe, monkeypatch):
    def asked(workers):
        return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"workers": workers})})

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [on_tasks(asked(workers)) for workers in (None, 0, 2)] == [False, False, True]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert [on_tasks(asked(workers)) for workers in (None, 0, 2)] == [True, False, True]
