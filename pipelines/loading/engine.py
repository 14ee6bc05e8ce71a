"""Run the graph: batches of bytes and numbers go in by a callback, tensors and faults come out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.dataset.flow import FlowForm
from pipelines.loading.augment import Looks
from pipelines.loading.cut import cut
from pipelines.loading.decode import Decode, Picture, decode_frames
from pipelines.loading.feed import Fed, StreamName
from pipelines.loading.graph import build_pipeline, shaded
from pipelines.loading.stages import Stages
from vidssl.errors import DataError, DeviceError
from vidssl.recipe import Clips

__all__ = ["ClipGraph", "Ran", "inputs_of", "last_line"]

Rows = Sequence[Any]
"""An input of the graph, one entry per row."""

_M_MMAP_THRESHOLD = -3
"""Of `mallopt`, in glibc's malloc.h."""
_PICTURE: dict[StreamName, Picture] = {"rgb": "rgb", "flow": "luma"}


@dataclass(frozen=True)
class Ran:
    """A batch that went through the graph.

    Attributes:
        clips: stream → [rows, C, T, H, W] (several crops: [rows, crops, C, T, H, W]) on the device.
        faults: Each row's fault, in any stream; empty: none.
    """

    clips: Mapping[str, Tensor]
    faults: list[str]


def inputs_of(fed: Fed, coloured: bool, together: bool = False, shaded: bool = True) -> list[Any]:
    """The graph's inputs, one row per clip: bytes and table of each stream, start, crop (2), mirror; of what is `shaded` more.

    That is mean, std, and colour where it may occur. `colour` [12] holds the matrix (9), the lift, whether they apply, and the blur's sigma. With `together` the clips of
    a video are crops of one window: one row per video, and the numbers of its crops stay side by side.
    """
    plan, looks = fed.plan, fed.plan.looks
    if together:
        numbers = (looks.roi_start, looks.roi_end, looks.mirror, *((looks.mean, looks.std) if shaded else ()))
        start = plan.start[:, 0].astype(np.int32)
        return [*_stored(fed, 1), start, *(np.ascontiguousarray(one) for one in numbers)]
    flat = plan.start.size
    return [
        *_stored(fed, plan.start.shape[1]),
        plan.start.reshape(flat).astype(np.int32),
        looks.roi_start.reshape(flat, 2),
        looks.roi_end.reshape(flat, 2),
        looks.mirror.reshape(flat),
        *(np.ascontiguousarray(one.reshape(flat, 3)) for one in ((looks.mean, looks.std) if shaded else ())),
        *([_colour_rows(looks, flat)] if coloured else []),
    ]


def _stored(fed: Fed, clips: int) -> list[list[Any]]:
    """Bytes and tables of each stream, once for every clip."""
    return [
        [one for one in those for _ in range(clips)]
        for name in fed.videos
        for those in (fed.videos[name], fed.tables[name])
    ]


def _colour_rows(looks: Looks, rows: int) -> NDArray[np.float32]:
    parts = (looks.matrix, looks.lift, looks.coloured, looks.sigma)
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1).astype(np.float32)


class ClipGraph:
    """A running graph: `run` gives the clips of the next fed batch.

    Args:
        decode: Decoder.
        clips: T, stride, size.
        group: Neighbouring rows that are clips of one video (decoded together by `py`).
        rows: The most clips of a batch.
        threads: Decode threads.
        device: Where the clips go.
        coloured: Whether colour and blur may occur.
        slicing: See `build_pipeline`.
        crops: Crops of one row; with more than one, a row is a window.
        streams: What is decoded.
        flow: What the flow of the pack is; needed where it is decoded.
        stages: Told what decoding takes, where Python decodes.

    Raises:
        DeviceError: the GPU graph cannot be built.
    """

    def __init__(
        self,
        decode: Decode,
        clips: Clips,
        *,
        group: int,
        rows: int,
        threads: int,
        device: torch.device,
        coloured: bool,
        slicing: bool = True,
        crops: int = 1,
        streams: tuple[StreamName, ...] = ("rgb",),
        flow: FlowForm | None = None,
        stages: Stages | None = None,
    ) -> None:
        self._stages = stages or Stages()
        self.crops, self.streams, self.shaded = crops, streams, shaded(streams, flow)
        self.decode, self.clips, self.group, self.slicing = decode, clips, group, slicing
        self.coloured = coloured and self.shaded
        self._source: Callable[[], Fed] | None = None
        device_id = None if device.type == "cpu" else device.index or 0
        if decode == "dali-cpu":
            _return_large_blocks()
        self._pool = ThreadPoolExecutor(threads, "decode") if decode == "py" and threads > 1 else None
        self._pipeline: Any = build_pipeline(
            self._inputs,
            {name: partial(self._decoded, _PICTURE[name]) for name in streams} if decode == "py" else None,
            clips,
            rows=rows,
            threads=threads,
            device_id=device_id,
            coloured=self.coloured,
            slicing=slicing,
            crops=crops,
            streams=streams,
            flow=flow,
        )
        try:
            self._pipeline.build()
        except RuntimeError as error:
            if device_id is None:
                raise
            raise DeviceError(f"DALI cannot use {device}: {last_line(error)}; type trainer.device=cpu") from error

    def start(self, source: Callable[[], Fed]) -> None:
        """Where each batch comes from."""
        self._source = source

    def run(self) -> Ran:
        """The clips of the next batch.

        Raises:
            RuntimeError: DALI's decoder failed; the graph is not to be used again.
        """
        if self._pipeline is None:
            raise RuntimeError("a graph that was closed is run")
        out = self._pipeline.run()
        texts = [[bytes(np.asarray(of[row])).decode() for row in range(len(of))] for of in out[1::2]]
        # The tensor keeps DALI's buffer alive, and DALI does not write to a buffer that is still held.
        clips = {name: torch.from_dlpack(one.as_tensor()) for name, one in zip(self.streams, out[::2], strict=True)}
        return Ran(clips, [next(filter(None, row), "") for row in zip(*texts, strict=True)])

    def close(self) -> None:
        """End the decode threads and DALI's; nothing can be run after that.

        DALI holds what decodes, which holds this graph: nobody would ever collect a pipeline that is not let go of here, and
        each has a dozen threads.
        """
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._source = self._pipeline = None

    def _inputs(self) -> list[Any]:
        if self._source is None:
            raise RuntimeError("a graph without a source was run")
        return inputs_of(self._source(), self.coloured, self.crops > 1, self.shaded)

    def _decoded(
        self, picture: Picture, videos: Rows, tables: Rows, starts: Rows, roi_start: Rows, roi_end: Rows
    ) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        """Whole frames of flow, whose numbers have to be read before they are resized; crops of RGB."""
        parts = [slice(head, head + self.group) for head in range(0, len(videos), self.group)]
        jobs = [
            (videos[part.start], tables[part.start], starts[part], roi_start[part], roi_end[part]) for part in parts
        ]
        work = partial(self._decoded_video, picture)
        with self._stages.timed("decode"):
            done = list(self._pool.map(work, jobs) if self._pool else map(work, jobs))
        return [clip for clips, _ in done for clip in clips], [fault for _, faults in done for fault in faults]

    def _decoded_video(
        self, picture: Picture, job: tuple[Any, Any, Rows, Rows, Rows]
    ) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        video, table, starts, roi_start, roi_end = job
        form, first = self.clips, [int(one) for one in starts]
        try:
            stored = np.asarray(video), np.asarray(table)
            frames, place = decode_frames(*stored, first, form.frames, form.stride, self.slicing, picture)
        except DataError as error:
            fault = np.frombuffer((str(error) or "unknown").encode(), np.uint8)
            return [self._blank(picture)] * len(first), [fault] * len(first)
        if picture == "luma":
            clips = list(frames[place])
        else:
            looks = zip(place, roi_start, roi_end, strict=True)
            clips = [self._cut(frames, rows, *corners) for rows, *corners in looks]
        return clips, [np.empty(0, np.uint8)] * len(first)

    def _blank(self, picture: Picture) -> NDArray[np.uint8]:
        if picture == "luma":
            return np.zeros((self.clips.frames, 16, 32, 1), np.uint8)
        return np.zeros((self.clips.frames * self.crops, self.clips.size, self.clips.size, 3), np.uint8)

    def _cut(
        self, frames: NDArray[np.uint8], rows: NDArray[np.int64], roi_start: Any, roi_end: Any
    ) -> NDArray[np.uint8]:
        """The crops of one row, one after the other: [crops · T, size, size, 3]."""
        corners = zip(np.asarray(roi_start).reshape(-1, 2), np.asarray(roi_end).reshape(-1, 2), strict=True)
        crops = [cut(frames, rows, *pair, self.clips.size) for pair in corners]
        return crops[0] if len(crops) == 1 else np.concatenate(crops)


def last_line(error: Exception) -> str:
    """What DALI's many-line errors say at their end, at most 200 letters."""
    return str(error).strip().splitlines()[-1][:200]


def _return_large_blocks() -> None:
    """Memory of a megabyte and more goes back to the system when it is freed, in this process from now on.

    DALI's CPU decoder asks for as much with every batch. By itself glibc keeps what is freed, some dozen megabytes more or
    fewer from one batch to the next, which looks as if memory grew. Where the library is another one, nothing changes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)
