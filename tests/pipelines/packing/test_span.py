from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import pytest

from pipelines.packing.normalise import normalise
from pipelines.packing.part import Part
from pipelines.packing.span import frames_of
from pipelines.packing.verdict import Target
from tests.pipelines.footage import numbers_of, write_video

RATE = 10
FRAMES = 45  # grey levels come again after 51
OPEN = {"x264-params": "keyint=10:min-keyint=10:bframes=3:b-adapt=0:open-gop=1"}
KINDS = {
    "mp4": ("mp4", "libx264", {"g": "10", "bf": "2"}, {}),
    "mp4 open": ("mp4", "libx264", OPEN, {}),
    "mkv": ("mkv", "libx264", {"g": "10"}, {}),
    "webm": ("webm", "libvpx", {"g": "10", "deadline": "realtime"}, {}),
    "webm without an index": ("webm", "libvpx", {"g": "10", "deadline": "realtime"}, {"live": "1"}),
    "avi": ("avi", "mpeg4", {"g": "10", "b": "4000000", "qmin": "1", "qmax": "1"}, {}),
    "ts, whose clock begins at 1.4 s": ("ts", "libx264", {"g": "10"}, {}),
    "ts, where seeking lands between key frames": ("ts", "libx264", {"g": "30"}, {}),
    "one key frame": ("mp4", "libx264", {"g": "999"}, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def video(request, tmp_path_factory):
    ending, codec, options, muxer = KINDS[request.param]
    path = tmp_path_factory.mktemp("span") / f"a.{ending}"
    return write_video(path, frames=FRAMES, rate=RATE, codec=codec, options=options, muxer=muxer)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 2), (2, 3.5), (0.95, 2.05), (3.3, 99)])
def test_a_range_holds_the_frames_that_are_first_shown_in_it(video, start, stop):
    target = replace(Target(), min_frames=1, fps=Fraction(RATE))
    outcome = normalise(str(video), "a", target, lambda: None, Part(start, stop))
    assert numbers_of(outcome.mp4) == [frame for frame in range(FRAMES) if start <= frame / RATE < stop]
    said = "the video ends 94.5 s before its range does"
    assert (said in outcome.verdict.reason) == (stop == 99)


def test_only_the_range_and_what_leads_to_it_is_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=400, rate=RATE, options={"g": "10"})
    skipped: list[int] = []
    with av.open(path, "r") as container:
        stream = container.streams.video[0]
        frames = list(frames_of(container, stream, Part(30, 32), lambda: skipped.append(1), []))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(300 + number, RATE) for number in range(20)]
    assert len(skipped) <= 20


def test_a_range_behind_the_end_is_rejected_with_the_length_of_the_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=20, rate=RATE)
    verdict = normalise(str(path), "a", Target(), lambda: None, Part(87, 97)).verdict
    assert verdict.verdict == "rejected"
    assert verdict.reason.startswith("no frame lies between 87 and 97 s, the video ends at 2.0 s")


def test_frames_without_timestamps_are_counted_from_the_beginning(tmp_path):
    whole = write_video(tmp_path / "a.mp4", frames=40, rate=25, options={"g": "5", "bf": "0"})
    bare = tmp_path / "a.h264"  # a stream without a container: no clock and no index
    with av.open(whole, "r") as source, av.open(bare, "w", format="h264") as sink:
        out = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = out
                sink.mux(packet)
    outcome = normalise(str(bare), "a", replace(Target(), min_frames=1), lambda: None, Part(0.4, 0.8))
    assert numbers_of(outcome.mp4) == list(range(10, 20))
