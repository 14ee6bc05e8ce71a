"""Plans in, clips out, whatever happens to single videos: the error budget lives here.

A sample whose bytes have changed or do not decode is named, counted, remembered (it is not tried again until the run is
resumed) and its row is given to the next good row of the batch, clips and instance alike; or left out, where rows must not
be doubled (evaluation). A disk that does not answer is no reason: it is asked again by the reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipelines.dataset.shards import sample_key
from pipelines.loading.beside import beside
from pipelines.loading.decode import Decode
from pipelines.loading.engine import ClipGraph, Ran, last_line
from pipelines.loading.feed import Fed, Feed, Plan, plans_ahead, rows_to_take
from pipelines.loading.mixed import MixedGraph
from pipelines.loading.stages import Stages
from vidssl.errors import DataError
from vidssl.recipe import Loader

__all__ = ["BadSample", "ClipStream", "Made"]


@dataclass(frozen=True)
class BadSample:
    """A sample that failed.

    Attributes:
        instance: Which; -1: a batch whose decoder failed although every sample of it decodes with PyAV.
        key: Name of the sample in its shard.
        reason: What went wrong, with the path of the original.
        shard: Name of its shard; empty for a batch.
        step: The batch that it was wanted for.
    """

    instance: int
    key: str
    reason: str
    shard: str
    step: int


@dataclass(frozen=True)
class Made:
    """A finished batch.

    Attributes:
        plan: What its rows are, donors in place of bad rows.
        clips: stream → float32 [B, n_clips, C, T, H, W].
        bad: Samples found to be bad since the batch before.
    """

    plan: Plan
    clips: Mapping[str, Tensor]
    bad: tuple[BadSample, ...]


class ClipStream:
    """Runs a graph over plans.

    Args:
        feed: Reads what plans need.
        decode: Decoder.
        loader: Threads and error budget.
        rows: The most videos of a batch.
        per_video: Clips of a video.
        together: The clips of a video are crops of one window, which is decoded once.
        device: Where the clips go.
        replace: Give bad rows to a donor; otherwise leave them out.
        on_bad: Told of each bad sample once, when it is found.
        stages: Told what reading, decoding and the rest of the graph take.
    """

    def __init__(
        self,
        feed: Feed,
        decode: Decode,
        loader: Loader,
        *,
        rows: int,
        per_video: int,
        device: torch.device,
        replace: bool,
        on_bad: Callable[[BadSample], None] = lambda bad: None,
        together: bool = False,
        stages: Stages | None = None,
    ) -> None:
        self._stages = stages or Stages()
        self._crops, self._clips = (per_video, 1) if together else (1, per_video)  # of one row, of one video
        self.feed, self.loader, self.replace = feed, loader, replace
        self.decode: Decode = decode
        self.rows, self.per_video, self.device = rows, per_video, device
        self.bad: list[BadSample] = []
        self._on_bad, self._bad_delivered = on_bad, 0
        self._tried = np.zeros(len(feed.manifest), np.bool_)
        self._flying: deque[Fed] = deque()
        self._again: deque[Plan] = deque()
        self._planned: deque[Plan] = deque()
        self._graphs: dict[str, ClipGraph | MixedGraph] = {}

    def batches(self, plans: Iterator[Plan]) -> Iterator[Made]:
        """A finished batch for each plan (without `replace`: for each that has a good row).

        Raises:
            DataError: more bad samples than `loader.bad_rate` and `loader.bad_floor` allow, or a batch of bad ones only.
            StorageError: a shard that cannot be reached for `loader.patience` seconds.
        """
        self._plans, self._ahead = plans, plans_ahead(self.loader) if self.feed.reader.far else 1
        try:
            while (ran := self._ran()) is not None:
                yield from self._finished(*ran)
        finally:
            for graph in self._graphs.values():
                graph.close()
            self._graphs.clear()
            self.feed.reader.close()

    def _ran(self) -> tuple[Fed, Ran] | None:
        """One batch through the graph; None after the last."""
        graph = self._graph(self.decode)
        graph.start(self._next_fed)
        try:
            with self._stages.graph(graph.decode != "py"):
                ran = graph.run()
        except StopIteration:
            return None
        except RuntimeError as error:
            if self.decode == "py" or not self._flying:
                raise
            return self._decoded_singly(last_line(error))
        return self._flying.popleft(), ran

    def _decoded_singly(self, reason: str) -> tuple[Fed, Ran]:
        """DALI fails whole batches: take this one apart with PyAV, and begin anew with the one after it."""
        fed = self._flying.popleft()
        self._again.extend(later.plan for later in self._flying)
        self._flying.clear()
        self._graphs.pop(self.decode).close()
        graph = self._graph("py")
        graph.start(lambda: fed)
        ran = graph.run()
        if not any(ran.faults):
            said = f"{self.decode} failed, PyAV did not: {reason}"
            self._count(BadSample(-1, f"step {fed.plan.step}", said, "", fed.plan.step))
        return fed, ran

    def _graph(self, decode: Decode) -> ClipGraph | MixedGraph:
        if decode not in self._graphs:
            self._graphs[decode] = self._mixed() if decode == "mixed" else self._of(decode, self._stages)
        return self._graphs[decode]

    def _mixed(self) -> MixedGraph:
        dali = self._of("nvdec" if self.device.type == "cuda" else "dali-cpu", Stages())
        return MixedGraph(dali, self._of("py", Stages()), self.rows, self.device, self._stages)

    def _of(self, decode: Decode, stages: Stages) -> ClipGraph:
        return ClipGraph(
            decode,
            self.feed.clips,
            group=self._clips,
            rows=self.rows * self._clips,
            crops=self._crops,
            threads=self.loader.threads,
            device=self.device,
            coloured=self.feed.augment.preset in ("paper", "simclr", "supervised"),
            streams=self.feed.streams,
            flow=self.feed.manifest.flow,
            stages=stages,
        )

    def _next_fed(self) -> Fed:
        """What the graph asks for: the next batch that has a readable row; StopIteration after the last."""
        while True:
            bad = {one.instance for one in self.bad}
            plan = self._again.popleft() if self._again else self._next_plan(bad)
            self._tried[plan.instance] = True
            before = self.feed.reader.bytes_read
            with self._stages.timed("read"):
                fed, _ = self.feed.read(plan, bad, self.replace, self._name)
            self._stages.bytes_read += self.feed.reader.bytes_read - before
            if len(fed):
                self._flying.append(fed)
                return fed

    def _next_plan(self, bad: Collection[int]) -> Plan:
        """The next plan, after those behind it were announced where data is far away."""
        for plan in islice(self._plans, self._ahead - len(self._planned)):
            if self.feed.reader.far:
                self.feed.want(plan, bad)
            self._planned.append(plan)
        if not self._planned:
            raise StopIteration
        return self._planned.popleft()

    def _finished(self, fed: Fed, ran: Ran) -> Iterator[Made]:
        clips = {name: _owned(one.reshape(-1, self.per_video, *one.shape[-4:])) for name, one in ran.clips.items()}
        faults = _by_video(ran.faults, self._clips)
        for row, reason in faults.items():
            self._name(fed.plan, int(fed.plan.instance[row]), reason)
        plan = fed.plan
        if faults:
            rows = rows_to_take(len(fed), faults, self.replace)
            plan = plan.taken(rows)
            clips = {name: one[torch.from_numpy(rows).to(one.device)] for name, one in clips.items()}
        if len(plan.instance):
            bad, self._bad_delivered = tuple(self.bad[self._bad_delivered :]), len(self.bad)
            yield Made(plan, clips, bad)

    def _name(self, plan: Plan, instance: int, reason: str) -> None:
        if all(one.instance != instance for one in self.bad):
            samples, shards = self.feed.manifest.samples, self.feed.manifest.shards
            shard = shards[int(samples.shard[instance])].name
            said = f"{samples.name[instance]}: {reason}"
            self._count(BadSample(instance, sample_key(instance), said, shard, plan.step))

    def _count(self, bad: BadSample) -> None:
        self.bad.append(bad)
        self._on_bad(bad)
        tried = int(np.count_nonzero(self._tried))
        limits = self.loader
        if len(self.bad) > max(limits.bad_floor, int(limits.bad_rate * tried)):
            raise DataError(
                f"{len(self.bad)} of {tried} videos tried so far are bad, loader.bad_floor={limits.bad_floor} or "
                f"loader.bad_rate={limits.bad_rate:g} of them are allowed; the last one: {bad.key}, {bad.reason}; "
                f"type vidssl verify {self.feed.manifest.root}, pack the data again or raise a limit"
            )


def _by_video(texts: list[str], per_video: int) -> dict[int, str]:
    """{video: first fault of its clips}."""
    faults: dict[int, str] = {}
    for row, text in enumerate(texts):
        if text:
            faults.setdefault(row // per_video, text)
    return faults


def _owned(clips: Tensor) -> Tensor:
    """Clips that may be let go while kernels still read them.

    DALI knows nothing of torch's streams and would reuse a freed buffer at once; a copy made on a stream of its own does
    not wait for the training step, and torch frees it in order.
    """
    if not clips.is_cuda:
        return clips
    with beside(clips.device) as lent:
        kept = clips.clone()
        lent.append(kept)
    return kept
