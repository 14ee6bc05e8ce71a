"""Videos → a packed folder: verified, normalised, restartable. This page is the whole flow, without Ray.

catalogue → plan (refused when OUT holds another) → each video in a guarded child, staged when done → shards, manifest.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.dataset.manifest import Manifest
from pipelines.packing.assembly import assemble
from pipelines.packing.catalog import read_catalog
from pipelines.packing.flow import require_opencv
from pipelines.packing.guard import Guard
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions, pack_options
from pipelines.packing.plan import begin, finished, make_plan, refuse_address, refuse_overlap, refuse_strangers
from pipelines.packing.staging import DamagedStaging, Staged, Staging
from pipelines.packing.verdict import Limits, Target, Verdict
from vidssl.errors import RecipeError, StorageError
from vidssl.files import disk_words, is_full
from vidssl.lock import held
from vidssl.marks import mark_of

__all__ = ["Job", "Mapper", "PackOptions", "Silent", "Watch", "Work", "in_threads", "pack", "pack_options", "stage_one"]

_SAMPLED = 4
_WORTH_SAMPLING = 24
_ROUNDS = 3
"""How often staged videos may be damaged before the disk is to blame."""


@dataclass(frozen=True)
class Job:
    """One video to do.

    Attributes:
        row: Its row in the catalogue.
        path: Relative to the root.
        there: The file was there when the pack began.
    """

    row: int
    path: str
    there: bool = True


@dataclass(frozen=True)
class Work:
    """What every worker needs to know; small and picklable.

    Attributes:
        root: Folder the paths are relative to.
        out: Folder that is packed into (shared by all workers).
        target: Form of the packed videos.
        limits: What one video may take.
    """

    root: str
    out: str
    target: Target
    limits: Limits


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


@dataclass(frozen=True)
class _Task:
    """One call of `pack`, everything decided."""

    catalog: Catalog
    plan: Mapping[str, str]
    options: PackOptions
    work: Work
    workers: int
    run: Mapper
    watch: Watch


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
        DataError: a bad source, an OUT that holds another pack or what we did not make, or not one good video.
        BusyError: another process packs into OUT.
        StorageError: OUT cannot be written (a full disk …) or the source does not answer; what is done is kept.
        OurFault: an error in our own code; what is done is kept.
    """
    options, watch, place = options or PackOptions(), watch or Silent(), Path(out)
    refuse_address(src, "the source")
    refuse_address(out, "OUT")
    if workers is not None and workers < 1:
        raise RecipeError(f"{workers} workers pack nothing; give at least 1, or none for one per core")
    catalog = read_catalog(format, src, options)
    refuse_overlap(catalog.root, place, format)
    plan = make_plan(format, src, catalog, options)
    if (done := _nothing_to_do(place, catalog, plan, options, watch)) is not None:
        return done
    require_opencv(options.flow_form())
    refuse_strangers(place)
    for note in catalog.notes:
        watch.say(note)
    work = Work(os.path.realpath(catalog.root), os.path.realpath(place), options.target(), options.limits())
    task = _Task(catalog, plan, options, work, workers or len(os.sched_getaffinity(0)), run or in_threads, watch)
    with _sentences_for_the_disk(place, len(catalog.rows)), held(place, "pack", watch.say):
        # Another pack may have ended while this one looked.
        if (done := _nothing_to_do(place, catalog, plan, options, watch)) is not None:
            return done
        staging = begin(place, plan, options)
        manifest = _stage_and_assemble(task, staging)
        staging.remove()
    return manifest


def stage_one(job: Job, work: Work, guard: Guard) -> Staged:
    """Do one job and write its outcome down.

    Raises:
        StorageError: the source does not answer, or has gone away.
        OurFault: as `Guard.run`.
        OSError: the outcome cannot be written.
    """
    path = os.path.join(work.root, job.path)
    outcome = guard.run(path, job.path)
    if outcome.verdict.verdict == "rejected" and job.there and not os.path.lexists(path):
        raise StorageError(
            f"{path} was there when the pack began and is gone now, so the pack stops; when the source is whole again, type"
            " the same command again: what is done is kept"
        )
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


def _nothing_to_do(
    place: Path, catalog: Catalog, plan: Mapping[str, str], options: PackOptions, watch: Watch
) -> Manifest | None:
    done = finished(place, plan, options)
    if done is None:
        return None
    if mark_of(place) is not None:
        Staging(place).remove()  # there when the last run was killed after its manifest
    rejected = f", {done.rejected} rejected" if done.rejected else ""
    watch.say(f"nothing to do: {len(done)} of {len(catalog.rows)} packed{rejected} in {place} (data {done.hash})")
    return done


def _stage_and_assemble(task: _Task, staging: Staging) -> Manifest:
    """Pack what is not packed; again, where the disk does not give back what was staged."""
    for _ in range(_ROUNDS):
        _stage_all(task, staging)
        try:
            return assemble(Path(task.work.out), task.catalog, staging, task.options, task.plan)
        except DamagedStaging:
            _forget_damaged(staging, range(len(task.catalog.rows)), task.watch, read_all=True)
    raise StorageError(
        f"{task.work.out} does not give back what is written to it: staged videos were damaged {_ROUNDS} times in a row; look"
        " after that disk, or give another OUT"
    )


def _forget_damaged(staging: Staging, rows: Iterable[int], watch: Watch, *, read_all: bool) -> set[int]:
    damaged = staging.damaged(rows, read_all=read_all)
    staging.forget(damaged)
    if damaged:
        number = "1 staged video is" if len(damaged) == 1 else f"{len(damaged)} staged videos are"
        watch.say(f"{number} damaged (a loss of power?) and packed again")
    return damaged


def _stage_all(task: _Task, staging: Staging) -> None:
    rows, watch = task.catalog.rows, task.watch
    before = staging.finished() & set(range(len(rows)))
    before -= _forget_damaged(staging, before, watch, read_all=False)
    root = task.catalog.root
    jobs = [
        Job(number, row.path, os.path.lexists(root / row.path))
        for number, row in enumerate(rows)
        if number not in before
    ]
    if before:
        watch.say(f"going on: {len(before)} of {len(rows)} videos were done before")
    watch.begin(len(rows), len(before))
    try:
        if len(jobs) > _WORTH_SAMPLING:
            jobs = _tell_size(jobs, root, task.work, task.workers, watch)
        for staged in task.run(jobs, task.work, task.workers):
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
    packed = sum(entry.size for entry in staged) / _SAMPLED * len(jobs)
    watch.say(
        f"{len(jobs)} videos of {_megabytes(sum(bytes_of.values()))}: about {_megabytes(packed)} of shards"
        f" and {_duration(each * len(rest) / workers)} on {workers} workers"
    )
    return rest


@contextmanager
def _sentences_for_the_disk(out: Path, videos: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Counted after the failure: what a full disk still takes is room again by then.
        words = disk_words(error, out, _still_needed(out, videos) if is_full(error) else None)
        way = "; make room and type the same command again: what is done is kept" if is_full(error) else ""
        raise StorageError(words + way) from error


def _still_needed(out: Path, videos: int) -> int | None:
    """Bytes that the rest of the pack will take, judged by what is staged: the journal and the shards lie side by side."""
    sizes = [_size(path) for path in Staging(out).folder.glob("done/*/*") if path.name.isdigit()]
    if not sizes:
        return None
    shards = sum(_size(path) for path in out.glob("shard-*.tar"))
    return max(int(2 * sum(sizes) / len(sizes) * videos) - sum(sizes) - shards, 0)


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
