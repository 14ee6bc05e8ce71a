"""Who turns bytes into frames, and how is it done on a CPU?

| decode | decoder | codecs | device |
|---|---|---|---|
| `nvdec` | DALI, `decoders.video(device="mixed")` | h264, vp9 | GPU |
| `dali-cpu` | DALI, `decoders.video(device="cpu")` | vp9 (its wheel carries no H.264 for the CPU) | CPU |
| `py` | FFmpeg through PyAV, `fn.python_function` in the same graph | any | CPU (frames are uploaded for a GPU) |
| `mixed` | DALI's for this device and `py`, each a part of every training batch (`pipelines.loading.mixed`) | as DALI's | both |

The `py` decoder reads packets straight from the fragments (no demuxer, no probing), decodes only the fragments that hold a
wanted frame, each up to its last wanted one, and colour-converts wanted frames only.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError, DeviceError

if TYPE_CHECKING:
    import torch
    from av import Packet, VideoCodecContext, VideoFrame
    from av.video.reformatter import VideoReformatter

__all__ = ["DALI_CPU_CODECS", "Decode", "Picture", "decode_clips", "decode_frames", "resolve_decode"]

Decode = Literal["nvdec", "dali-cpu", "py", "mixed"]
Picture = Literal["rgb", "luma"]
DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")


def resolve_decode(decode: str, codec: str, device: torch.device, training: bool = False) -> Decode:
    """The decoder to use.

    Args:
        decode: `auto` or the name of a decoder.
        codec: Codec of the pack.
        device: Where the clips go.
        training: Whether batches may be `mixed`; what is measured is to be repeatable, and then that means `auto`.

    Raises:
        DeviceError: NVDEC without a GPU.
        DataError: a codec that DALI does not decode on a CPU.
    """
    native = codec in DALI_CPU_CODECS
    if decode == "auto" or (decode == "mixed" and not training):
        return "nvdec" if device.type == "cuda" else "dali-cpu" if native else "py"
    if decode == "mixed" and device.type != "cuda" and not native:
        raise DataError(
            f"loader.decode=mixed needs two decoders, and DALI does not decode {codec} on a CPU; type loader.decode=py"
        )
    if decode == "nvdec" and device.type != "cuda":
        raise DeviceError(f"loader.decode=nvdec needs a GPU, the clips go to {device.type}; type loader.decode=auto")
    if decode == "dali-cpu" and not native:
        raise DataError(
            f"DALI does not decode {codec} on a CPU; type loader.decode=py, or pack again with `vidssl pack … codec=vp9`"
        )
    if decode == "dali-cpu" and device.type == "cuda":
        raise DeviceError(
            f"loader.decode=dali-cpu makes no clips on {device}; type loader.decode=nvdec or loader.decode=py"
        )
    return cast(Decode, decode)


def decode_clips(
    video: NDArray[np.uint8],
    table: NDArray[np.int32],
    starts: Sequence[int],
    frames: int,
    stride: int,
    slicing: bool = True,
    picture: Picture = "rgb",
) -> NDArray[np.uint8]:
    """Whole frames of clips of one packed video, uint8 [n, T, H, W, 3], RGB, or [n, T, H, W, 1]; see `decode_frames`."""
    found, place = decode_frames(video, table, starts, frames, stride, slicing, picture)
    return found[place]


def decode_frames(
    video: NDArray[np.uint8],
    table: NDArray[np.int32],
    starts: Sequence[int],
    frames: int,
    stride: int,
    slicing: bool = True,
    picture: Picture = "rgb",
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The frames of clips of one packed video; what they share is decoded once.

    Args:
        video: uint8 [bytes], fragmented MP4 with one closed GOP per fragment and no reordered frames.
        table: int32 fragment table of `pipelines.dataset.fmp4`.
        starts: First frame of each of n clips.
        frames: T.
        stride: Source frames from one clip frame to the next.
        slicing: Skip fragments without wanted frames (off: to measure what skipping saves).
        picture: What is made of a frame: `rgb`, or its `luma` plane as it is.

    Returns:
        The m different frames, uint8 [m, H, W, 3], RGB, or [m, H, W, 1]; and int64 [n, T], which of them each clip shows.
        Frames past the end are the last frame again.

    Raises:
        DataError: the bytes do not decode to those frames.
    """
    last = int(table[0]) - 1
    numbers = np.minimum(np.asarray(starts)[:, None] + np.arange(frames) * stride, last)
    wanted, place = np.unique(numbers, return_inverse=True)
    return _decode_frames(video, table, wanted, slicing, picture), place.reshape(numbers.shape)


def _decode_frames(
    video: NDArray[np.uint8], table: NDArray[np.int32], wanted: NDArray[np.int64], slicing: bool, kind: Picture
) -> NDArray[np.uint8]:
    """Frames of ascending numbers, uint8 [m, H, W, 3] or [m, H, W, 1]."""
    import av
    from av.error import FFmpegError
    from av.video.reformatter import VideoReformatter

    data = np.ascontiguousarray(video).data
    places = {int(number): place for place, number in enumerate(wanted)}
    converter, out, filled = VideoReformatter(), None, 0
    try:
        name, extradata = _codec(bytes(data[: int(table[1])]))
        decoder = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
        decoder.extradata = extradata
        decoder.thread_count = 1  # threads get whole videos; FFmpeg's own frame threads can hang on broken streams
        for frame in _decoded(decoder, _packets_of(data, table, wanted, slicing)):
            if frame.is_corrupt:
                raise DataError(f"frame {frame.pts} is damaged")
            place = places.get(frame.pts if frame.pts is not None else -1)
            if place is not None:
                picture = _rgb(frame, converter) if kind == "rgb" else _luma(frame)
                out = np.empty((len(wanted), *picture.shape), np.uint8) if out is None else out
                out[place] = picture
                filled += 1
    except (FFmpegError, struct.error, ValueError, IndexError) as error:
        raise DataError(f"{type(error).__name__}: {error}") from error
    if out is None or filled != len(wanted):
        raise DataError(f"{filled} of {len(wanted)} wanted frames were decoded")
    return out


def _decoded(decoder: VideoCodecContext, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
    for packet in packets:
        yield from decoder.decode(packet)
    yield from decoder.decode(None)


def _rgb(frame: VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
    # One converter for all frames (a new one builds its tables again, 0.3 ms), one thread (it starts a pool otherwise).
    return converter.reformat(frame, format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)


def _luma(frame: VideoFrame) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(memoryview(cast(Any, plane)), np.uint8).reshape(-1, plane.line_size)[
        : frame.height, : frame.width, None
    ]


def _packets_of(
    data: memoryview, table: NDArray[np.int32], wanted: NDArray[np.int64], slicing: bool
) -> Iterator[Packet]:
    """Packets of the fragments that hold wanted frames, each fragment up to its last wanted frame; pts: frame number."""
    import av

    count = int(table[2])
    offsets, first = table[3 : 4 + count], table[4 + count :]
    holder = np.searchsorted(first, wanted, side="right") - 1
    needed = {int(fragment): int(wanted[holder == fragment][-1]) for fragment in np.unique(holder)}
    fragments = sorted(needed) if slicing else range(max(needed) + 1)
    for fragment in fragments:
        until = needed.get(fragment, int(table[0]))
        samples = _samples(data, int(offsets[fragment]), int(offsets[fragment + 1]))
        for number, (start, stop) in enumerate(samples, int(first[fragment])):
            if number > until:
                break
            packet = av.Packet(bytes(data[start:stop]))
            packet.pts = packet.dts = number
            yield packet


@lru_cache(maxsize=64)
def _codec(init: bytes) -> tuple[str, bytes | None]:
    """Decoder name and extradata of an init segment; videos of one size share theirs."""
    import av

    with av.open(io.BytesIO(init), format="mp4") as container:
        streams = container.streams.video
        context = streams[0].codec_context if streams else None
        if context is None:  # no video, or a codec that this FFmpeg does not know
            raise ValueError("the init segment names no known video codec")
        return context.codec.name, context.extradata


def _samples(data: memoryview, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of each frame of one fragment: `moof`, `mdat`.

    Only what our packer writes is read: one `traf` with one `trun` that lists every size, offsets from the `moof`.
    """
    if not 0 <= begin < end <= len(data):
        raise ValueError(f"a fragment from byte {begin} to {end} in {len(data)} bytes")
    inside, stop = _box(data, begin, end, b"moof")
    inside, stop = _box(data, inside, stop, b"traf")
    header, _ = _box(data, inside, stop, b"tfhd")
    default = _default_size(data, header)
    inside, _ = _box(data, inside, stop, b"trun")
    flags, count, shift = struct.unpack_from(">IIi", data, inside)
    table = inside + 12 + 4 * bool(flags & 0x4)
    fields = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    rows = np.frombuffer(data, ">u4", count * len(fields), table).reshape(count, len(fields))
    sizes = rows[:, fields.index(0x200)].astype(np.int64) if 0x200 in fields else np.full(count, default)
    start = begin + shift
    for size in sizes.tolist():
        if size <= 0 or start + size > end:
            raise ValueError(f"a frame of {size} bytes at byte {start} does not fit its fragment, which ends at {end}")
        yield start, start + size
        start += size


def _default_size(data: memoryview, header: int) -> int:
    flags = struct.unpack_from(">I", data, header)[0] & 0xFFFFFF
    if not flags & 0x10:
        return 0
    before = 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2) + 4 * bool(flags & 0x8)
    return struct.unpack_from(">I", data, header + 8 + before)[0]


def _box(data: memoryview, begin: int, end: int, kind: bytes) -> tuple[int, int]:
    """Content of the first box of a kind between two offsets."""
    while begin + 8 <= end:
        size, found = struct.unpack_from(">I4s", data, begin)
        if found == kind:
            return begin + 8, begin + size
        if size < 8:
            break
        begin += size
    raise ValueError(f"no {kind.decode()} box where one was expected")
