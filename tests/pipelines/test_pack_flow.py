"""Whole packs with flow, and flow added to packs that were made without: the same bytes, whatever happened on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.flow import FlowForm
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.shards import read_index
from pipelines.dataset.verify import verify
from pipelines.pack import PackOptions, in_threads, pack, pack_options
from pipelines.packing.added import finish_switch
from pipelines.packing.options import PackOptions as Options
from tests.pipelines.footage import write_video
from tests.pipelines.test_pack import Ear, checksums
from vidssl.errors import DataError, RecipeError, StorageError

FLOW = ("flow.mp4", "flow.gop", "flow.json")
COUNT = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for number in range(COUNT):
        write_video(
            root / "ab"[number % 2] / f"v{number}.mp4", frames=9 + 2 * number, width=128, height=128, corner=True
        )
    (root / "a" / "none.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory) -> Manifest:
    return pack("folder", source, tmp_path_factory.mktemp("plain") / "out", PackOptions(shard_mb=0.01))


@pytest.fixture(scope="module")
def flowing(source, tmp_path_factory) -> Manifest:
    return pack("folder", source, tmp_path_factory.mktemp("flow") / "out", PackOptions(shard_mb=0.01, flow="dis"))


@pytest.fixture
def copy(plain, tmp_path) -> Path:
    shutil.copytree(plain.root, tmp_path / "out")
    return tmp_path / "out"


def members(manifest: Manifest) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in range(len(manifest.shards)):
        with tarfile.open(manifest.shard_path(shard)) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


ADD = PackOptions(flow="dis", add="flow")


def add(out: Path, options: Options = ADD, **more) -> Manifest:
    return pack("folder", "gone", out, options, **more)


def test_a_pack_without_flow_says_nothing_of_it_and_one_with_it_everything(plain, flowing):
    text = (plain.root / "manifest.json").read_text()
    assert "flow" not in text.replace(str(plain.root), "")
    assert json.loads(text)["format"] == 2
    tree = json.loads((flowing.root / "manifest.json").read_text())
    assert tree["format"] == 3
    assert load_manifest(flowing.root).flow == FlowForm("dis", "companded", 128, 29)
    about = json.loads(members(flowing)["00000000.flow.json"])
    assert about["quantiser"] == "luma = 128 + round(107 sign(f) sqrt(|f| / 20)), |f| cut at 20"
    assert {key: about[key] for key in ("bound", "algorithm", "mirror", "frames", "width", "size")} == {
        "bound": 20.0, "algorithm": "dis", "mirror": "u negated", "frames": int(flowing.samples.frames[0]), "width": 128, "size": 128,
    }  # fmt: skip


def test_flow_stands_beside_rgb_and_changes_none_of_its_bytes(plain, flowing):
    alone, both = members(plain), members(flowing)
    assert len(plain.shards) > 1
    assert {name: data for name, data in both.items() if not name.endswith(FLOW)} == alone
    assert set(both) - set(alone) == {f"{i:08d}.{part}" for i in range(COUNT) for part in FLOW}
    assert verify(flowing.root, workers=2).damages == ()


def test_flow_that_is_added_makes_the_very_pack_that_would_have_held_it_from_the_start(flowing, plain, copy):
    ear = Ear()
    again = add(copy, watch=ear)
    assert checksums(copy) == checksums(flowing.root) | {
        "manifest.json": checksums(copy)["manifest.json"]
    }  # which names another source
    assert again.hash == flowing.hash != plain.hash
    assert ear.sentences[0].startswith("flow=dis of 84 frames at 128 px: about ")
    assert ear.sentences[0].endswith(" there are until the new shards hold both")
    assert ear.sentences[1].startswith(f"the data was {plain.hash} and is {flowing.hash} with flow: ")
    assert ear.ticks == COUNT
    assert not (copy / ".staging-flow").exists()


def test_flow_that_is_there_is_not_made_again_and_the_pack_is_what_the_words_say(flowing, source):
    before, ear = checksums(flowing.root), Ear()
    add(flowing.root, watch=ear)
    pack("folder", source, flowing.root, PackOptions(shard_mb=0.01, flow="dis"), watch=ear)
    assert ear.sentences == [
        f"nothing to do: {flowing.root} holds this flow already (data {flowing.hash})",
        f"nothing to do: {COUNT} of 7 packed, 1 rejected in {flowing.root} (data {flowing.hash})",
    ]
    assert checksums(flowing.root) == before
    with pytest.raises(
        DataError, match=r"another pack \(flow=dis then, flow=none now\); give another OUT, or type fresh=true"
    ):
        pack("folder", source, flowing.root, PackOptions(shard_mb=0.01))


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (["flow=tvl1"], DataError, r"holds flow already \(its algorithm is dis, tvl1 was asked for\); give another OUT"),
        (["flow_encoding=parity"], DataError, r"its encoding is companded, parity was asked for; its crf is 29, 14 was"),
        (["size=256"], RecipeError, r"size=256: .* was packed with size=128, and add=flow changes no frame of it; leave size out"),
        (["codec=vp9"], RecipeError, r"codec=vp9: .* was packed with codec=h264"),
        (["flow_size=256"], RecipeError, r"flow_size=256 is larger than size=128"),
        (["flow=none"], RecipeError, r"add=flow makes flow, and flow=none makes none; type flow=dis"),
        (["fresh=true"], RecipeError, r"fresh=true throws away the pack that add=flow adds to"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused_and_nothing_is_touched(flowing, words, error, sentence):
    before = checksums(flowing.root)
    with pytest.raises(error, match=sentence):
        add(flowing.root, pack_options(["add=flow", *words]))
    assert checksums(flowing.root) == before


def test_words_of_flow_without_flow_are_refused():
    for word in ("flow_size=128", "flow_encoding=parity", "flow_crf=20"):
        with pytest.raises(RecipeError, match=f"{word} is about flow, and flow=none makes none; type flow=dis"):
            pack_options([word])
    with pytest.raises(RecipeError, match="flow_crf=60: h264 takes 0 to 51"):
        pack_options(["flow=dis", "flow_crf=60"])


def test_flow_is_added_to_nothing_but_a_pack_of_ours(copy, tmp_path):
    with pytest.raises(DataError, match="is no packed data"):
        add(tmp_path / "nothing")
    (copy / ".vidssl.json").unlink()
    with pytest.raises(DataError, match="was not made by this version's `vidssl pack`"):
        add(copy)


def test_a_full_disk_leaves_the_pack_as_it_was_and_the_same_words_go_on(plain, flowing, copy):
    def three_then_full(jobs, work, workers):
        for done, staged in enumerate(in_threads(jobs, work, 1)):
            if done == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield staged

    with pytest.raises(
        StorageError, match=r"is full .*make room and type the same command again: what is done is kept"
    ):
        add(copy, run=three_then_full)
    assert checksums_of_pack(copy) == checksums_of_pack(plain.root)
    assert load_manifest(copy, "sha256").hash == plain.hash
    ear = Ear()
    assert add(copy, watch=ear).hash == flowing.hash
    assert ear.sentences[1] == f"going on: the flow of {COUNT - ear.ticks} of {COUNT} videos was made before"
    assert 0 < ear.ticks <= 3


def checksums_of_pack(folder: Path) -> dict[str, str]:
    """Without the journal of an addition under way."""
    import hashlib

    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".vidssl.lock")}  # fmt: skip


@pytest.mark.parametrize("staged", [1, COUNT])
def test_an_addition_killed_at_any_time_leaves_a_whole_pack_or_is_finished_by_the_same_words(
    flowing, plain, copy, staged
):
    script = (
        "from pipelines.pack import pack, pack_options; "
        f"pack('folder', 'gone', {str(copy)!r}, pack_options(['add=flow']), workers=1)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", script], env=env) as process:
        while process.poll() is None:
            done = [path for path in copy.glob(".staging-flow/done/*/*") if path.name.isdigit()]
            if len(done) >= staged and (copy / ".staging-flow").is_dir():
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    switching = (copy / ".staging-flow/whole/manifest.json").is_file()
    assert switching or load_manifest(copy, "sha256").hash in (plain.hash, flowing.hash)
    assert add(copy).hash == flowing.hash
    assert load_manifest(copy, "sha256").hash == flowing.hash
    assert not (copy / ".staging-flow").exists()


@pytest.mark.parametrize("renames", [0, 3])
def test_the_new_manifest_comes_into_place_last(flowing, plain, copy, monkeypatch, renames):
    whole, real, done = copy / ".staging-flow" / "whole", Path.replace, []

    def dying(path, target):
        if path.parent == whole and Path(target).parent == copy:
            if len(done) == renames:
                raise OSError(errno.EIO, "the power is gone")
            done.append(path.name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(StorageError, match="the power is gone"):
        add(copy)
    assert len(done) == renames
    assert json.loads((copy / "manifest.json").read_text())["hash"] == plain.hash
    monkeypatch.undo()
    assert add(copy).hash == flowing.hash
    assert load_manifest(copy, "sha256").hash == flowing.hash


@pytest.mark.parametrize("moved", [0, 2, 5])
def test_a_kill_between_the_renames_is_finished_by_whoever_packs_next(flowing, plain, copy, source, moved):
    """`moved` of the new files are in place; the old manifest no longer fits and the new one is not there yet."""
    whole = copy / ".staging-flow" / "whole"
    whole.mkdir(parents=True)
    names = sorted(name for name in checksums_of_pack(flowing.root) if name not in ("verdicts.csv", ".vidssl.json"))
    for name in names:
        shutil.copy(flowing.root / name, whole / name)
    names.remove("manifest.json")
    for name in names[:moved]:
        (whole / name).replace(copy / name)
    ear = Ear()
    pack("folder", source, copy, PackOptions(shard_mb=0.01, flow="dis"), watch=ear)
    assert ear.sentences == [f"nothing to do: {COUNT} of 7 packed, 1 rejected in {copy} (data {flowing.hash})"]
    assert checksums(copy) == checksums(flowing.root)
    assert not finish_switch(copy)


def test_a_damaged_packed_video_stops_the_addition_and_is_named(plain, copy):
    path = copy / plain.shards[0].name
    data, place = bytearray(path.read_bytes()), int(read_index(path).offset["mp4"][0]) + 900
    data[place] ^= 8
    path.write_bytes(data)
    name = plain.samples.name[0]
    with pytest.raises(
        DataError, match=rf"{name} in .* cannot be used: bytes .* are not what was packed \(crc32\); see all with"
    ):
        add(copy)
    data[place] ^= 8
    path.write_bytes(data)
    assert add(copy).flow is not None


def test_staged_flow_that_a_power_cut_damaged_is_made_again(flowing, copy):
    def then_stop(jobs, work, workers):
        yield from in_threads(jobs, work, 2)
        raise OSError(errno.EACCES, "stopped")

    with pytest.raises(StorageError, match=r"cannot be written \(stopped\)"):
        add(copy, run=then_stop)
    one, two, *_ = sorted(copy.glob(".staging-flow/done/*/*"))
    one.write_bytes(b"")
    broken = bytearray(two.read_bytes())
    broken[-50] ^= 2
    two.write_bytes(broken)
    ear = Ear()
    assert add(copy, watch=ear).hash == flowing.hash
    assert ear.ticks == 2


def test_slow_flow_is_no_hang_and_no_reason_to_give_a_video_up(source, tmp_path):
    """The limits of a machine are about foreign bytes: TV-L1 takes its time over frames that are packed already."""
    options = PackOptions(flow="tvl1", timeout=2, max_seconds=2)
    (tmp_path / "src/a").mkdir(parents=True)
    write_video(tmp_path / "src/a/long.mp4", frames=14, width=128, height=128, corner=True)
    manifest = pack("folder", tmp_path / "src", tmp_path / "out", options, workers=1)
    assert (len(manifest), manifest.rejected) == (1, 0)
    assert np.array_equal(manifest.samples.frames, [14])
