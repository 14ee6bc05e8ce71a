"""Optical flow for a pack that was made without: new shards aside, then in the place of the old ones, the manifest last.

The flow is made of the packed frames, so the originals are not needed, and every member that a sample had stays as it was,
byte for byte. What comes out is the very pack that `flow=…` would have made from the start: same shards, same hash.

`OUT/.staging-flow/` holds a file per finished video, as any pack does, then the new shards in `whole/`. They are in place of
the old ones when `whole/manifest.json` has been written: from then on nothing but renames is left, which whoever comes next
finishes. So a kill at any moment leaves the old pack, or one that the same command makes whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.dataset.checksums import crc_of
from pipelines.dataset.flow import FlowForm
from pipelines.dataset.manifest import MANIFEST, Manifest, load_manifest, write_manifest
from pipelines.dataset.reader import check_sample
from pipelines.dataset.shards import COMPONENTS, FLOW, ShardIndex, StoredSample, read_index, with_flow, write_shard
from pipelines.packing.assembly import flow_facts
from pipelines.packing.flow import costs, opencv_version, require_opencv
from pipelines.packing.options import PackOptions
from pipelines.packing.plan import KIND
from pipelines.packing.staging import ADDITION, Staged, Staging
from pipelines.packing.work import Job, Mapper, Watch, Work
from vidssl.errors import DataError, RecipeError
from vidssl.files import remove_parts, sync_folder
from vidssl.marks import mark_of

__all__ = ["Addition", "addition_to", "finish_switch", "put_flow_in"]

WHOLE = "whole"
_SPEED = ("flow", "flow_size", "flow_encoding", "flow_crf", "add", "fresh", "timeout", "max_seconds", "memory_mb")
"""What may be said of an addition; anything else is what the pack was made with."""


@dataclass(frozen=True)
class Addition:
    """What is added to what.

    Attributes:
        manifest: The pack as it is.
        options: Those it was made with, and those of the flow.
        form: What the flow will be.
    """

    manifest: Manifest
    options: PackOptions
    form: FlowForm


def addition_to(out: Path, typed: PackOptions) -> Addition | Manifest:
    """What has to be done; the manifest itself where the flow is there already.

    Raises:
        DataError: no pack of ours, one without checksums, or one that holds another flow.
        RecipeError: options that the pack was not made with, or that do not go with it.
    """
    manifest = load_manifest(out)
    if mark_of(out) is None or not manifest.checked:
        why = "was not made by this version's `vidssl pack`" if manifest.checked else "has no checksums"
        raise DataError(
            f"{out} {why}, and flow is added only to what can be held against them; pack again with flow=dis"
        )
    options = _with_flow(out, manifest, typed)
    form = options.flow_form()
    assert form is not None  # `add=flow` without flow= means dis
    if manifest.flow == form:
        return manifest
    if manifest.flow is not None:
        raise DataError(
            f"{out} holds flow already ({_differs(manifest.flow, form)}); give another OUT, or type fresh=true without "
            "add=flow to pack again"
        )
    return Addition(manifest, options, form)


def put_flow_in(addition: Addition, work: Work, workers: int, run: Mapper, watch: Watch) -> Manifest:
    """Make the flow of every packed video and the shards that hold both; hold the lock of the pack.

    Raises:
        DataError: a packed video is damaged.
        DamagedStaging: the disk does not give back what was staged; beginning again packs that anew.
        VidsslError, OSError: as `run`.
    """
    require_opencv(addition.form)
    staging, before = work.staging, addition.manifest
    plan = {"data": before.hash, "options": addition.options.identity()}
    if staging.plan != plan:
        staging.remove()
        staging.begin(plan)
    watch.say(_costs(addition, workers))
    _stage(addition, staging, work, workers, run, watch)
    whole = staging.folder / WHOLE
    whole.mkdir(exist_ok=True)
    remove_parts(whole)
    manifest = _assemble(addition, staging, whole)
    finish_switch(before.folder)
    watch.say(
        f"the data was {before.hash} and is {manifest.hash} with flow: what was trained before names the former; its checkpoints "
        f"are evaluated with data={before.root}, and trainings begin anew"
    )
    return replace(manifest, root=before.root)


def finish_switch(out: Path) -> bool:
    """Put new shards that are whole in the place of the old ones, where a run was killed before it had; hold the lock.

    Returns:
        Whether there were any.

    Raises:
        OSError: they cannot be renamed.
    """
    folder = Staging(out, ADDITION).folder
    whole = folder / WHOLE
    mark = mark_of(out)
    if mark is None or mark.kind != KIND or not (whole / MANIFEST).is_file():
        return False
    for name in sorted(os.listdir(whole), key=lambda name: name == MANIFEST):  # the manifest comes last
        (whole / name).replace(out / name)
        if name != MANIFEST:
            sync_folder(out)
    sync_folder(out)
    Staging(out, ADDITION).remove()
    return True


def _with_flow(out: Path, manifest: Manifest, typed: PackOptions) -> PackOptions:
    """The options of the pack, and the typed ones of the flow."""
    try:
        made: dict[str, Any] = json.loads(manifest.source["options"])
        kept = {key: value for key, value in made.items() if not key.startswith("flow")}
        new = {key: getattr(typed, key) for key in _SPEED}
        options = PackOptions.model_validate(kept | new)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ValidationError):
            raise RecipeError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
        raise DataError(f"{out} does not say how it was packed; pack again with flow={typed.flow}") from error
    for key in sorted(typed.model_fields_set - set(_SPEED)):
        if getattr(typed, key) != getattr(options, key):
            raise RecipeError(
                f"{key}={getattr(typed, key)}: {out} was packed with {key}={getattr(options, key)}, and add=flow changes no frame "
                f"of it; leave {key} out, or pack into another OUT"
            )
    return options


def _differs(there: FlowForm, wanted: FlowForm) -> str:
    pairs = [(name, value, getattr(wanted, name)) for name, value in vars(there).items()]
    return "; ".join(f"its {name} is {then}, {now} was asked for" for name, then, now in pairs if then != now)


def _costs(addition: Addition, workers: int) -> str:
    manifest = addition.manifest
    samples = manifest.samples
    shapes, count = np.unique(np.stack([samples.width, samples.height]), axis=1, return_inverse=True)
    frames = np.bincount(count.reshape(-1), weights=samples.frames)
    made = {(int(width), int(height)): int(n) for (width, height), n in zip(shapes.T, frames, strict=True)}
    stored = sum(shard.bytes for shard in manifest.shards)
    return costs(addition.form, made, workers, stored)


def _stage(addition: Addition, staging: Staging, work: Work, workers: int, run: Mapper, watch: Watch) -> None:
    names = addition.manifest.samples.name
    before = staging.finished()
    damaged = staging.damaged(before, read_all=True)
    staging.forget(damaged)
    before -= damaged
    jobs = [Job(row, str(name)) for row, name in enumerate(names) if row not in before]
    if before:
        watch.say(f"going on: the flow of {len(before)} of {len(names)} videos was made before")
    watch.begin(len(names), len(before))
    bad: list[Staged] = []
    try:
        for staged in run(jobs, work, workers):
            watch.tick(staged.verdict)
            bad += [staged] if staged.verdict.verdict == "rejected" else []
    finally:
        watch.end()
    _refuse_damage(addition.manifest, staging, bad)


def _refuse_damage(manifest: Manifest, staging: Staging, bad: Sequence[Staged]) -> None:
    """A damaged pack is mended first; its damaged videos count as not done."""
    if not bad:
        return
    rows = {str(name): row for row, name in enumerate(manifest.samples.name)}
    staging.forget([rows[one.verdict.path] for one in bad])
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise DataError(
        f"{bad[0].verdict.path}{more} in {manifest.root} cannot be used: {bad[0].verdict.reason}; see all with `vidssl verify "
        f"{manifest.root}`, copy it again or pack again with fresh=true, then type the same command again"
    )


def _assemble(addition: Addition, staging: Staging, whole: Path) -> Manifest:
    """New shards, samples and manifest, aside."""
    before = addition.manifest
    shards, checks = [], np.zeros(len(before), np.uint32)
    for number, shard in enumerate(before.shards):
        samples = _samples_of(addition, number, staging, checks)
        size, digest = write_shard(whole / shard.name, samples)
        shards.append(replace(shard, bytes=size, sha256=digest))
    return write_manifest(
        replace(
            before,
            root=whole,
            hash="",
            shards=tuple(shards),
            samples=replace(before.samples, flow_crc=checks),
            source=_source(before.source, addition.options),
            flow=addition.form,
        )
    )


def _source(before: Mapping[str, str], options: PackOptions) -> dict[str, str]:
    return {**before, "options": options.identity(), "opencv": opencv_version()}


def _samples_of(addition: Addition, shard: int, staging: Staging, checks: NDArray[np.uint32]) -> Iterator[StoredSample]:
    """Samples of a shard with their flow; fills in `checks`, the crc32 of each flow's table."""
    manifest = addition.manifest
    index = read_index(manifest.shard_path(shard))
    with manifest.shard_path(shard).open("rb") as stream:
        for row in range(len(index)):
            instance = manifest.first_of(shard) + row
            begin, stop = index.span(row)
            stream.seek(begin)
            sample = _as_it_was(manifest, index, instance, row, stream.read(stop - begin))
            staged = staging.load(instance)
            _, flow = staging.videos(instance, staged)
            sample = with_flow(sample, flow, flow_facts(instance, addition.form, staged))
            checks[instance] = crc_of(sample.component(FLOW.table))
            yield sample


def _as_it_was(manifest: Manifest, index: ShardIndex, instance: int, row: int, span: bytes) -> StoredSample:
    """A sample of the old shard, held against its checksums."""
    check_sample(manifest, index, instance, span)
    begin, _ = index.span(row)
    part = {name: span[int(index.offset[name][row]) - begin :][: int(index.size[name][row])] for name in COMPONENTS}
    gop, idx = np.frombuffer(part["gop"], "<i4"), np.frombuffer(part["idx"], "<i8")
    return StoredSample(instance, part["mp4"], gop.astype(np.int32), idx.astype(np.int64), part["json"])
