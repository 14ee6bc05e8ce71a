"""Videos → a packed folder: verified, normalised, restartable. This page is the whole flow, without Ray.

catalogue → plan (refused when OUT holds another) → each video in a guarded child, staged when done → shards, manifest.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.dataset.manifest import Manifest
from pipelines.packing.assembly import assemble
from pipelines.packing.catalog import read_catalog
from pipelines.packing.guard import Guard
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions, pack_options
from pipelines.packing.plan import alone, begin, finished, make_plan, refuse_overlap
from pipelines.packing.staging import Staged, Staging
from pipelines.packing.verdict import Target, Verdict
from vidssl.errors import DataError

__all__ = ["Job", "Mapper", "PackOptions", "Silent", "Watch", "Work", "in_threads", "pack", "pack_options", "stage_one"]

_SAMPLED = 4
_WORTH_SAMPLING = 24


@dataclass(frozen=True)
class Job:
    """One video to do: its row in the catalogue, its path relative to the root."""

    row: int
    path: str


@dataclass(frozen=True)
class Work:
    """What every worker needs to know; small and picklable.

    Attributes:
        root: Folder the paths are relative to.
        out: Folder that is packed into (shared by all workers).
        target: Form of the packed videos.
        timeout: Seconds without a frame that count as hung.
    """

    root: str
    out: str
    target: Target
    timeout: float


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


def pack(
    format: str,
    src: str | Path,
    out: str | Path,
    options: PackOptions | None = None,
    *,
    workers: int | None = None,
    run: Mapper | None = None,
    watch: Watch | None = None,
) -> Manifest:
    """Pack a source; go on where a killed pack stopped; do nothing when it is done.

    Args:
        format: As `read_catalog`.
        src: As `read_catalog`.
        out: Folder to pack into.
        options: How.
        workers: Videos decoded at once; None: one per core.
        run: Does the jobs; None: guarded children of this process, one per thread.
        watch: Is told what happens.

    Returns:
        The manifest of the packed folder.

    Raises:
        RecipeError: options that do not go together or with the format.
        DataError: a bad source, an OUT that holds another pack, a full disk, or not one good video.
        OurFault: an error in our own code; what is done is kept.
    """
    options, watch, place = options or PackOptions(), watch or Silent(), Path(out)
    catalog = read_catalog(format, src, options)
    refuse_overlap(catalog.root, place, format)
    plan = make_plan(format, src, catalog, options)
    if (done := finished(place, plan, options)) is not None:
        Staging(place).remove()  # there when the last run was killed after its manifest
        rejected = f", {done.rejected} rejected" if done.rejected else ""
        watch.say(f"nothing to do: {len(done)} of {len(catalog.rows)} packed{rejected} in {place} (data {done.hash})")
        return done
    work = Work(str(catalog.root.resolve()), str(place.resolve()), options.target(), options.timeout)
    workers = workers or len(os.sched_getaffinity(0))
    staging = Staging(place)
    with _sentences_for_the_disk(place), alone(place):
        begin(staging, plan, options)
        _stage_all(catalog, staging, work, workers, run or in_threads, watch)
        manifest = assemble(place, catalog, staging, options, plan)
        staging.remove()
    return manifest


def stage_one(job: Job, work: Work, guard: Guard) -> Staged:
    """Do one job and write its outcome down."""
    outcome = guard.run(os.path.join(work.root, job.path), job.path)
    return Staging(Path(work.out)).store(job.row, outcome)


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
            with Guard(work.target, work.timeout) as guard:
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


def _stage_all(catalog: Catalog, staging: Staging, work: Work, workers: int, run: Mapper, watch: Watch) -> None:
    before = staging.finished()
    jobs = [Job(number, row.path) for number, row in enumerate(catalog.rows) if number not in before]
    if before:
        watch.say(f"going on: {len(before)} of {len(catalog.rows)} videos were done before")
    watch.begin(len(catalog.rows), len(before))
    try:
        if len(jobs) > _WORTH_SAMPLING:
            jobs = _tell_size(jobs, catalog.root, work, workers, watch)
        for staged in run(jobs, work, workers):
            watch.tick(staged.verdict)
    finally:
        watch.end()


def _tell_size(jobs: list[Job], root: Path, work: Work, workers: int, watch: Watch) -> list[Job]:
    """Do a few videos of different sizes first; say what the whole will take. Returns the other jobs."""
    bytes_of = {job.row: _size(root / job.path) for job in jobs}
    by_size = sorted(jobs, key=lambda job: bytes_of[job.row])
    step = len(jobs) / _SAMPLED
    sample = [by_size[int((number + 0.5) * step)] for number in range(_SAMPLED)]
    begin = time.perf_counter()
    staged = []
    for result in in_threads(sample, work, 1):
        staged.append(result)
        watch.tick(result.verdict)
    each = (time.perf_counter() - begin) / _SAMPLED
    rows = {job.row for job in sample}
    rest = [job for job in jobs if job.row not in rows]
    packed = sum(entry.bytes for entry in staged) / _SAMPLED * len(jobs)
    watch.say(
        f"{len(jobs)} videos of {_megabytes(sum(bytes_of.values()))}: about {_megabytes(packed)} of shards"
        f" and {_duration(each * len(rest) / workers)} on {workers} workers"
    )
    return rest


@contextmanager
def _sentences_for_the_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk of {out} is full; make room and type the same command again: what is done is kept"
        else:
            text = f"{out} cannot be written: {error.strerror or error}"
        raise DataError(text) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
