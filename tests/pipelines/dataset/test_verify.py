"""Real tars of real encoded video, and single bits flipped in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.shards import COMPONENTS, file_sha256, read_index
from pipelines.dataset.verify import verify
from pipelines.loader import LoaderSpec, TrainLoader
from tests.pipelines.small_packs import encode, make_pack, moving, write_pack
from vidssl.errors import DataError
from vidssl.recipe import Augment, Clips, Loader

FLIPS = 60
VIDEOS = 66


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Manifest:
    """66 videos of three fragments."""
    videos = [encode(moving(number), 40, 128, 128, "h264") for number in range(VIDEOS)]
    return write_pack(tmp_path_factory.mktemp("whole") / "pack", "h264", videos, [(128, 128)] * VIDEOS)


@pytest.fixture
def pack(whole, tmp_path) -> Manifest:
    shutil.copytree(whole.root, tmp_path / "pack")
    return load_manifest(tmp_path / "pack")


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (value,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([value ^ 1 << bit % 8]))


def place(manifest: Manifest, instance: int, rng: np.random.Generator) -> tuple[Path, int]:
    """A random bit of all the bytes of a sample: its shard, and the number of the bit in it."""
    shard = int(manifest.samples.shard[instance])
    path = manifest.shard_path(shard)
    index, row = read_index(path), instance - int(np.flatnonzero(manifest.samples.shard == shard)[0])
    sizes = [int(index.size[name][row]) for name in COMPONENTS]
    byte = int(rng.integers(sum(sizes)))
    part = int(np.searchsorted(np.cumsum(sizes), byte, side="right"))
    inside = byte - sum(sizes[:part])
    return path, 8 * (int(index.offset[COMPONENTS[part]][row]) + inside) + int(rng.integers(8))


def flipped(manifest: Manifest, seed: int) -> dict[int, tuple[Path, int]]:
    """One bit in each of 60 samples: {instance: (shard, bit)}."""
    rng = np.random.default_rng(seed)
    hit = {i: place(manifest, i, rng) for i in sorted(rng.permutation(len(manifest))[:FLIPS].tolist())}
    for path, bit in hit.values():
        flip(path, bit)
    return hit


def trained_on(manifest: Manifest, **changes) -> TrainLoader:
    loader = Loader(decode="py", **changes)
    spec = LoaderSpec(Clips(frames=4, size=32), Augment(), loader, ("rgb",), batch=len(manifest), seed=0)
    return TrainLoader(manifest, spec, rank=0, world=1, device=torch.device("cpu"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_60_flipped_bits_are_60_samples_named_by_training(pack, seed):
    hit = flipped(pack, seed)
    loader = trained_on(pack, bad_floor=FLIPS)
    try:
        batch = loader.next()
    finally:
        loader.close()
    assert sorted(bad.instance for bad in loader.meter.bad) == sorted(hit)
    assert not set(batch.instance.tolist()) & set(hit)
    for bad in loader.meter.bad:
        path, bit = hit[bad.instance]
        first, last = map(int, bad.reason.split("bytes ")[1].split(" of ")[0].split("-"))
        assert first <= bit // 8 <= last
        assert (
            bad.reason
            == f"videos/{bad.instance}.mp4: bytes {first}-{last} of {path.name} are not what was packed (crc32)"
        )


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_60_flipped_bits_are_60_samples_named_by_verify(pack, seed):
    hit = flipped(pack, seed)
    found = verify(pack.root, workers=2)
    assert found.samples == tuple(sorted(hit))
    assert len(found.damages) == FLIPS
    for damage in found.damages:
        path, bit = hit[damage.instance]
        ((first, stop),) = damage.ranges
        assert first <= bit // 8 < stop
        assert str(damage) == (
            f"sample {damage.instance:08d} (videos/{damage.instance}.mp4) in {path.name}, bytes {first}-{stop - 1}: "
            "not what was packed (crc32)"
        )


def test_a_flipped_bit_in_a_video_names_its_fragment_and_not_the_whole(pack):
    index = read_index(pack.shard_path(0))
    begin, size = int(index.offset["mp4"][3]), int(index.size["mp4"][3])
    flip(pack.shard_path(0), 8 * (begin + size // 2))
    (damage,) = verify(pack.root, workers=1).damages
    ((first, stop),) = damage.ranges
    assert begin < first <= begin + size // 2 < stop < begin + size
    assert stop - first < size / 2


def test_a_whole_pack_is_read_to_its_last_byte(pack):
    found = verify(pack.root, workers=2)
    assert found.damages == ()
    assert found.bytes == sum(path.stat().st_size for path in pack.root.glob("*.tar"))
    assert found.manifest.hash == pack.hash


def test_a_bit_outside_of_all_samples_is_found_too(pack):
    flip(pack.shard_path(1), 8 * 300)  # inside the first tar header
    (damage,) = verify(pack.root, workers=2).damages
    assert str(damage).startswith("shard-00001.tar: bytes outside its samples are not what was packed (sha256)")


def test_a_missing_shard_a_short_one_and_a_damaged_index_are_all_named_at_once(tmp_path):
    videos = [encode(moving(number), 20, 128, 128, "h264") for number in range(6)]
    pack = write_pack(tmp_path / "pack", "h264", videos, [(128, 128)] * 6)
    (tmp_path / "other").mkdir()
    shutil.copytree(pack.root, tmp_path / "gone")
    (tmp_path / "gone" / "shard-00001.tar").unlink()
    data = pack.shard_path(0).read_bytes()
    (tmp_path / "gone" / "shard-00000.tar").write_bytes(data[: len(data) // 2])
    lines = [str(damage) for damage in verify(tmp_path / "gone", workers=2).damages]
    assert lines[0] == f"shard-00000.tar: has {len(data) // 2} bytes, the manifest says {len(data)}"
    assert "sample 00000002 (videos/2.mp4) in shard-00000.tar" in lines[-2]
    assert lines[-2].endswith("it ends before this sample does")
    assert lines[-1] == "shard-00001.tar: cannot be opened (No such file or directory)"
    pack.index_path(0).write_text("nonsense\n")
    (damage,) = verify(pack.root, workers=1).damages
    assert damage.file == "shard-00000.idx"
    assert "starts with 'nonsense'" in damage.what


def test_a_pack_without_checksums_is_verified_by_the_checksums_of_its_shards(tmp_path):
    pack = make_pack(tmp_path / "old", "h264", checked=False)
    assert verify(pack.root, workers=2).damages == ()
    flip(pack.shard_path(1), 8 * 9000)
    (damage,) = verify(pack.root, workers=2).damages
    assert str(damage) == "shard-00001.tar: has changed (sha256)"


def test_a_video_of_a_pack_without_checksums_is_named_by_what_its_json_says(packed_before, tmp_path):
    pack = load_manifest(packed_before)
    rng = np.random.default_rng(0)
    index = read_index(pack.shard_path(0))
    flip(pack.shard_path(0), 8 * (int(index.offset["mp4"][2]) + 1000) + int(rng.integers(8)))
    assert verify(pack.root, workers=2).samples == (2,)


@pytest.fixture
def packed_before(tmp_path) -> Path:
    """A pack as `vidssl pack` made it before format 2: no checksum but the sha256 in each `json`."""
    import hashlib
    import json
    from dataclasses import replace

    from pipelines.dataset.fmp4 import fragment_table
    from pipelines.dataset.manifest import write_manifest
    from pipelines.dataset.shards import StoredSample, write_shard

    pack = make_pack(tmp_path / "before", "h264", checked=False)
    shards = []
    for number, shard in enumerate(pack.shards):
        data, index = pack.shard_path(number).read_bytes(), read_index(pack.shard_path(number))
        rows = []
        for row, key in enumerate(index.keys):
            mp4 = data[index.offset["mp4"][row] :][: index.size["mp4"][row]]
            about = json.dumps({"key": key, "sha256": hashlib.sha256(mp4).hexdigest()}).encode()
            idx = np.array([int(key), int(key) // 2, int(key) % 3])
            rows.append(StoredSample(int(key), mp4, fragment_table(mp4), idx, about))
        size, digest = write_shard(pack.shard_path(number), rows)
        assert digest == file_sha256(pack.shard_path(number))
        shards.append(replace(shard, bytes=size, sha256=digest))
    return write_manifest(replace(pack, shards=tuple(shards))).root


def test_a_folder_that_is_no_pack_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no packed data"):
        verify(tmp_path, workers=1)
