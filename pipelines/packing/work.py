"""Who does the videos of a pack, and who is told? One job per video, done by guarded children of whoever runs it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.packing.flow import require_opencv
from pipelines.packing.guard import Guard
from pipelines.packing.part import WHOLE, Cut, Part
from pipelines.packing.staging import ADDITION, CUTS, PACK, Staged, Staging
from pipelines.packing.verdict import Limits, Target, Verdict
from vidssl.errors import StorageError

__all__ = ["Job", "Mapper", "Silent", "Watch", "Work", "in_threads", "stage_one"]


@dataclass(frozen=True)
class Job:
    """One video to do.

    Attributes:
        row: Its row in the catalogue; of a packed video, its instance.
        path: What it is called: where it lies, relative to the root.
        there: The file was there when the pack began.
        file: The file that holds it, relative to the root, where `path` names a part of one.
        part: What of the file it is.
    """

    row: int
    path: str
    there: bool = True
    file: str | None = None
    part: Part = WHOLE

    @property
    def source(self) -> str:
        """The file to read, relative to the root."""
        return self.path if self.file is None else self.file


@dataclass(frozen=True)
class Work:
    """What every worker needs to know; small and picklable.

    Attributes:
        root: Folder the paths are relative to.
        out: Folder that is packed into (shared by all workers).
        target: Form of the packed videos.
        limits: What one video may take.
        packed: The videos are those of the pack in `root`, and their flow alone is made.
        cut: Nothing is packed, and only looked where sources are cut; None: it is packed.
        address: Store that the videos are fetched from; None: they lie in `root`.
    """

    root: str
    out: str
    target: Target
    limits: Limits
    packed: bool = False
    cut: Cut | None = None
    address: str | None = None

    @property
    def staging(self) -> Staging:
        """Where outcomes are written down."""
        return Staging(Path(self.out), ADDITION if self.packed else PACK if self.cut is None else CUTS)


Mapper = Callable[[Sequence[Job], Work, int], Iterator[Staged]]
"""(jobs, work, workers) → what was staged, in any order."""


class Watch(Protocol):
    """What a pack tells while it runs."""

    def say(self, sentence: str) -> None:
        """A sentence for the user."""
        ...

    def begin(self, total: int, done: int) -> None:
        """The work starts: so many videos, so many of them done before."""
        ...

    def tick(self, verdict: Verdict) -> None:
        """One video is done."""
        ...

    def end(self) -> None:
        """No more ticks."""
        ...


class Silent:
    """A watch that tells nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def tick(self, verdict: Verdict) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


def stage_one(job: Job, work: Work, guard: Guard) -> Staged:
    """Do one job and write its outcome down.

    Raises:
        RecipeError: OpenCV is missing on this machine.
        StorageError: the source does not answer, or has gone away.
        OurFault: as `Guard.run`.
        OSError: the outcome cannot be written.
    """
    require_opencv(work.target.flow)
    if work.packed:
        return work.staging.store(job.row, guard.flow_of(work.root, job.row, job.path))
    path = _path_of(job, work, guard)
    if work.cut is None:
        outcome = guard.run(path, job.path, job.part)
    else:
        outcome = guard.bounds_of(path, job.path, job.part, work.cut)
    if outcome.verdict.verdict == "rejected" and job.there and not os.path.lexists(path):
        raise _gone(path)
    return work.staging.store(job.row, outcome)


def _path_of(job: Job, work: Work, guard: Guard) -> str:
    """The file that holds the video; what lies in a store is fetched."""
    if work.address is None:
        return os.path.join(work.root, job.source)
    try:
        return guard.fetcher.file(work.address, job.source)
    except FileNotFoundError:
        raise _gone(f"{work.address}/{job.source}") from None


def _gone(path: str) -> StorageError:
    return StorageError(
        f"{path} was there when the pack began and is gone now, so the pack stops; when the source is whole again, type"
        " the same command again: what is done is kept"
    )


def in_threads(jobs: Sequence[Job], work: Work, workers: int) -> Iterator[Staged]:
    """The mapper of one machine: each thread has a guarded child process, so all cores work.

    Raises:
        VidsslError, OSError: the first error of any thread; the others stop after their video.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    results: queue.SimpleQueue[Staged | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def serve() -> None:
        try:
            with Guard(work.target, work.limits) as guard:
                while not stop.is_set():
                    results.put(stage_one(waiting.get_nowait(), work, guard))
        except queue.Empty:
            return
        except BaseException as error:  # raised again in the caller's thread
            results.put(error)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()
