from __future__ import annotations

import csv
import errno
import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.reader import ShardReader
from pipelines.dataset.shards import file_sha256, read_index
from pipelines.pack import PackOptions, Silent, in_threads, pack
from pipelines.packing.part import Cut
from pipelines.packing.survey import survey
from tests.pipelines.footage import numbers_of, write_video
from tests.pipelines.small_packs import moving
from vidssl.errors import StorageError
from vidssl.marks import LOCK

RATE = 10
EVERY = Cut(2.0, 1.0, 6.0)
SCENES = Cut(None, 0.5, 6.0)


class Ear(Silent):
    def __init__(self):
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def bounds(path: Path, cut: Cut = EVERY) -> tuple[float, ...]:
    return survey(str(path), "a", cut, lambda: None).bounds


def verdicts(packed: Manifest) -> dict[str, tuple[str, str]]:
    with (packed.root / "verdicts.csv").open() as stream:
        return {row["path"]: (row["verdict"], row["reason"]) for row in csv.DictReader(stream)}


def stored(packed: Manifest) -> dict[str, list[int]]:
    reader = ShardReader(packed)
    videos = {str(name): numbers_of(reader.read(i)[0].tobytes()) for i, name in enumerate(packed.samples.name)}
    reader.close()
    return videos


def provenance(packed: Manifest, name: str) -> dict:
    instance = packed.samples.name.tolist().index(name)
    index = read_index(packed.shard_path(0))
    data = packed.shard_path(0).read_bytes()
    return json.loads(data[index.offset["json"][instance] :][: index.size["json"][instance]])


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if not path.name.startswith(LOCK)}


def join(path: Path, scenes: Sequence[Sequence[np.ndarray]], rate: int = 25) -> Path:
    """Scenes one after the other; frames are rgb24 of one size."""
    height, width = scenes[0][0].shape[:2]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in (picture for scene in scenes for picture in scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_video(root / "walk" / "long.mp4", frames=47, rate=RATE, width=128, height=128, options={"g": "10"})
    write_video(root / "walk" / "short.mp4", frames=15, rate=RATE, width=128, height=128)
    write_video(root / "run" / "also.mkv", frames=40, rate=RATE, width=128, height=128)
    (root / "run" / "broken.mp4").write_bytes(b"no video")
    return root


OPTIONS = PackOptions(cut="2s", fps=RATE)


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Manifest:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "packed", OPTIONS, workers=1)


def test_a_long_source_becomes_clips_that_hold_each_of_its_frames_once(packed):
    assert stored(packed) == {
        "run/also.mkv#t=0,2": list(range(20)),
        "run/also.mkv#t=2,4": list(range(20, 40)),
        "walk/long.mp4#t=0,2": list(range(20)),
        "walk/long.mp4#t=2,4": list(range(20, 40)),
        "walk/short.mp4": list(range(15)),
    }


def test_every_clip_has_a_verdict_of_its_own_and_what_is_too_short_is_rejected_in_words(packed):
    found = verdicts(packed)
    rejected = {path: reason for path, (verdict, reason) in found.items() if verdict == "rejected"}
    assert rejected == {
        "run/broken.mp4": "opening failed: Invalid data found when processing input",
        "walk/long.mp4#t=4,4.7": "a clip of 0.7 s is too short (cut_min=1)",
    }
    assert set(found) - set(rejected) == set(packed.samples.name)
    assert packed.rejected == 2


def test_clips_of_one_source_are_siblings_with_the_label_origin_and_time_of_their_source(packed):
    of = dict(zip(packed.samples.name.tolist(), packed.samples.group.tolist(), strict=True))
    assert of["walk/long.mp4#t=0,2"] == of["walk/long.mp4#t=2,4"]
    assert len(set(of.values())) == packed.groups == 3
    label = packed.samples.label[packed.samples.name.tolist().index("walk/long.mp4#t=2,4")]
    assert packed.classes[label] == "walk"
    origin = provenance(packed, "walk/long.mp4#t=2,4")["origin"]
    assert (origin["path"], origin["start"], origin["stop"]) == ("walk/long.mp4#t=2,4", 2.0, 4.0)


def test_a_pack_that_is_cut_does_nothing_again_and_says_how_many_clips_it_holds(packed, source):
    ear = Ear()
    assert pack("folder", source, packed.root, OPTIONS, watch=ear).hash == packed.hash
    assert ear.sentences == [f"nothing to do: 5 of 7 packed, 2 rejected in {packed.root} (data {packed.hash})"]


def test_a_pack_that_ends_among_the_clips_of_a_source_goes_on_there_and_looks_at_no_source_again(
    packed, source, tmp_path
):
    asked: list[str] = []

    def three_then_full(jobs, work, workers):
        for done, staged in enumerate(in_threads(jobs, work, 1)):
            if work.cut is None and done == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield staged

    def noted(jobs, work, workers):
        asked.extend(f"look {job.path}" if work.cut else job.path for job in jobs)
        yield from in_threads(jobs, work, 1)

    with pytest.raises(StorageError, match="type the same command again: what is done is kept"):
        pack("folder", source, tmp_path / "out", OPTIONS, run=three_then_full)
    pack("folder", source, tmp_path / "out", OPTIONS, run=noted)
    assert 0 < len(asked) <= 3
    assert not [path for path in asked if path.startswith("look")]
    assert checksums(tmp_path / "out") == checksums(packed.root)


def test_the_length_is_what_lies_in_the_file_not_what_its_header_says(tmp_path):
    live = write_video(tmp_path / "a.webm", 50, rate=RATE, codec="libvpx", options={"g": "10"}, muxer={"live": "1"})
    assert bounds(live) == (0.0, 2.0, 4.0, 5.0)
    late = write_video(tmp_path / "a.ts", 50, rate=RATE, options={"g": "10"})  # its clock begins at 1.4 s
    assert bounds(late) == (0.0, 2.0, 4.0, 5.0)


def test_a_bare_stream_is_refused_for_no_clip_can_be_looked_up_in_it(tmp_path):
    whole = write_video(tmp_path / "a.mp4", frames=40, rate=RATE, options={"bf": "0"})
    bare = tmp_path / "a.h264"
    with av.open(whole, "r") as file, av.open(bare, "w", format="h264") as sink:
        out = sink.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.size:
                packet.stream = out
                sink.mux(packet)
    verdict = survey(str(bare), "a", Cut(1.0, 1.0, 6.0), lambda: None).verdict
    assert verdict.verdict == "rejected"
    assert verdict.reason.startswith("it has no timestamps (a bare stream), so no clip can be looked up in it; put it")


def test_a_long_source_with_one_key_frame_is_refused_with_what_would_have_to_be_decoded(tmp_path):
    stamps = [8000 * number for number in range(60)]
    rare = write_video(tmp_path / "a.mkv", 60, stamps=stamps, options={"g": "999", "x264-params": "scenecut=0"})
    verdict = survey(str(rare), "a", EVERY, lambda: None).verdict
    assert verdict.reason.startswith("its key frames are too rare to cut it: 237 s would be decoded before a clip")


def test_scenes_begin_where_the_picture_changes_and_nowhere_else(tmp_path):
    lengths = (20, 12, 31, 15)
    scenes = [[moving(seed)(number, 96, 128) for number in range(n)] for seed, n in enumerate(lengths)]
    path = join(tmp_path / "a.mp4", scenes)
    places = np.cumsum(lengths)[:-1] / 25 - 0.02
    assert bounds(path, SCENES) == (0.0, *np.round(places, 3), 3.12)


def test_scenes_become_clips_and_one_that_is_too_short_is_rejected(tmp_path):
    scenes = [[moving(seed)(number, 128, 128) for number in range(n)] for seed, n in enumerate((30, 8, 40))]
    (tmp_path / "films").mkdir()
    join(tmp_path / "films" / "a.mp4", scenes)
    packed = pack("folder", tmp_path, tmp_path.parent / "out", PackOptions(cut="scenes"), workers=1)
    found = verdicts(packed)
    assert {path: verdict for path, (verdict, _) in found.items()} == {
        "films/a.mp4#t=0,1.18": "packed",
        "films/a.mp4#t=1.18,1.5": "rejected",
        "films/a.mp4#t=1.5,3.12": "packed",
    }
    frames = dict(zip(packed.samples.name.tolist(), packed.samples.frames.tolist(), strict=True))
    assert frames == {"films/a.mp4#t=0,1.18": 30, "films/a.mp4#t=1.5,3.12": 40}


def test_what_cannot_be_decoded_to_its_end_is_cut_before_the_damage(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=60, rate=RATE, options={"g": "5"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = bounds(path)
    assert found[:2] == (0.0, 2.0)
    assert found[-1] < 6
