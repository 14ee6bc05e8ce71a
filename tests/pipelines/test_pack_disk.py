"""Packing onto a disk that is full, or may only be read: real file systems, mounted for the test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.shards import file_sha256
from pipelines.pack import pack
from tests.pipelines.small_packs import encode
from vidssl.errors import DataError, StorageError
from vidssl.marks import LOCK

VIDEOS = 12


def mount(place: Path, options: str) -> None:
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this user may not mount a small file system: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    mount(place, "size=5m")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Noise, which no codec makes small: about 0.3 MB a video when packed."""
    root = tmp_path_factory.mktemp("source") / "noise"
    root.mkdir()
    for number in range(VIDEOS):
        rng = np.random.default_rng(number)
        paint = lambda index, height, width, rng=rng: rng.integers(0, 256, (height, width, 3), np.uint8)  # noqa: E731
        (root / f"{number}.mp4").write_bytes(encode(paint, 48, 128, 128, "h264"))
    return root.parent


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if not path.name.startswith(LOCK)}


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory) -> Path:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "plain", workers=2).root


@pytest.mark.parametrize(
    "free",
    [
        pytest.param(0.3, marks=pytest.mark.slow, id="at the start"),
        pytest.param(1.5, marks=pytest.mark.slow, id="while staging"),
        pytest.param(5.0, id="while the shards are written"),
    ],
)
def test_a_full_disk_is_one_sentence_and_the_pack_goes_on_after_space_is_made(source, plain, small_disk, free):
    size = sum(path.stat().st_size for path in plain.glob("*.tar"))
    assert 2.7e6 < size < 4.8e6  # staged it fits, beside its shards it does not
    out, ballast = small_disk / "out", small_disk / "ballast"
    ballast.write_bytes(bytes(int((5 - free) * 1024 * 1024)))
    with pytest.raises(StorageError) as stopped:
        pack("folder", source, out, workers=2)
    said = str(stopped.value)
    assert f"cannot be written: the disk {small_disk} is full (" in said
    assert said.endswith(" free); make room and type the same command again: what is done is kept")
    assert not stopped.value.final
    if free > 1:
        needed = float(said.split("(")[1].split(" MB needed")[0]) * 1e6
        assert 0.3 * size < needed < 2.2 * size
    with pytest.raises(DataError, match="no packed data"):
        load_manifest(out)
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert load_manifest(pack("folder", source, out).root, verify="sha256")
    assert checksums(out) == checksums(plain)


def test_the_command_says_a_full_disk_in_one_line_and_exits_with_2(source, small_disk):
    words = [sys.executable, "-m", "cluster", "pack", "folder", str(source), str(small_disk / "out"), "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("packing ")]
    assert len(lines) == 1
    assert "is full (" in lines[0]


def test_a_target_that_may_only_be_read_is_said_and_nothing_is_made(source, tmp_path):
    place = tmp_path / "disk"
    mount(place, "ro,size=1m")
    try:
        with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system\)"):
            pack("folder", source, place / "out")
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_finished_pack_on_a_disk_that_may_only_be_read_needs_nothing(source, tmp_path):
    place = tmp_path / "disk"
    mount(place, "size=20m")
    try:
        packed = pack("folder", source, place / "out", workers=2)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert pack("folder", source, place / "out").hash == packed.hash
    finally:
        subprocess.run(["umount", str(place)], check=True)
