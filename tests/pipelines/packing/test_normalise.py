from __future__ import annotations

import io
import wave
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from pipelines.dataset.fmp4 import fragment_table
from pipelines.packing.normalise import normalise
from pipelines.packing.verdict import Target
from tests.pipelines.footage import break_packet, numbers_of, read_frames, write_video


def run(path, **changes):
    return normalise(str(path), path.name, replace(Target(), **changes), lambda: None)


def test_a_plain_video_is_packed_with_its_figures(tmp_path):
    outcome = run(write_video(tmp_path / "a.mp4", frames=40, width=320, height=240))
    verdict = outcome.verdict
    assert (verdict.verdict, verdict.reason) == ("packed", "")
    assert (verdict.frames, verdict.fps, verdict.width, verdict.height) == (40, 25.0, 320, 240)
    assert (verdict.codec, verdict.rotation, verdict.seconds) == ("h264", 0, 1.6)
    assert (outcome.frames, outcome.width, outcome.height) == (40, 170, 128)
    assert numbers_of(outcome.mp4) == list(range(40))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_packed_video_is_closed_gops_of_16_at_a_constant_rate_without_b_frames_or_sound(tmp_path, codec):
    outcome = run(write_video(tmp_path / "a.mp4", frames=40, width=128, height=128), codec=codec)
    with av.open(io.BytesIO(outcome.mp4)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert stream.codec.canonical_name == codec
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert {b.pts - a.pts for a, b in pairwise(packets)} == {packets[1].pts}
        assert packets[1].pts * stream.time_base == Fraction(1, 25)
        assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 16, 32]
    assert fragment_table(outcome.mp4)[8:-1].tolist() == [16, 32] or codec == "vp9"
    with av.open(io.BytesIO(outcome.mp4)) as container:
        frames = list(container.decode(video=0))
    assert {frame.format.name for frame in frames} == {"yuv420p"}
    assert {frame.pict_type for frame in frames} <= {1, 2}


def test_h264_is_packed_in_cavlc_which_costs_a_third_less_to_decode_than_cabac(tmp_path):
    outcome = run(write_video(tmp_path / "a.mp4", frames=40))
    assert b" cabac=0 " in outcome.mp4  # x264 writes what it was told into its first frame


def test_a_variable_rate_becomes_constant_by_time_not_by_number(tmp_path):
    stamps = [0, 40, 80, 200, 400, 420, 440, 600, 640, 1000]
    outcome = run(write_video(tmp_path / "a.mkv", frames=10, stamps=stamps))
    expected = [0, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 6, 6, 6, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 9]
    found = numbers_of(outcome.mp4)
    # One frame may fall on either side of a slot's middle; no frame may be further off than that.
    assert len(found) - len(expected) in (0, 1)
    assert sum(a != b for a, b in zip(found, expected, strict=False)) <= 2
    assert found == sorted(found)


@pytest.mark.parametrize(("rate", "frames"), [(50, 20), (10, 100)])
def test_other_rates_keep_the_length_in_seconds(tmp_path, rate, frames):
    outcome = run(write_video(tmp_path / "a.mp4", frames=40, rate=rate))
    assert outcome.frames == frames
    assert outcome.verdict.fps == rate
    assert outcome.verdict.seconds == pytest.approx(40 / rate)


@pytest.mark.parametrize("rate", [12, 30, Fraction(30000, 1001), Fraction(24000, 1001), 50])
def test_a_video_that_keeps_its_rate_keeps_every_frame_and_says_the_rate(tmp_path, rate):
    outcome = run(write_video(tmp_path / "a.mp4", frames=40, width=128, height=128, rate=rate), own_rate=True)
    assert numbers_of(outcome.mp4) == list(range(40))
    assert outcome.fps == float(rate)
    with av.open(io.BytesIO(outcome.mp4)) as container:
        assert container.streams.video[0].average_rate == rate


def test_a_variable_rate_is_kept_as_its_average_made_constant(tmp_path):
    stamps = [40 * number if number < 20 else 760 + 120 * (number - 19) for number in range(30)]  # 25 fps, then 8.3
    path = write_video(tmp_path / "a.mp4", frames=30, stamps=stamps)
    with av.open(path) as container:
        average = container.streams.video[0].average_rate
    assert average is not None
    assert 14 < average < 17
    outcome = run(path, own_rate=True)
    assert outcome.fps == pytest.approx(float(average), abs=1e-3)
    assert outcome.frames / outcome.fps == pytest.approx(stamps[-1] / 1000, abs=2 / outcome.fps)
    shown = numbers_of(outcome.mp4)
    assert shown == sorted(shown)
    assert 30 - len(set(shown)) >= 5  # of the fast half not every frame has room


@pytest.mark.parametrize(
    ("degrees", "black"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (270, (0, 1))], ids=["0", "90", "180", "270"]
)
def test_rotation_is_applied_counterclockwise(tmp_path, degrees, black):
    source = write_video(tmp_path / "a.mp4", width=192, height=128, rotation=degrees, corner=True)
    outcome = run(source)
    assert outcome.verdict.rotation == degrees
    assert (outcome.width, outcome.height) == ((192, 128) if degrees % 180 == 0 else (128, 192))
    frame = read_frames(outcome.mp4)[-1]
    high, wide = frame.shape[0] // 2, frame.shape[1] // 2
    dark = {
        (row, column)
        for row in (0, 1)
        for column in (0, 1)
        if frame[row * high : row * high + high, column * wide : column * wide + wide].mean() < 40
    }
    assert dark == {black}


@pytest.mark.parametrize(
    ("width", "height", "size", "note"),
    [
        (175, 143, (156, 128), ""),
        (50, 34, (188, 128), "enlarged from 50x34"),
        (1000, 200, (512, 128), "cropped to 4:1 around the centre"),
        (130, 800, (128, 512), "cropped to 4:1 around the centre"),
    ],
)
def test_odd_sizes_are_packed_and_what_was_done_is_said(tmp_path, width, height, size, note):
    outcome = run(write_video(tmp_path / "a.mkv", frames=9, width=width, height=height, codec="ffv1"))
    assert outcome.verdict.verdict == "packed"
    assert (outcome.width, outcome.height) == size
    assert outcome.verdict.reason == note


def test_an_old_avi_with_b_frames_keeps_the_order_of_its_frames(tmp_path):
    source = write_video(tmp_path / "a.avi", frames=30, codec="mpeg4", options={"bf": "2", "qscale": "2"})
    found = numbers_of(run(source).mp4)
    assert found == sorted(found)
    assert [abs(number - i) <= 1 for i, number in enumerate(found)] == [True] * 30  # B-frames are off by a grey level


def test_the_same_video_makes_the_same_bytes(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=33, width=320, height=240)
    assert run(source).mp4 == run(source).mp4


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"", "the file is empty"), (b"just text\n" * 50, "opening failed: Invalid data found when processing input")],
    ids=["empty", "text"],
)
def test_what_is_no_video_is_rejected_in_plain_words(tmp_path, data, sentence):
    (tmp_path / "a.mp4").write_bytes(data)
    outcome = run(tmp_path / "a.mp4")
    assert (outcome.verdict.verdict, outcome.verdict.reason, outcome.mp4) == ("rejected", sentence, b"")


def test_a_missing_file_is_rejected(tmp_path):
    assert run(tmp_path / "gone.mp4").verdict.reason == "opening failed: No such file or directory"


def test_sound_without_pictures_is_rejected(tmp_path):
    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    assert run(tmp_path / "a.mp4").verdict.reason == "there is no video stream"


def test_too_few_frames_are_rejected_with_the_number(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=5)
    assert run(source).verdict.reason == "only 5 frames (min_frames=8)"
    assert run(source, min_frames=5).verdict.verdict == "packed"


def test_many_frames_in_a_moment_are_too_short_as_well(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=12, rate=120)
    assert run(source).verdict.reason == "too short: 3 frames at 25 fps (min_frames=8)"


def test_tiny_frames_are_rejected(tmp_path):
    source = write_video(tmp_path / "a.mkv", width=10, height=66, codec="ffv1")
    assert run(source).verdict.reason == "frames of 10x66 are too small (min_side=16)"


def test_a_decoding_error_rejects_with_the_frames_before_it(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=40, options={"tune": "zerolatency"})
    break_packet(source, 20)
    expected = "decoding stops with an error after 20 frames: Invalid data found when processing input"
    outcome = run(source)
    assert (outcome.verdict.verdict, outcome.verdict.reason, outcome.verdict.frames) == ("rejected", expected, 20)


def test_the_frames_before_an_error_are_packed_where_a_part_will_do(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=40, width=160, height=128, options={"tune": "zerolatency"})
    break_packet(source, 20)
    outcome = run(source, keep_partial=True)
    assert outcome.verdict.verdict == "packed"
    assert outcome.verdict.reason.startswith("decoding stops with an error after 20 frames")
    assert numbers_of(outcome.mp4) == list(range(20))


def test_a_truncated_file_is_rejected_or_says_what_is_missing(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=60, width=320, height=240, muxer={"movflags": "faststart"})
    with av.open(source) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    whole = source.read_bytes()
    source.write_bytes(whole[: ends[40] - 3])
    inside = run(source).verdict
    source.write_bytes(whole[: ends[40]])
    between = run(source).verdict
    assert inside.verdict == "rejected"
    assert inside.reason.startswith("decoding stops with an error after")
    assert between.verdict == "packed"
    assert "the file announces 60 frames, 41 are there" in between.reason
    source.write_bytes(whole[:200])
    assert run(source).verdict.verdict == "rejected"


def test_a_frame_that_changes_size_on_the_way_is_said(tmp_path):
    parts = [write_video(tmp_path / f"{w}.h264", frames=10, width=w, height=96) for w in (128, 192)]
    (tmp_path / "a.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    outcome = run(tmp_path / "a.h264")
    assert outcome.verdict.verdict == "packed"
    assert "the size changes to 192x96 on the way" in outcome.verdict.reason


def test_colours_of_other_pixel_formats_survive(tmp_path):
    for codec, suffix in [("mjpeg", "avi"), ("png", "mov")]:
        path = tmp_path / f"{codec}.{suffix}"
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 160, 128
            stream.pix_fmt = {"mjpeg": "yuvj422p", "png": "rgb24"}[codec]
            for _ in range(9):
                picture = np.broadcast_to(np.uint8([200, 60, 40]), (128, 160, 3)).copy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        colour = read_frames(run(path).mp4)[4].mean((0, 1))
        assert np.abs(colour - [200, 60, 40]).max() < 6


def test_a_video_above_the_length_is_rejected_when_it_gets_there(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=60)
    outcome = run(source, max_minutes=0.02)
    assert outcome.verdict.reason == "longer than 0.02 minutes (max_minutes=0.02)"
    assert 30 <= outcome.verdict.frames <= 33
    assert run(source, max_minutes=0.04).verdict.verdict == "packed"
