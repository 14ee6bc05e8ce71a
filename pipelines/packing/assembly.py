"""Staged videos → shards, samples, verdicts, manifest. The same rows give the same bytes, whatever came before."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.checksums import crc_of
from pipelines.dataset.flow import FlowForm
from pipelines.dataset.manifest import Manifest, Samples, Shard, write_manifest
from pipelines.dataset.shards import FLOW, RGB, StoredSample, sample_key, sealed_sample, with_flow, write_shard
from pipelines.packing.duplicates import settle
from pipelines.packing.flow import flow_sides, opencv_version
from pipelines.packing.listing import Catalog, Row
from pipelines.packing.options import PackOptions
from pipelines.packing.staging import Staged, Staging
from pipelines.packing.verdict import Verdict
from vidssl.errors import DataError
from vidssl.files import remove_parts, written_aside

__all__ = ["assemble", "flow_facts", "write_verdicts"]

_ENOUGH_FOR_FOUR = 64
"""From this many samples on there are four shards at least, so that a few ranks can read side by side."""


def assemble(
    out: Path,
    catalog: Catalog,
    staging: Staging,
    options: PackOptions,
    source: Mapping[str, str],
    say: Callable[[str], None] = lambda sentence: None,
) -> Manifest:
    """Write everything a packed folder holds; the manifest comes last and makes it whole.

    Args:
        out: The folder.
        catalog: All rows; each is staged.
        staging: Verdicts and packed bytes.
        options: Reads codec, size, fps, gop, seed, shard_mb and what is said of flow and of duplicates.
        source: What the manifest says of the origin.
        say: Told of copies.

    Raises:
        DataError: not one video was packed, or a staged video is damaged.
        OSError: the disk is full.
    """
    remove_parts(out)
    staged = [staging.load(row) for row in range(len(catalog.rows))]
    catalog, staged = settle(catalog, staged, staging, options, say)
    _write_all_verdicts(out, catalog, staged)
    good = _good(out, staged)
    stored = good[np.random.default_rng(options.seed).permutation(len(good))]
    counts = _shard_counts([staged[row].bytes for row in stored], options.shard_mb * 1e6)
    samples = _columns(catalog, staged, stored, counts)
    form = options.flow_form()
    shards, first, checks = [], 0, np.zeros((2, len(stored)), np.uint32)
    for number, count in enumerate(counts):
        rows = stored[first : first + count]
        name = f"shard-{number:05d}.tar"
        size, digest = write_shard(
            out / name, _samples_of(rows, first, samples, catalog, staging, staged, form, checks)
        )
        shards.append(Shard(name, size, int(count), digest))
        first += count
    return write_manifest(
        Manifest(
            root=out,
            hash="",
            codec=options.codec,
            short_side=options.size,
            fps=None if options.fps == "source" else options.fps,
            gop=options.gop,
            classes=catalog.classes,
            splits=catalog.splits,
            shards=tuple(shards),
            samples=replace(samples, crc=checks[0], flow_crc=None if form is None else checks[1]),
            groups=int(samples.group.max()) + 1,
            rejected=len(staged) - len(good),
            source=dict(source) if form is None else {**source, "opencv": opencv_version()},
            flow=form,
        )
    )


def _write_all_verdicts(out: Path, catalog: Catalog, staged: Sequence[Staged]) -> None:
    left_out = [Verdict(one.path, "left out", one.reason) for one in catalog.left_out]
    write_verdicts(out / "verdicts.csv", [*(entry.verdict for entry in staged), *left_out])


def _good(out: Path, staged: Sequence[Staged]) -> NDArray[np.int64]:
    """Rows that go into the shards."""
    good = np.array([row for row, entry in enumerate(staged) if entry.bytes], np.int64)
    if not len(good):
        reason = staged[0].verdict.reason
        raise DataError(f"none of {len(staged)} videos could be packed ({reason}, …); see {out / 'verdicts.csv'}")
    return good


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write the verdict table: one row per video of the source in catalogue order, then those that were left out."""
    text = io.StringIO()
    table = csv.DictWriter(text, [column.name for column in fields(Verdict)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(verdict) for verdict in verdicts)
    with written_aside(path) as stream:
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _shard_counts(sizes: Sequence[int], target: float) -> NDArray[np.int64]:
    """Samples of each shard: as equal as can be."""
    shards = max(int(np.ceil(sum(sizes) / target)), 4 if len(sizes) >= _ENOUGH_FOR_FOUR else 1)
    shards = min(shards, len(sizes))
    return np.diff(np.arange(shards + 1) * len(sizes) // shards)


def _columns(
    catalog: Catalog, staged: Sequence[Staged], stored: NDArray[np.int64], counts: NDArray[np.int64]
) -> Samples:
    rows = [catalog.rows[row] for row in stored]
    label_of = {name: number for number, name in enumerate(catalog.classes)}
    group_of = {name: number for number, name in enumerate(sorted({row.group for row in rows}))}
    return Samples(
        shard=np.repeat(np.arange(len(counts)), counts).astype(np.int32),
        label=np.array([label_of.get(row.label or "", -1) for row in rows], np.int32),
        group=np.array([group_of[row.group] for row in rows], np.int32),
        split=np.array([catalog.splits.index(row.split) for row in rows], np.int8),
        frames=np.array([staged[row].frames for row in stored], np.int32),
        width=np.array([staged[row].width for row in stored], np.int16),
        height=np.array([staged[row].height for row in stored], np.int16),
        name=np.array([row.path for row in rows], np.str_),
    )


def _samples_of(
    rows: NDArray[np.int64],
    first: int,
    samples: Samples,
    catalog: Catalog,
    staging: Staging,
    staged: Sequence[Staged],
    form: FlowForm | None,
    checks: NDArray[np.uint32],
) -> Iterator[StoredSample]:
    """Samples of one shard; `first` is the instance of its first row. Fills in `checks`, the crc32s of each stream's table."""
    for instance, row in enumerate(rows.tolist(), start=first):
        mp4, flow = staging.videos(row, staged[row])
        idx = np.array([instance, samples.group[instance], samples.label[instance]], np.int64)
        about = _provenance(instance, staged[row], catalog.rows[row])
        sample = sealed_sample(instance, mp4, idx, about)
        checks[0, instance] = crc_of(sample.component(RGB.table))
        if form is not None:
            sample = with_flow(sample, flow, flow_facts(instance, form, staged[row]))
            checks[1, instance] = crc_of(sample.component(FLOW.table))
        yield sample


def flow_facts(instance: int, form: FlowForm, staged: Staged) -> bytes:
    """`KEY.flow.json`: what the flow of a sample is, for who reads the shards without us."""
    width, height = flow_sides(staged.width, staged.height, form.size)
    about = {"key": sample_key(instance), "frames": staged.frames, "width": width, "height": height}
    return json.dumps(about | {"sha256": staged.flow_sha256} | form.facts(), separators=(",", ":")).encode()


def _provenance(instance: int, staged: Staged, row: Row) -> bytes:
    origin, part = staged.verdict, row.part
    return json.dumps(
        {
            "key": sample_key(instance),
            "split": row.split,
            "frames": staged.frames,
            "fps": staged.fps,
            "width": staged.width,
            "height": staged.height,
            "rotation_applied": origin.rotation,
            "sha256": staged.sha256,
            "origin": {
                "path": origin.path,
                "codec": origin.codec,
                "width": origin.width,
                "height": origin.height,
                "fps": origin.fps,
                "frames": origin.frames,
                "seconds": origin.seconds,
            }
            | ({"start": part.start, "stop": part.stop} if part.is_range else {}),
            "notes": origin.reason,
        },
        separators=(",", ":"),
    ).encode()
