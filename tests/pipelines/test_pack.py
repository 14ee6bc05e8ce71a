from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.fmp4 import fragment_table
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.shards import file_sha256, read_index
from pipelines.dataset.verify import verify
from pipelines.pack import PackOptions, Silent, in_threads, pack
from tests.pipelines.footage import numbers_of, write_video
from vidssl.errors import DataError, RecipeError, StorageError
from vidssl.marks import LOCK

GOOD = 12


class Ear(Silent):
    def __init__(self):
        self.sentences: list[str] = []
        self.ticks = 0

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def tick(self, verdict) -> None:
        self.ticks += 1


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for number in range(GOOD):
        label = "walk" if number % 2 else "run"
        write_video(root / label / f"v{number:02d}.mp4", frames=10 + 3 * number, width=128, height=128)
    write_video(root / "run" / "short.mp4", frames=3)
    (root / "run" / "empty.mp4").write_bytes(b"")
    (root / "walk" / "notes.txt").write_text("no video at all")
    (root / "list.csv").write_text("ignored\n")
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Manifest:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "packed", workers=1)


def checksums(folder: Path) -> dict[str, str]:
    """All that a pack is; what a killed taker of the lock left is swept away later."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if not path.name.startswith(LOCK)}


def test_every_file_has_a_verdict_and_only_good_ones_are_in_the_shards(packed, source):
    with (packed.root / "verdicts.csv").open() as stream:
        verdicts = {row["path"]: row for row in csv.DictReader(stream)}
    assert set(verdicts) == {str(path.relative_to(source)) for path in source.rglob("*/*") if path.is_file()}
    rejected = {path: row["reason"] for path, row in verdicts.items() if row["verdict"] == "rejected"}
    assert rejected == {
        "run/short.mp4": "only 3 frames (min_frames=8)",
        "run/empty.mp4": "the file is empty",
        "walk/notes.txt": "opening failed: Invalid data found when processing input",
    }
    assert (len(packed), packed.rejected) == (GOOD, 3)
    assert not set(packed.samples.name) & set(rejected)
    assert verdicts["walk/v01.mp4"]["frames"] == "13"


def test_what_was_packed_is_whole_to_its_last_byte(packed):
    found = verify(packed.root, workers=2)
    assert found.damages == ()
    assert found.bytes == sum(shard.bytes for shard in packed.shards)
    assert packed.checked


def test_every_sample_agrees_with_the_manifest_and_decodes_to_its_table(packed):
    instance = 0
    for shard in range(len(packed.shards)):
        data, index = packed.shard_path(shard).read_bytes(), read_index(packed.shard_path(shard))
        for row in range(len(index)):
            part = {name: data[at[row] :][: index.size[name][row]] for name, at in index.offset.items()}
            table, about = np.frombuffer(part["gop"], "<i4"), json.loads(part["json"])
            label = packed.samples.label[instance]
            assert index.keys[row] == about["key"] == f"{instance:08d}"
            assert np.frombuffer(part["idx"], "<i8").tolist() == [instance, packed.samples.group[instance], label]
            assert packed.classes[label] == about["origin"]["path"].split("/")[0]
            assert packed.samples.name[instance] == about["origin"]["path"]
            assert table[0] == packed.samples.frames[instance] == about["origin"]["frames"]
            assert numbers_of(part["mp4"]) == list(range(table[0]))
            assert np.array_equal(table[: 2 * table[2] + 5], fragment_table(part["mp4"]))
            assert packed.samples.crc[instance] == zlib.crc32(part["gop"])
            assert packed.samples.shard[instance] == shard
            instance += 1
    assert instance == GOOD


def test_a_finished_pack_does_nothing_again(packed, source):
    before = {path: path.stat().st_mtime_ns for path in packed.root.iterdir()}
    ear = Ear()
    again = pack("folder", source, packed.root, watch=ear)
    assert again.hash == packed.hash
    assert ear.sentences == [f"nothing to do: 12 of 15 packed, 3 rejected in {packed.root} (data {packed.hash})"]
    assert {path: path.stat().st_mtime_ns for path in packed.root.iterdir()} == before


def test_the_bytes_do_not_depend_on_the_number_of_workers(packed, source, tmp_path):
    pack("folder", source, tmp_path / "two", workers=2)
    assert checksums(tmp_path / "two") == checksums(packed.root)


def test_another_seed_is_another_order_of_the_same_videos(packed, source, tmp_path):
    other = pack("folder", source, tmp_path / "out", PackOptions(seed=1))
    assert other.samples.name.tolist() != packed.samples.name.tolist()
    assert sorted(other.samples.name) == sorted(packed.samples.name)


def test_an_interrupted_pack_goes_on_and_ends_with_the_same_bytes(packed, source, tmp_path):
    def five_then_full(jobs, work, workers):
        for done, staged in enumerate(in_threads(jobs, work, 1)):
            if done == 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield staged

    sentence = (
        r"the disk .* is full \(.* needed, .* free\); make room and type the same command again: what is done is kept"
    )
    with pytest.raises(StorageError, match=sentence):
        pack("folder", source, tmp_path / "out", run=five_then_full)
    with pytest.raises(DataError, match="no packed data"):
        load_manifest(tmp_path / "out")
    ear = Ear()
    pack("folder", source, tmp_path / "out", watch=ear)
    assert ear.sentences[0].startswith("going on: ")
    assert ear.ticks <= 10
    assert checksums(tmp_path / "out") == checksums(packed.root)


@pytest.mark.parametrize("staged", [0, 4, 15])
def test_a_pack_killed_at_any_time_ends_with_the_same_bytes(packed, source, tmp_path, staged):
    out = tmp_path / "out"
    script = f"from pipelines.pack import pack; pack('folder', {str(source)!r}, {str(out)!r}, workers=1)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", script], env=env) as process:
        while process.poll() is None:
            done = [path for path in out.glob(".staging/done/*/*") if path.name.isdigit()]
            if len(done) >= staged and out.is_dir():
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    pack("folder", source, out)
    assert checksums(out) == checksums(packed.root)


def test_a_kill_between_manifest_and_clean_up_leaves_no_staging_behind(packed, source, tmp_path):
    shutil.copytree(packed.root, tmp_path / "out")
    (tmp_path / "out/.staging/done").mkdir(parents=True)
    pack("folder", source, tmp_path / "out")
    assert checksums(tmp_path / "out") == checksums(packed.root)


def test_other_options_into_the_same_folder_are_refused_with_the_way_out(packed, source):
    with pytest.raises(
        DataError, match=r"another pack \(size=128 then, size=160 now\); give another OUT, or .*fresh=true"
    ):
        pack("folder", source, packed.root, PackOptions(size=160))


def test_other_options_are_refused_while_half_done_too(source, tmp_path):
    def none(jobs, work, workers):
        raise OSError(errno.ENOSPC, "full")
        yield

    with pytest.raises(StorageError, match="is full"):
        pack("folder", source, tmp_path / "out", run=none)
    with pytest.raises(DataError, match="crf=None then, crf=30 now"):
        pack("folder", source, tmp_path / "out", PackOptions(crf=30))
    assert len(pack("folder", source, tmp_path / "out", PackOptions(crf=30, fresh=True))) == GOOD


def test_a_changed_source_is_refused_and_fresh_packs_it(source, tmp_path):
    shutil.copytree(source, tmp_path / "src")
    first = pack("folder", tmp_path / "src", tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("not of the pack")
    write_video(tmp_path / "src" / "run" / "new.mp4")
    with pytest.raises(DataError, match="the files of the source have changed since"):
        pack("folder", tmp_path / "src", tmp_path / "out")
    second = pack("folder", tmp_path / "src", tmp_path / "out", PackOptions(fresh=True))
    assert (len(first), len(second)) == (GOOD, GOOD + 1)
    assert (tmp_path / "out" / "mine.txt").is_file()


def test_a_damaged_pack_is_refused_and_fresh_mends_it(packed, source, tmp_path):
    shutil.copytree(packed.root, tmp_path / "out")
    (tmp_path / "out" / "shard-00000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.tar is missing"):
        pack("folder", source, tmp_path / "out")
    pack("folder", source, tmp_path / "out", PackOptions(fresh=True))
    assert checksums(tmp_path / "out") == checksums(packed.root)


def staged_then_stopped(source: Path, out: Path) -> list[Path]:
    """A pack that ends when all is staged and nothing assembled; returns the staged files by size."""

    def then_stop(jobs, work, workers):
        yield from in_threads(jobs, work, 2)
        raise OSError(errno.EACCES, "stopped")

    with pytest.raises(StorageError, match=r"cannot be written \(stopped\)"):
        pack("folder", source, out, run=then_stop)
    return sorted(out.glob(".staging/done/*/*"), key=lambda path: path.stat().st_size)


def test_staged_videos_that_a_power_cut_damaged_are_all_packed_again_in_one_start(packed, source, tmp_path):
    out, ear = tmp_path / "out", Ear()
    *_, one, two, three, four, five = staged_then_stopped(source, out)
    one.write_bytes(b"")  # what a journalling file system leaves of a file that was not fsynced
    two.write_bytes(two.read_bytes()[:-7])
    three.write_bytes(b"{" + three.read_bytes()[1:70])
    four.write_bytes(bytes(four.stat().st_size))
    flipped = bytearray(five.read_bytes())
    flipped[-100] ^= 4
    five.write_bytes(flipped)
    pack("folder", source, out, watch=ear)
    assert ear.sentences == [
        "4 staged videos are damaged (a loss of power?) and packed again",
        "going on: 11 of 15 videos were done before",
        "1 staged video is damaged (a loss of power?) and packed again",
        "going on: 14 of 15 videos were done before",
    ]
    assert ear.ticks == 5
    assert checksums(out) == checksums(packed.root)


@pytest.mark.parametrize("plan", [b"{", *(pytest.param(torn, marks=pytest.mark.slow) for torn in (b"", b"[]"))])
def test_a_torn_plan_begins_the_staging_again(packed, source, tmp_path, plan):
    out = tmp_path / "out"
    staged_then_stopped(source, out)
    (out / ".staging/plan.json").write_bytes(plan)
    pack("folder", source, out)
    assert checksums(out) == checksums(packed.root)


def test_a_disk_that_never_gives_back_what_was_written_ends_the_pack(source, tmp_path):
    def forgetful(jobs, work, workers):
        yield from in_threads(jobs, work, 2)
        max(Path(work.out).glob(".staging/done/*/*"), key=lambda path: path.stat().st_size).write_bytes(b"")

    with pytest.raises(StorageError, match=r"does not give back what is written to it: .* 3 times in a row"):
        pack("folder", source, tmp_path / "out", run=forgetful)


@pytest.mark.parametrize("inside", ["", "packed"])
def test_packing_into_the_source_is_refused(source, inside):
    with pytest.raises(DataError, match="lies in the source"):
        pack("folder", source, source / inside)


def start_pack(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """`vidssl pack folder SOURCE OUT` in a process of its own."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(words_of_pack(source, out), stdout=quiet, stderr=quiet, cwd=Path(__file__).parents[2])


def words_of_pack(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "cluster", "pack", "folder", str(source), str(out), "--workers", "1"]


def test_two_packs_into_one_folder_at_once_are_refused_and_the_first_goes_on(packed, source, tmp_path):
    out = tmp_path / "out"
    with start_pack(source, out) as first:
        while first.poll() is None and not (out / ".staging/plan.json").is_file():
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second has begun
        second = subprocess.run(words_of_pack(source, out), capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert second.returncode == 2
    assert f"{out} is in use by `vidssl pack` (process {first.pid} on " in second.stderr
    assert "give another folder" in second.stderr
    assert second.stderr.count("\n") == 1
    assert checksums(out) == checksums(packed.root)


def test_the_lock_of_a_killed_pack_is_taken_over_with_a_word(packed, source, tmp_path):
    out, ear = tmp_path / "out", Ear()
    with start_pack(source, out) as first:
        while first.poll() is None and not (out / ".staging/plan.json").is_file():
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    assert (out / ".vidssl.lock").is_file()
    pack("folder", source, out, watch=ear)
    assert f"(process {first.pid} on " in ear.sentences[0]
    assert ear.sentences[0].endswith("which is gone, is taken over")
    assert checksums(out) == checksums(packed.root)


def test_a_folder_that_cannot_be_made_is_said(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out cannot be made: .*file is a file; give another OUT"):
        pack("folder", source, tmp_path / "file" / "out")


def test_a_source_that_goes_away_on_the_way_is_no_verdict_on_its_videos(packed, source, tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(source, src)

    def unmounted(jobs, work, workers):
        yield from in_threads(jobs[:5], work, 1)
        src.rename(tmp_path / "away")
        src.mkdir()
        yield from in_threads(jobs[5:], work, 1)

    with pytest.raises(StorageError, match=r"was there when the pack began and is gone now, .*: what is done is kept"):
        pack("folder", src, out, run=unmounted)
    src.rmdir()
    (tmp_path / "away").rename(src)
    ear = Ear()
    assert pack("folder", src, out, watch=ear).rejected == 3
    assert ear.sentences == ["going on: 5 of 15 videos were done before"]


@pytest.mark.parametrize("workers", [0, -1, -(10**9)])
def test_no_workers_are_refused_before_anything_is_made(source, tmp_path, workers):
    with pytest.raises(RecipeError, match=f"{workers} workers pack nothing; give at least 1"):
        pack("folder", source, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_a_source_without_one_good_video_is_an_error_with_the_table(tmp_path):
    (tmp_path / "src/a").mkdir(parents=True)
    (tmp_path / "src/a/x.mp4").write_text("no")
    with pytest.raises(DataError, match=r"none of 1 videos could be packed .*see .*verdicts\.csv"):
        pack("folder", tmp_path / "src", tmp_path / "out")
    assert "x.mp4,rejected" in (tmp_path / "out" / "verdicts.csv").read_text()


def test_groups_are_dense_and_splits_are_kept(source, tmp_path):
    lines = ["path,label,split,group"]
    lines += [f"{p.relative_to(source)},{p.parent.name},{'test' if i % 3 == 0 else 'train'},g{i // 4}"
              for i, p in enumerate(sorted(source.rglob("v*.mp4")))]  # fmt: skip
    shutil.copytree(source, tmp_path / "src")
    (tmp_path / "src/list.csv").write_text("\n".join(lines))
    manifest = pack("csv", tmp_path / "src/list.csv", tmp_path / "out", PackOptions(shard_mb=0.01))
    assert manifest.splits == ("train", "test")
    assert (manifest.groups, sorted(set(manifest.samples.group.tolist()))) == (3, [0, 1, 2])
    assert len(manifest.rows("test")) == 4
    assert len(manifest.shards) > 1
    assert max(s.samples for s in manifest.shards) - min(s.samples for s in manifest.shards) <= 1


@pytest.mark.slow
def test_every_file_of_the_torture_set_gets_a_verdict(clips_root, tmp_path):
    manifest = pack("folder", clips_root / "torture", tmp_path / "out")
    files = sum(path.is_file() for path in (clips_root / "torture").rglob("*/*"))
    assert len(manifest) + manifest.rejected == files
    assert len(manifest) > 30
