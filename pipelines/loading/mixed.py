"""Two decoders for one batch: DALI's takes the first videos, PyAV the rest, at the same time, in the share that keeps both busy.

NVDEC has a fixed rate, and the cores beside it stand idle; with both, a batch comes as fast as both together make it. Who
decodes which video follows their speed, so the pixels of a video are those of one decoder or of the other, and a run is not
repeatable to the bit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loading.beside import beside
from pipelines.loading.decode import Decode
from pipelines.loading.engine import ClipGraph, Ran
from pipelines.loading.feed import Fed
from pipelines.loading.stages import Stages

__all__ = ["MixedGraph", "Share"]

BATCHES = 4
"""Batches over which both decoders' times are summed before the share moves: a run returns what was begun earlier."""
CLOSE = 1.1
"""Times within this factor are the same."""


class Share:
    """How many videos of a batch the first decoder takes: more while it waits for the other, fewer while the other waits for it.

    Args:
        rows: The most videos of a batch.

    Attributes:
        first: Of `rows`, how many the first takes.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._took, self._seen = rows, [0.0, 0.0], 0
        self.first = max(rows // 2, 1)

    def of(self, rows: int) -> int:
        """Of a batch of `rows` videos; each decoder takes one at least."""
        return min(max(round(rows * self.first / self._rows), 1), max(rows - 1, 1))

    def told(self, first_s: float, second_s: float) -> None:
        """What both took for their part of a batch."""
        self._took = [self._took[0] + first_s, self._took[1] + second_s]
        self._seen += 1
        if self._seen < BATCHES:
            return
        first, second = self._took
        step = max(self._rows // 16, 1)
        if first > CLOSE * second:
            self.first = max(self.first - step, 1)
        elif second > CLOSE * first:
            self.first = min(self.first + step, max(self._rows - 1, 1))
        self._took, self._seen = [0.0, 0.0], 0


class MixedGraph:
    """Two running graphs that look like one `ClipGraph`.

    Args:
        dali: Decodes the first videos of each batch.
        py: Decodes the rest.
        rows: The most videos of a batch.
        device: Where the clips go.
        stages: Told the share of DALI's decoder.
    """

    decode: Decode = "mixed"

    def __init__(self, dali: ClipGraph, py: ClipGraph, rows: int, device: torch.device, stages: Stages) -> None:
        self._graphs, self._device, self._stages = (dali, py), device, stages
        self.share = Share(rows)
        self._parts: tuple[deque[Fed], deque[Fed]] = (deque(), deque())
        self._lone: deque[bool] = deque()
        self._pulling = threading.Lock()
        self._other = ThreadPoolExecutor(1, "decode-mixed")

    def start(self, source: Callable[[], Fed]) -> None:
        """Where each batch comes from."""
        for which, graph in enumerate(self._graphs):
            graph.start(lambda which=which: self._part(which, source))

    def run(self) -> Ran:
        """The clips of the next batch; what one of the two raises, when neither works any more.

        Raises:
            RuntimeError: DALI's decoder failed; the graph is not to be used again.
        """
        beside_it = self._other.submit(_timed, self._graphs[0].run)
        try:
            second, second_s = _timed(self._graphs[1].run)
        finally:
            beside_it.exception()  # nobody works any more when this returns
        first, first_s = beside_it.result()
        self.share.told(first_s, second_s)
        if self._lone.popleft():
            return first
        videos = len(first.faults), len(second.faults)
        self._stages.by_dali += videos[0] / sum(videos)
        self._stages.mixed += 1
        with beside(self._device) as lent:
            clips: dict[str, Tensor] = {
                name: torch.cat([first.clips[name], second.clips[name]]) for name in first.clips
            }
            lent += clips.values()
        return Ran(clips, first.faults + second.faults)

    def close(self) -> None:
        """End both."""
        self._other.shutdown(wait=True)
        for graph in self._graphs:
            graph.close()

    def _part(self, which: int, source: Callable[[], Fed]) -> Fed:
        """One decoder's part of the next batch; whoever comes first takes the batch apart."""
        with self._pulling:
            if not self._parts[which]:
                fed = source()
                cut = self.share.of(len(fed))
                rows = np.arange(len(fed))
                self._lone.append(len(fed) == 1)
                self._parts[0].append(_taken(fed, rows[:cut]))
                self._parts[1].append(_taken(fed, rows[min(cut, len(fed) - 1) :]))  # a lone video is decoded by both
            return self._parts[which].popleft()


def _taken(fed: Fed, rows: NDArray[np.int64]) -> Fed:
    videos = {stream: tuple(those[row] for row in rows) for stream, those in fed.videos.items()}
    tables = {stream: tuple(those[row] for row in rows) for stream, those in fed.tables.items()}
    return Fed(fed.plan.taken(rows), videos, tables)


def _timed(run: Callable[[], Ran]) -> tuple[Ran, float]:
    before = time.perf_counter()
    return run(), time.perf_counter() - before
