"""Videos → a packed folder: verified, normalised, restartable. This page is the whole flow, without Ray.

catalogue → plan (refused when OUT holds another) → where long sources are cut → each video in a guarded child, staged when
done → copies → shards, manifest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.dataset.manifest import MANIFEST, Manifest
from pipelines.dataset.place import address_of
from pipelines.packing.added import WHOLE, addition_to, finish_switch, put_flow_in
from pipelines.packing.assembly import assemble
from pipelines.packing.catalog import format_for, read_catalog
from pipelines.packing.cut import with_clips
from pipelines.packing.far import Source, source_at
from pipelines.packing.flow import costs, duration, megabytes, require_opencv
from pipelines.packing.folds import write_folds
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions, pack_options
from pipelines.packing.plan import begin, finished, make_plan, refuse_overlap, refuse_strangers
from pipelines.packing.staging import ADDITION, DamagedStaging, Staging
from pipelines.packing.upload import upload_to
from pipelines.packing.verdict import Outcome
from pipelines.packing.work import Job, Mapper, Silent, Watch, Work, in_threads, stage_one
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
class _Task:
    """One call of `pack`, everything decided."""

    catalog: Catalog
    plan: Mapping[str, str]
    options: PackOptions
    work: Work
    workers: int
    run: Mapper
    watch: Watch
    clear: Mapping[int, Outcome] = field(default_factory=dict)
    """Rows whose outcome is clear without packing them."""


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
        src: As `read_catalog`; or an address (s3://…, gs://…) in the place of a folder.
        out: Folder to pack into, or an address (s3://…, gs://…): packed in a folder first, then uploaded.
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
        StorageError: OUT cannot be written or reached (a full disk …) or the source does not answer; what is done is kept.
        OurFault: an error in our own code; what is done is kept.
    """
    options, watch = options or PackOptions(), watch or Silent()
    if options.fold == "all":
        return _all_folds(format, src, out, options, workers, run, watch)
    if workers is not None and workers < 1:
        raise RecipeError(f"{workers} workers pack nothing; give at least 1, or none for one per core")
    cores, mapper = workers or len(os.sched_getaffinity(0)), run or in_threads
    upload = upload_to(out, options, watch.say)
    place = Path(out) if upload is None else upload.stage
    _finish(place, watch)
    if options.add == "flow":
        return _add_flow(place, options, cores, mapper, watch)
    with source_at(format, src, options, watch.say) as source:
        catalog = read_catalog(format, source.place, options)
        catalog = replace(catalog, notes=(*source.notes, *catalog.notes))
        refuse_overlap(catalog.root, place, format)
        plan = make_plan(format, src, catalog, options)
        if upload is not None and (there := upload.finished(plan)) is not None:
            return there
        require_opencv(options.flow_form())
        work = _work(catalog, place, source, options)
        manifest = _packed(_Task(catalog, plan, options, work, cores, mapper, watch), place, upload is not None)
    return manifest if upload is None else upload.put(manifest)


def _work(catalog: Catalog, place: Path, source: Source, options: PackOptions) -> Work:
    roots = os.path.realpath(catalog.root), os.path.realpath(place)
    address = None if source.address is None else str(source.address)
    return Work(*roots, options.target(), options.limits(), address=address)


def _all_folds(
    format: str,
    src: str | Path,
    out: str | Path,
    options: PackOptions,
    workers: int | None,
    run: Mapper | None,
    watch: Watch,
) -> Manifest:
    """`fold=all`: the pack of split 1, and beside it the other splits of the same shards."""
    if (far := next((place for place in (src, out) if address_of(place) is not None), None)) or options.cut != "none":
        other = f"cut={options.cut}" if options.cut != "none" else f"{far}, which is no folder"
        raise RecipeError(f"fold=all does not go with {other}; leave one of them out")
    format_for(format, options)  # refused before anything is packed
    first = pack(format, src, out, options.model_copy(update={"fold": 1}), workers=workers, run=run, watch=watch)
    with _sentences_for_the_disk(Path(out), 0):
        write_folds(format, src, first, options, watch.say)
    return first


def _packed(task: _Task, place: Path, goes_on: bool) -> Manifest:
    """The pack in a folder, made or found there; `goes_on`: that is not the end of it, and not said to be."""
    known = (place, task.catalog, task.plan, task.options, Silent() if goes_on else task.watch)
    if (done := _nothing_to_do(*known)) is not None:
        return done
    refuse_strangers(place)
    for note in task.catalog.notes:
        task.watch.say(note)
    with _sentences_for_the_disk(place, len(task.catalog.rows)), held(place, "pack", task.watch.say):
        if (done := _nothing_to_do(*known)) is not None:  # another pack may have ended while this one looked
            return done
        staging = begin(place, task.plan, task.options)
        manifest = _stage_and_assemble(_with_clips(task), staging)
        staging.remove()
    return manifest


def _finish(place: Path, watch: Watch) -> None:
    """Renames that are left over from a killed `add=flow` are made first; until then the folder is no whole pack."""
    if (Staging(place, ADDITION).folder / WHOLE / MANIFEST).is_file():
        with _sentences_for_the_disk(place, 0), held(place, "pack", watch.say):
            finish_switch(place)


def _add_flow(place: Path, options: PackOptions, workers: int, run: Mapper, watch: Watch) -> Manifest:
    """`add=flow`: the source is not looked at, for flow is made of the packed frames."""
    added = addition_to(place, options)
    if isinstance(added, Manifest):
        watch.say(f"nothing to do: {place} holds this flow already (data {added.hash})")
        return added
    real = os.path.realpath(place)
    work = Work(real, real, added.options.target(), options.limits(), packed=True)
    with _sentences_for_the_disk(place, len(added.manifest)), held(place, "pack", watch.say):
        for _ in range(_ROUNDS):
            try:
                return put_flow_in(added, work, workers, run, watch)
            except DamagedStaging:
                watch.say("staged flow is damaged (a loss of power?) and made again")
    raise _forgetful_disk(place)


def _nothing_to_do(
    place: Path, catalog: Catalog, plan: Mapping[str, str], options: PackOptions, watch: Watch
) -> Manifest | None:
    done = finished(place, plan, options)
    if done is None:
        return None
    if mark_of(place) is not None:
        Staging(place).remove()  # there when the last run was killed after its manifest
    rejected = f", {done.rejected} rejected" if done.rejected else ""
    watch.say(
        f"nothing to do: {len(done)} of {len(done) + done.rejected} packed{rejected} in {place} (data {done.hash})"
    )
    return done


def _with_clips(task: _Task) -> _Task:
    """The task with a row per clip, where long sources are cut: each is looked at once, and what was found is kept."""
    cut, watch = task.options.cutting(), task.watch
    if cut is None:
        return task
    work = replace(task.work, cut=cut)
    sources = [number for number, row in enumerate(task.catalog.rows) if not row.part.is_range]
    before = work.staging.finished() & set(sources)
    before -= _forget_damaged(work.staging, before, watch, read_all=True)
    jobs = [_job(task.catalog, number) for number in sources if number not in before]
    if jobs:
        watch.say(f"looking where {len(jobs)} of {len(task.catalog.rows)} sources are cut (cut={task.options.cut})")
        watch.begin(len(sources), len(before))
        try:
            for staged in task.run(jobs, work, task.workers):
                watch.tick(staged.verdict)
        finally:
            watch.end()
    surveys = {number: work.staging.load(number) for number in sources}
    found = with_clips(task.catalog, {number: (one.verdict, one.bounds) for number, one in surveys.items()}, cut.least)
    watch.say(f"{len(task.catalog.rows)} sources, {found.sources} of them cut, are {len(found.catalog.rows)} clips")
    return replace(task, catalog=found.catalog, clear=found.verdicts)


def _job(catalog: Catalog, number: int) -> Job:
    row = catalog.rows[number]
    return Job(number, row.path, os.path.lexists(catalog.root / row.source), row.file, row.part)


def _stage_and_assemble(task: _Task, staging: Staging) -> Manifest:
    """Pack what is not packed; again, where the disk does not give back what was staged."""
    for _ in range(_ROUNDS):
        _stage_all(task, staging)
        try:
            return assemble(Path(task.work.out), task.catalog, staging, task.options, task.plan, task.watch.say)
        except DamagedStaging:
            _forget_damaged(staging, range(len(task.catalog.rows)), task.watch, read_all=True)
    raise _forgetful_disk(task.work.out)


def _forgetful_disk(out: str | Path) -> StorageError:
    return StorageError(
        f"{out} does not give back what is written to it: staged videos were damaged {_ROUNDS} times in a row; look"
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
    for number in task.clear.keys() - before:
        staging.store(number, task.clear[number])
    jobs = [_job(task.catalog, number) for number in range(len(rows)) if number not in before | task.clear.keys()]
    if before:
        watch.say(f"going on: {len(before)} of {len(rows)} videos were done before")
    if (form := task.options.flow_form()) is not None and jobs:
        hour = {(task.options.size * 4 // 3, task.options.size): round(3600 * float(task.work.target.fps))}
        watch.say(
            f"an hour of video has {costs(form, hour, task.workers).removeprefix(f'flow={form.algorithm} of ')}, by {form.algorithm}"
        )
    watch.begin(len(rows), len(before | task.clear.keys()))
    try:
        if len(jobs) > _WORTH_SAMPLING:
            jobs = _tell_size(jobs, root, task.work, task.workers, watch)
        for staged in task.run(jobs, task.work, task.workers):
            watch.tick(staged.verdict)
    finally:
        watch.end()


def _tell_size(jobs: list[Job], root: Path, work: Work, workers: int, watch: Watch) -> list[Job]:
    """Do a few videos of different sizes first; say what the whole will take. Returns the other jobs."""
    bytes_of = {job.row: job.part.size or _size(root / job.source) for job in jobs}
    files = {(job.source, job.part.offset): bytes_of[job.row] for job in jobs}  # clips of one file share its bytes
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
        f"{len(jobs)} videos of {megabytes(sum(files.values()))}: about {megabytes(packed)} of shards"
        f" and {duration(each * len(rest) / workers)} on {workers} workers"
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
