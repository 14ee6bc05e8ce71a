"""Run the graph: batches of bytes and numbers go in by a callback, tensors and faults come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loading.augment import Looks
from pipelines.loading.decode import Decode, decode_clips
from pipelines.loading.feed import Fed
from pipelines.loading.graph import build_pipeline
from vidssl.errors import DataError, DeviceError
from vidssl.recipe import Clips

__all__ = ["ClipGraph", "inputs_of", "last_line"]


def inputs_of(fed: Fed, coloured: bool, together: bool = False) -> list[Any]:
    """The graph's inputs, one row per clip: bytes, table, start, crop (2), mirror, mean, std, and colour where it may occur.

    `colour` [12] holds the matrix (9), the lift, whether they apply, and the blur's sigma. With `together` the clips of
    a video are crops of one window: one row per video, and the numbers of its crops stay side by side.
    """
    plan, looks = fed.plan, fed.plan.looks
    if together:
        numbers = (looks.roi_start, looks.roi_end, looks.mirror, looks.mean, looks.std)
        start = plan.start[:, 0].astype(np.int32)
        return [list(fed.videos), list(fed.tables), start, *(np.ascontiguousarray(one) for one in numbers)]
    clips = plan.start.shape[1]
    flat = plan.start.size
    return [
        [video for video in fed.videos for _ in range(clips)],
        [table for table in fed.tables for _ in range(clips)],
        plan.start.reshape(flat).astype(np.int32),
        looks.roi_start.reshape(flat, 2),
        looks.roi_end.reshape(flat, 2),
        looks.mirror.reshape(flat),
        np.ascontiguousarray(looks.mean.reshape(flat, 3)),
        np.ascontiguousarray(looks.std.reshape(flat, 3)),
        *([_colour_rows(looks, flat)] if coloured else []),
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
    ) -> None:
        self.crops = crops
        self.decode, self.clips, self.group, self.coloured, self.slicing = decode, clips, group, coloured, slicing
        self._source: Callable[[], Fed] | None = None
        self._pool = ThreadPoolExecutor(threads, "decode") if decode == "py" and threads > 1 else None
        device_id = None if device.type == "cpu" else device.index or 0
        self._pipeline = build_pipeline(
            self._inputs,
            self._decoded if decode == "py" else None,
            clips,
            rows=rows,
            threads=threads,
            device_id=device_id,
            coloured=coloured,
            slicing=slicing,
            crops=crops,
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

    def run(self) -> tuple[Tensor, list[str]]:
        """Clips [rows, 3, T, H, W] (several crops: [rows, crops, 3, T, H, W]) on the device, each row's fault (empty: none).

        Raises:
            RuntimeError: DALI's decoder failed; the graph is not to be used again.
        """
        clips, faults = self._pipeline.run()
        texts = [bytes(np.asarray(faults[row])).decode() for row in range(len(faults))]
        # The tensor keeps DALI's buffer alive, and DALI does not write to a buffer that is still held.
        return torch.from_dlpack(clips.as_tensor()), texts

    def close(self) -> None:
        """End the decode threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _inputs(self) -> list[Any]:
        if self._source is None:
            raise RuntimeError("a graph without a source was run")
        return inputs_of(self._source(), self.coloured, self.crops > 1)

    def _decoded(
        self, videos: Sequence[Any], tables: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        heads = range(0, len(videos), self.group)
        jobs = [(videos[head], tables[head], [int(one) for one in starts[head : head + self.group]]) for head in heads]
        mapped = self._pool.map(self._decoded_video, jobs) if self._pool else map(self._decoded_video, jobs)
        done = list(mapped)
        return [clip for clips, _ in done for clip in clips], [fault for _, faults in done for fault in faults]

    def _decoded_video(
        self, job: tuple[Any, Any, list[int]]
    ) -> tuple[Sequence[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        video, table, starts = job
        try:
            clips = decode_clips(
                np.asarray(video), np.asarray(table), starts, self.clips.frames, self.clips.stride, self.slicing
            )
        except DataError as error:
            blank = np.zeros((self.clips.frames, 16, 16, 3), np.uint8)
            fault = np.frombuffer((str(error) or "unknown").encode(), np.uint8)
            return [blank] * len(starts), [fault] * len(starts)
        return list(clips), [np.empty(0, np.uint8)] * len(starts)


def last_line(error: Exception) -> str:
    """What DALI's many-line errors say at their end, at most 200 letters."""
    return str(error).strip().splitlines()[-1][:200]
