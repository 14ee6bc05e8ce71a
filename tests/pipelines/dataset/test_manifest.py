from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from pipelines.dataset.manifest import Manifest, Samples, Shard, load_manifest, write_manifest
from pipelines.dataset.patience import Patience
from pipelines.dataset.shards import StoredSample, write_shard
from vidssl.errors import DataError, StorageError


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    shards = []
    for number in range(2):
        stored = [
            StoredSample(i, b"video%d" % i, np.arange(7, dtype=np.int32), np.array([i, 0, 0]), b"{}")
            for i in range(3 * number, 3 * number + 3)
        ]
        size, digest = write_shard(_in(tmp_path, number), stored)
        shards.append(Shard(f"shard-0000{number}.tar", size, 3, digest))
    ints = np.arange(6, dtype=np.int32)
    samples = Samples(
        shard=ints // 3,
        label=ints % 2,
        group=ints,
        split=np.array([0, 1, 0, 1, 0, 0], np.int8),
        frames=ints + 8,
        width=np.full(6, 170, np.int16),
        height=np.full(6, 128, np.int16),
        name=np.array([f"class/vidéo {i}.mp4" for i in ints]),
    )
    return write_manifest(
        Manifest(tmp_path / "a", "", "h264", 128, 25.0, 16, ("x", "y"), ("train", "test"), tuple(shards), samples, 6, 1)
    )


def _in(tmp_path, number):
    (tmp_path / "a").mkdir(exist_ok=True)
    return tmp_path / "a" / f"shard-0000{number}.tar"


def test_what_is_written_is_read_back(manifest):
    read = load_manifest(manifest.root, verify="sha256")
    assert len(read) == 6
    assert (read.hash, read.shards, read.classes, read.splits) == (
        manifest.hash,
        manifest.shards,
        manifest.classes,
        manifest.splits,
    )
    assert read.samples.name.tolist() == manifest.samples.name.tolist()
    assert np.array_equal(read.samples.split, manifest.samples.split)
    assert read.shard_path(1).is_file()
    assert read.index_path(1).is_file()


def test_rows_of_a_split_are_its_instances(manifest):
    assert manifest.rows("test").tolist() == [1, 3]
    assert manifest.rows("train").tolist() == [0, 2, 4, 5]
    assert manifest.rows().tolist() == list(range(6))
    assert manifest.rows("test").dtype == np.int64


def test_an_unknown_split_is_refused_with_the_known_ones(manifest):
    with pytest.raises(DataError, match="no split 'val'; it has train, test"):
        manifest.rows("val")


def test_the_hash_does_not_depend_on_place_or_origin(manifest, tmp_path):
    shutil.copytree(manifest.root, tmp_path / "elsewhere")
    assert load_manifest(tmp_path / "elsewhere").hash == manifest.hash
    assert write_manifest(replace(manifest, source={"path": "other"}, rejected=9)).hash == manifest.hash


@pytest.mark.parametrize("column", ["label", "group", "split", "frames"])
def test_the_hash_depends_on_every_column_a_run_can_see(manifest, column):
    changed = replace(manifest.samples, **{column: getattr(manifest.samples, column)[::-1].copy()})
    assert write_manifest(replace(manifest, samples=changed)).hash != manifest.hash


def test_a_folder_without_manifest_says_what_to_type(tmp_path):
    with pytest.raises(DataError, match=r"is no packed data .* vidssl pack folder VIDEOS"):
        load_manifest(tmp_path)


def test_a_missing_shard_or_index_is_named(manifest):
    manifest.index_path(1).unlink()
    with pytest.raises(DataError, match=r"shard-00001\.idx is missing"):
        load_manifest(manifest.root)


def test_a_shortened_shard_is_found_by_its_size(manifest):
    data = manifest.shard_path(0).read_bytes()
    manifest.shard_path(0).write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"has {len(data) - 1} bytes, the manifest says {len(data)}"):
        load_manifest(manifest.root)


def test_a_changed_byte_is_found_by_sha256_only(manifest):
    data = bytearray(manifest.shard_path(0).read_bytes())
    data[600] ^= 1
    manifest.shard_path(0).write_bytes(data)
    load_manifest(manifest.root)
    with pytest.raises(DataError, match="has changed since it was packed"):
        load_manifest(manifest.root, verify="sha256")


def test_samples_of_another_pack_are_refused(manifest):
    tree = json.loads((manifest.root / "manifest.json").read_text())
    (manifest.root / "manifest.json").write_text(json.dumps(tree | {"classes": ["z", "w"]}))
    with pytest.raises(DataError, match="do not belong together"):
        load_manifest(manifest.root)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_damaged_manifest_is_refused(manifest, text):
    (manifest.root / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="pack again"):
        load_manifest(manifest.root)


def test_damaged_samples_are_refused(manifest):
    (manifest.root / "samples.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"samples\.npz is missing or damaged"):
        load_manifest(manifest.root)


def test_a_manifest_that_is_away_is_waited_for_by_who_has_seen_it(manifest):
    path = manifest.root / "manifest.json"
    away = path.rename(manifest.root / "away")
    threading.Timer(0.4, away.rename, [path]).start()
    patience = Patience(60.0, lambda sentence: None)
    assert load_manifest(manifest.root, "nothing", patience).hash == manifest.hash
    assert patience.retries > 0
    path.unlink()
    with pytest.raises(StorageError, match=r"manifest\.json could not be reached for 0 s"):
        load_manifest(manifest.root, "nothing", Patience(0.2))
    with pytest.raises(DataError, match="is no packed data"):
        load_manifest(manifest.root, "nothing")


def test_shards_that_are_away_are_no_matter_to_who_will_wait_for_them(manifest):
    manifest.shard_path(0).unlink()
    assert load_manifest(manifest.root, "nothing").hash == manifest.hash


def test_training_rows_are_those_of_the_training_split_or_all(manifest):
    assert manifest.training_split == "train"
    assert manifest.training_rows().tolist() == [0, 2, 4, 5]
    other = replace(manifest, splits=("all", "test"))
    assert other.training_split is None
    assert other.training_rows().tolist() == list(range(6))
