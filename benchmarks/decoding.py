"""Small packed videos and a decode-only graph: the packed format and window cut of `pipelines`, nothing after the decoder."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.checking import Setting
from pipelines.dataset.fmp4 import fragment_table
from pipelines.packing.encode import ClipEncoder
from pipelines.synthetic import render, scene_of

__all__ = ["Packed", "Window", "decode_graph", "decoded_alone", "packed_video"]

CRF = {"h264": 23, "vp9": 34}


@dataclass(frozen=True, eq=False)
class Packed:
    """One packed video: its bytes, fragment table, frame count."""

    data: NDArray[np.uint8]
    table: NDArray[np.int32]
    frames: int


@dataclass(frozen=True)
class Window:
    """Which frames make a clip: T and stride."""

    frames: int = 16
    stride: int = 2

    @property
    def span(self) -> int:
        """Source frames from the first to the last."""
        return (self.frames - 1) * self.stride + 1


@lru_cache(maxsize=256)
def packed_video(index: int, codec: str, width: int, height: int, frames: int, gop: int = 16) -> Packed:
    """A motion video of any even size, packed as `vidssl pack` does it."""
    square = max(width, height, 32)
    pictures = render(scene_of(index, seed=1), frames=frames, size=square, seed=1)[:, :height, :width]
    encoder = ClipEncoder(width, height, fps=Fraction(25), codec=codec, crf=CRF[codec], preset="veryfast", gop=gop)
    for picture in pictures:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        encoder.add(rgb.reformat(format="yuv420p"))
    data = encoder.finish()
    return Packed(np.frombuffer(data, np.uint8), fragment_table(data), frames)


def decoded_alone(video: Packed) -> NDArray[np.uint8]:
    """All frames by PyAV, uint8 [n, H, W, 3]: what every other decoder is held against."""
    with av.open(io.BytesIO(video.data.tobytes()), "r") as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]
    return np.stack(frames)


def decode_graph(
    videos: Sequence[Packed],
    starts: Sequence[int],
    window: Window,
    setting: Setting,
    threads: int,
    slicing: bool = True,
    first: Sequence[Packed] = (),
) -> Any:
    """A built pipeline that decodes the same clips in every run: uint8 [T, H, W, 3] per sample, on the device.

    On a CPU DALI decodes VP9 only. With `first`, the first batch has these videos in place of the others.
    """
    dali: Any = importlib.import_module("nvidia.dali")
    fn, pipeline_def = dali.fn, dali.pipeline_def
    from pipelines.loading.graph import window_bytes

    def batch_of(these: Sequence[Packed]) -> list[Any]:
        return [[one.data for one in these], [one.table for one in these], [np.int32(start) for start in starts]]

    ahead = [batch_of(first)] if first else []
    batch = batch_of(videos)
    options = {"device_id": 0 if setting.on_gpu else None, "prefetch_queue_depth": 2 if setting.on_gpu else 1}

    @pipeline_def(batch_size=len(videos), num_threads=threads, set_affinity=False, **options)
    def graph() -> Any:
        video, table, start = fn.external_source(
            source=lambda: ahead.pop() if ahead else batch, num_outputs=3, batch=True
        )
        if slicing:
            video, start = window_bytes(video, table, start, window.span)
        return fn.decoders.video(
            video,
            device="mixed" if setting.on_gpu else "cpu",
            affine=False,
            start_frame=start,
            sequence_length=window.frames,
            stride=window.stride,
            pad_mode="edge",
        )

    pipeline = graph()
    pipeline.build()
    return pipeline
