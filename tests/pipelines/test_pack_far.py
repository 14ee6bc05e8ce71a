"""Videos that lie in a store are packed as those in a folder are: the same bytes, through outages and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pipelines.pack import PackOptions, pack
from tests.pipelines.footage import Heard, two_classes, write_video
from tests.pipelines.stores import BUCKET, environment
from vidssl.errors import DataError, RecipeError, StorageError

SMALL = PackOptions(shard_mb=0.002)
HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    two_classes(root)
    (root / "a" / "broken.mp4").write_bytes(b"no video at all")
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.glob("*/v*.mp4"))]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]))
    return root


@pytest.fixture
def put(source, s3):
    """Copies the source below a prefix; returns the address."""

    def put(prefix: str) -> str:
        for path in source.rglob("*"):
            if path.is_file():
                s3.put(f"{prefix}/{path.relative_to(source)}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    return put


@pytest.fixture(autouse=True)
def copies(monkeypatch, tmp_path):
    """Where videos are fetched to; nothing stays there."""
    place = tmp_path / "copies"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    assert not list(place.iterdir())


def shards(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name.startswith(("shard", "samples", "verdicts"))
    }


@pytest.mark.parametrize(("format", "name"), [("folder", ""), ("csv", "/list.csv")])
def test_a_source_in_a_store_is_packed_to_the_bytes_of_the_same_folder(source, put, tmp_path, format, name):
    address, heard = put(f"videos-{format}") + name, Heard()
    there = pack(format, address, tmp_path / "far", SMALL, workers=2, watch=heard)
    here = pack(format, f"{source}{name}", tmp_path / "near", SMALL, workers=2)
    assert shards(there.folder) == shards(here.folder)
    assert there.source["path"] == address
    assert not [sentence for sentence in heard.said if "passed over" in sentence]
    again = Heard()
    pack(format, address, tmp_path / "far", SMALL, watch=again)
    assert [sentence.partition(":")[0] for sentence in again.said] == ["nothing to do"]


def test_clips_that_are_cut_of_one_source_are_cut_of_one_copy(put, s3, tmp_path, monkeypatch):
    from pipelines.dataset.remote import RemoteStore

    read, asked = RemoteStore.read_range, []

    def counted(store, name, begin, size):
        asked.append(name)
        return read(store, name, begin, size)

    write_video(tmp_path / "long.mp4", frames=100, width=128, height=128)
    s3.put("long/a/long.mp4", (tmp_path / "long.mp4").read_bytes())
    monkeypatch.setattr(RemoteStore, "read_range", counted)
    options = PackOptions(cut="1s", cut_min=0.5)
    manifest = pack("folder", f"s3://{BUCKET}/long", tmp_path / "out", options, workers=1)
    assert len(manifest) >= 3
    assert asked.count("a/long.mp4") <= 2  # once to look where it is cut, once to pack the clips


def test_a_source_that_changed_in_its_store_is_another_pack(put, s3, source, tmp_path):
    address = put("changed")
    pack("folder", address, tmp_path / "out", SMALL)
    s3.put("changed/a/v00.mp4", (source / "b" / "v01.mp4").read_bytes())
    with pytest.raises(DataError, match="the files of the source have changed since"):
        pack("folder", address, tmp_path / "out", SMALL)


def test_a_store_that_goes_away_while_it_is_read_costs_nothing_but_time(put, s3, source, tmp_path):
    address = put("away")
    s3.go_away()
    threading.Timer(2.0, s3.come_back).start()
    heard = Heard()
    there = pack("folder", address, tmp_path / "far", SMALL, workers=1, watch=heard)
    assert any("cannot be reached (connection refused): waiting for it" in sentence for sentence in heard.said)
    assert shards(there.folder) == shards(pack("folder", source, tmp_path / "near", SMALL).folder)


def test_a_video_that_went_away_since_the_listing_stops_the_pack_and_is_no_verdict(put, s3, tmp_path, monkeypatch):
    from pipelines.packing import far

    address, lay_out = put("gone"), far._lay_out

    def lay_out_and_lose(*given):
        notes = lay_out(*given)
        s3.remove("gone/b/v03.mp4")
        return notes

    monkeypatch.setattr(far, "_lay_out", lay_out_and_lose)
    with pytest.raises(StorageError, match=rf"^{address}/b/v03.mp4 was there when the pack began and is gone now"):
        pack("folder", address, tmp_path / "out", SMALL)


def test_keys_that_are_no_names_of_files_are_passed_over_in_a_sentence(put, s3, source, tmp_path):
    address = put("odd")
    data = (source / "a" / "v00.mp4").read_bytes()
    for key in ("odd/a/v00.mp4/inside.mp4", f"odd/a/{'x' * 300}.mp4", "odd/a/ü b%20c#.mp4"):
        s3.put(key, data)
    s3.put("odd/a/", b"")  # what consoles make of a folder
    heard = Heard()
    manifest = pack("folder", address, tmp_path / "out", SMALL, watch=heard)
    names = set(manifest.samples.name.tolist())
    assert {
        "a/v00.mp4/inside.mp4",
        "a/ü b%20c#.mp4",
    } <= names  # a key that is a folder too: what is in the folder stays
    (said,) = [sentence for sentence in heard.said if sentence.startswith("passed over '")]
    assert said.endswith(f"' (and 1 more like it) in {address}, which cannot be the name of a file beside the others")


def test_an_empty_object_is_a_verdict_and_no_store_that_does_not_answer(put, s3, tmp_path):
    address = put("empty")
    s3.put("empty/a/nothing.mp4", b"")
    s3.put("empty/notes.txt", b"")
    pack("folder", address, tmp_path / "out", SMALL)
    (line,) = [one for one in (tmp_path / "out" / "verdicts.csv").read_text().splitlines() if "nothing.mp4" in one]
    assert "rejected" in line
    assert "the file is empty" in line


@pytest.mark.parametrize("key", ["a/../../../up.mp4", "a//v.mp4"])
def test_a_key_that_leads_elsewhere_is_refused_and_nothing_is_written_outside(s3, tmp_path, key):
    prefix = f"leads-{len(key)}"
    s3.put(f"{prefix}/{key}", b"1234")
    with pytest.raises(
        DataError, match=rf"^s3://{BUCKET}/{prefix} cannot be read: it holds the key '.*', which is no path; remove it"
    ):
        pack("folder", f"s3://{BUCKET}/{prefix}", tmp_path / "out", SMALL)
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("format", "address", "options", "error", "match"),
    [
        ("folder", "https://host/videos", {}, DataError, "is on a web server, which cannot say what it holds"),
        ("folder", "ftp://host/videos", {}, DataError, "an unknown kind of store"),
        ("webdataset", f"s3://{BUCKET}/tars", {}, RecipeError, "reads its tars in place"),
        (
            "ucf101",
            f"s3://{BUCKET}/ucf",
            {"fold": "all"},
            RecipeError,
            r"fold=all does not go with s3://\S+, which is no folder",
        ),
        ("folder", f"s3://{BUCKET}/nothing-there", {}, DataError, "holds no objects; give the prefix of the videos"),
        ("folder", "s3://no-such-bucket/x", {}, DataError, "there is no bucket 'no-such-bucket'"),
    ],
)
def test_what_cannot_be_read_from_a_store_is_refused_in_a_sentence(
    s3, tmp_path, format, address, options, error, match
):
    with pytest.raises(error, match=match) as said:
        pack(format, address, tmp_path / "out", PackOptions(**options))
    assert "\n" not in str(said.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_pack_goes_on_and_what_it_fetched_is_removed_by_the_next(put, s3, source, tmp_path, copies):
    address = put("killed")
    words = [
        sys.executable,
        "-m",
        "cluster",
        "pack",
        "folder",
        address,
        str(tmp_path / "out"),
        "--workers",
        "1",
        "shard_mb=0.002",
    ]
    process = subprocess.Popen(
        words, env=environment(**s3.environment, TMPDIR=str(copies)), cwd=HERE, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while len(list(copies.glob("vidssl-packing-*/video.mp4"))) < 1:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert list(copies.iterdir())
    done = subprocess.run(
        words, env=environment(**s3.environment, TMPDIR=str(copies)), cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "out") == shards(pack("folder", source, tmp_path / "near", SMALL).folder)
    assert not list(copies.glob(f"vidssl-packing-*-{process.pid}-*"))


@pytest.mark.skipif(os.getuid() != 0, reason="a mount takes root")
def test_a_full_disk_of_copies_is_named_and_is_not_that_of_the_pack(put, s3, tmp_path, copies):
    address = put("full")
    s3.put("full/a/large.mp4", bytes(1_000_000))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], check=True)
    try:
        env = environment(TMPDIR=str(small)) | {
            name: word for name, word in os.environ.items() if name.startswith("AWS_")
        }
        words = [sys.executable, "-m", "cluster", "pack", "folder", address, str(tmp_path / "out"), "--workers", "1"]
        done = subprocess.run(words, env=env, cwd=HERE, capture_output=True, text=True)
        assert done.returncode == 2
        assert "videos are fetched there one by one: set TMPDIR to a folder with more room" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)
