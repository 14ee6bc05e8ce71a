"""Small source videos whose frames say which frame they are, and a reader of that number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipelines.packing.work import Silent

LEVELS = 5
"""Grey levels from one frame number to the next."""


def grey(number: int) -> int:
    return (30 + LEVELS * number) % 256


def write_video(
    path: Path,
    frames: int = 20,
    width: int = 64,
    height: int = 48,
    *,
    rate: int | Fraction = 25,
    stamps: Sequence[int] | None = None,
    codec: str = "libx264",
    rotation: int = 0,
    corner: bool = False,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Frame i is grey(i) all over; `stamps` are its milliseconds; `corner` makes the top left quarter black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = Fraction(1) / (1000 if stamps else rate)
    with av.open(path, "w", options=muxer or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = step
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            picture = np.full((height, width, 3), grey(number), np.uint8)
            if corner:
                picture[: height // 2, : width // 2] = 0
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (stamps or range(frames))[number], step
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_frames(mp4: bytes) -> list[np.ndarray]:
    """All frames as rgb24 [H, W, 3], by a plain decode."""
    with av.open(io.BytesIO(mp4), "r") as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbers_of(mp4: bytes) -> list[int]:
    """Which source frame each packed frame shows."""
    return [round((float(np.median(frame)) - 30) / LEVELS) for frame in read_frames(mp4)]


def break_packet(path: Path, number: int) -> None:
    """Make the decoder fail at packet `number` of an H.264 MP4: its first NAL claims four gigabytes."""
    with av.open(path, "r") as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[places[number] : places[number] + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


def two_classes(root: Path) -> Path:
    """Five videos in the class folders a and b."""
    for number in range(5):
        write_video(root / "ab"[number % 2] / f"v{number:02d}.mp4", frames=10 + 2 * number, width=128, height=128)
    return root


class Heard(Silent):
    """What a pack says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
