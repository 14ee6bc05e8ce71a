from __future__ import annotations

import subprocess

import numpy as np
import pytest

from vidssl.errors import CheckpointError, DataError, StorageError
from vidssl.saved.embeddings import Embedded, load_embeddings, refuse_no_store, save_embeddings


def store(n=7, seed=0):
    rng = np.random.default_rng(seed)
    return Embedded(
        feature={
            "rgb": rng.normal(size=(n, 5)).astype(np.float32),
            "residual": rng.normal(size=(n, 4)).astype(np.float32),
        },
        embedding={"rgb": rng.normal(size=(n, 3)).astype(np.float32)},
        instance=np.arange(n) + 10,
        group=np.arange(n) // 2,
        label=np.arange(n) % 3 - 1,
        split=np.array(["train", "test"])[np.arange(n) % 2],
        name=np.array([f"wave left/übung_{i}.mp4" for i in range(n)]),
        protocol={"run": "x", "step": 3, "frames": 8, "views": ["rgb"], "checkpoint": "abc"},
    )


def test_a_store_read_back_is_what_was_written(tmp_path):
    made = store()
    read = load_embeddings(save_embeddings(made, tmp_path / "deep" / "e.zarr"))
    assert set(read.feature) == {"rgb", "residual"}
    for view in made.feature:
        np.testing.assert_array_equal(read.feature[view], made.feature[view])
    np.testing.assert_array_equal(read.embedding["rgb"], made.embedding["rgb"])
    for column in ("instance", "group", "label", "split", "name"):
        np.testing.assert_array_equal(getattr(read, column), getattr(made, column))
    assert read.protocol == made.protocol
    assert read.feature["rgb"].dtype == np.float32
    assert len(read) == 7


def test_a_second_save_replaces_the_store_and_leaves_nothing_aside(tmp_path):
    save_embeddings(store(9, seed=1), tmp_path / "e.zarr")
    save_embeddings(store(4, seed=2), tmp_path / "e.zarr")
    assert len(load_embeddings(tmp_path / "e.zarr")) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["e.zarr"]


def test_another_folder_is_never_overwritten(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="exists and is no store of embeddings; give another out="):
        save_embeddings(store(), tmp_path / "holiday")
    assert (tmp_path / "holiday" / "photo.jpg").is_file()


def test_a_missing_store_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no store of embeddings; make one with: vidssl embed RUN out="):
        load_embeddings(tmp_path / "none.zarr")


def test_a_full_disk_keeps_the_former_store_and_leaves_nothing_aside(small_disk):
    disk = small_disk(1)
    save_embeddings(store(4, seed=2), disk / "e.zarr")
    with pytest.raises(StorageError, match=r"e\.zarr cannot be written: the disk .* is full .*; give another out="):
        save_embeddings(store(40_000), disk / "e.zarr")
    assert [path.name for path in disk.iterdir()] == ["e.zarr"]
    assert len(load_embeddings(disk / "e.zarr")) == 4


def test_a_read_only_place_is_said_before_anything_is_made(small_disk):
    disk = small_disk(1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match=r"e\.zarr cannot be written \(Read-only file system\); give another out="):
        refuse_no_store(disk / "run" / "e.zarr")


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match=r"cannot be made: .*/x is a file; give another out="):
        refuse_no_store(tmp_path / "x" / "e.zarr")


@pytest.mark.parametrize("spoil", ["zarr.json", "feature/rgb/zarr.json", "name/zarr.json"])
def test_a_damaged_store_is_one_sentence(tmp_path, spoil):
    path = save_embeddings(store(), tmp_path / "e.zarr")
    (path / spoil).write_text("{}")
    with pytest.raises(CheckpointError, match=r"e\.zarr is (damaged|of format None)[^\n]*embed again"):
        load_embeddings(path)
