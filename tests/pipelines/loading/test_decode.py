from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.fmp4 import cut, fragment_table, fragments_of_window
from pipelines.loading.decode import decode_clips, resolve_decode
from tests.pipelines.small_packs import encode, moving, whole_decode
from vidssl.errors import DataError, DeviceError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module", params=["h264", "vp9"])
def stored(request):
    """A video of 47 frames (three fragments, the last one short), its table and all its frames."""
    video = encode(moving(1), 47, 170, 128, request.param)
    return np.frombuffer(video, np.uint8), fragment_table(video), whole_decode(video)


@settings(max_examples=25, deadline=None)
@given(starts=st.lists(st.integers(0, 46), min_size=1, max_size=3), frames=st.integers(1, 9), stride=st.integers(1, 5))
def test_clips_are_the_frames_of_a_whole_decode(stored, starts, frames, stride):
    video, table, every = stored
    clips = decode_clips(video, table, starts, frames, stride)
    for clip, start in zip(clips, starts, strict=True):
        wanted = np.minimum(start + stride * np.arange(frames), 46)  # past the end: the last frame again
        assert np.array_equal(clip, every[wanted])


def test_clips_do_not_depend_on_skipping_fragments(stored):
    video, table, _ = stored
    pair = [decode_clips(video, table, [40, 3], 4, 2, slicing=slicing) for slicing in (True, False)]
    assert np.array_equal(*pair)


def test_a_window_cut_inside_the_graph_is_the_one_cut_in_python(stored):
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.loading.graph import window_bytes

    video, table, _ = stored
    starts = np.arange(47, dtype=np.int32)

    @pipeline_def(batch_size=47, num_threads=1, device_id=None, set_affinity=False)
    def graph():
        bytes_, gop, start = fn.external_source(
            lambda: ([video] * 47, [table] * 47, starts), num_outputs=3, batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32],
        )  # fmt: skip
        return window_bytes(bytes_, gop, start, 9)

    pipeline = graph()
    pipeline.build()
    windows, offsets = pipeline.run()
    for start in range(47):
        ranges, skipped = fragments_of_window(table, start, 9)
        assert bytes(np.asarray(windows[start])) == cut(video.tobytes(), ranges)
        assert int(np.asarray(offsets[start])) == skipped


@pytest.mark.parametrize("damage", ["cut short", "no pictures", "no init segment", "noise"])
def test_damaged_bytes_are_a_data_error(stored, damage):
    video, table, _ = stored
    bad = video.copy()
    if damage == "cut short":
        bad = bad[: int(table[4]) - 9]
    elif damage == "no pictures":
        bad[int(table[3]) + 200 :] = 0
    elif damage == "no init segment":
        bad[: int(table[1])] = 0
    else:
        bad = np.random.default_rng(0).integers(0, 256, len(bad), dtype=np.uint8)
    with pytest.raises(DataError):
        decode_clips(bad, table, [0], 8, 2)


@settings(max_examples=25, deadline=None)
@given(places=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), value=st.integers(1, 255))
def test_flipped_bits_give_frames_or_a_data_error_and_nothing_else(stored, places, value):
    video, table, every = stored
    bad = video.copy()
    for place in places:
        bad[place % len(bad)] ^= value
    try:
        clips = decode_clips(bad, table, [4], 8, 2)
    except DataError:
        return
    assert clips.shape == (1, 8, *every.shape[1:])


@pytest.mark.parametrize(
    ("asked", "codec", "device", "used"),
    [
        ("auto", "h264", CPU, "py"),
        ("auto", "vp9", CPU, "dali-cpu"),
        ("auto", "h264", CUDA, "nvdec"),
        ("auto", "vp9", CUDA, "nvdec"),
        ("py", "vp9", CPU, "py"),
        ("py", "h264", CUDA, "py"),
    ],
)
def test_auto_takes_the_decoder_of_codec_and_device(asked, codec, device, used):
    assert resolve_decode(asked, codec, device) == used


def test_impossible_decoders_are_refused_with_what_to_type():
    with pytest.raises(DeviceError, match=r"nvdec needs a GPU, the clips go to cpu; type loader\.decode=auto"):
        resolve_decode("nvdec", "h264", CPU)
    with pytest.raises(DataError, match=r"does not decode h264 on a CPU; type loader\.decode=py, or pack again"):
        resolve_decode("dali-cpu", "h264", CPU)
    with pytest.raises(DeviceError, match=r"dali-cpu makes no clips on cuda:0; type loader\.decode=nvdec"):
        resolve_decode("dali-cpu", "vp9", CUDA)
