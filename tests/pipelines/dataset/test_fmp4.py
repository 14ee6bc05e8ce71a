from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.fmp4 import cut, fragment_table, fragments_of_window
from tests.pipelines.footage import read_frames, write_video
from tests.pipelines.small_packs import encode, moving
from vidssl.errors import DataError


@functools.cache
def video(codec: str, frames: int) -> tuple[bytes, np.ndarray, list[np.ndarray]]:
    data = encode(moving(frames), frames, 128, 128, codec)
    return data, fragment_table(data), read_frames(data)


@given(st.sampled_from(["h264", "vp9"]), st.sampled_from([1, 15, 16, 17, 50]), st.data())
@settings(max_examples=60, deadline=None)
def test_the_slice_of_a_window_decodes_to_the_frames_of_a_whole_decode(codec, frames, data):
    whole, table, expected = video(codec, frames)
    start = data.draw(st.integers(0, frames - 1))
    span = data.draw(st.integers(1, 40))
    ranges, skip = fragments_of_window(table, start, span)
    found = read_frames(cut(whole, ranges))[skip : skip + span]
    wanted = expected[start : start + span]
    assert len(found) == len(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 50])
def test_the_table_counts_frames_and_fragments(frames):
    data, table, decoded = video("h264", frames)
    fragments = -(-frames // 16)
    assert table.dtype == np.int32
    assert table[0] == table[-1] == len(decoded) == frames
    assert table[2] == fragments
    assert len(table) == 2 * fragments + 5
    assert table[4 + fragments : -1].tolist() == list(range(0, frames, 16))
    assert all(data[offset + 4 : offset + 8] == b"moof" for offset in table[3 : 3 + fragments])
    assert table[3 + fragments] <= len(data)


def test_a_window_touches_only_its_own_fragments():
    _, table, _ = video("h264", 50)
    ((_, init), (begin, stop)), skip = fragments_of_window(table, 20, 12)
    assert (init, begin, stop, skip) == (table[1], table[4], table[5], 4)


@pytest.mark.parametrize(("start", "span"), [(-1, 4), (50, 1), (0, 0)])
def test_a_window_outside_the_video_is_refused(start, span):
    with pytest.raises(DataError, match=f"a window of {span} frames from frame {start} is not in a video of 50"):
        fragments_of_window(video("h264", 50)[1], start, span)


def test_a_plain_mp4_is_refused(tmp_path):
    with pytest.raises(DataError, match="no fragmented MP4"):
        fragment_table(write_video(tmp_path / "a.mp4").read_bytes())


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_truncated_file_never_passes_as_the_whole(length):
    data, table, _ = video("h264", 50)
    short = data[: length % int(table[6])]
    try:
        found = fragment_table(short)
    except DataError:
        return
    assert found[0] < 50
