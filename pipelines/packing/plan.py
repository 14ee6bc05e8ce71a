"""What is being packed, and does OUT hold just that? The plan of a pack, the lock, and refusals."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions
from pipelines.packing.staging import Staging
from vidssl.errors import DataError

__all__ = ["alone", "begin", "finished", "make_plan", "refuse_overlap"]

_PACK_VERSION = "1"


def make_plan(format: str, src: str | Path, catalog: Catalog, options: PackOptions) -> dict[str, str]:
    """What is packed, as the manifest and the journal keep it; `path` alone may change without making another pack."""
    digest = hashlib.sha256("\n".join(catalog.classes).encode("utf-8", "surrogateescape"))
    for row in catalog.rows:
        try:
            status = (catalog.root / row.path).stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(repr((row.path, row.label, row.split, row.group, *state)).encode())
    return {
        "version": _PACK_VERSION,
        "format": format,
        "path": str(src),
        "videos": str(len(catalog.rows)),
        "content": digest.hexdigest(),
        "options": options.identity(),
    }


def finished(out: Path, plan: Mapping[str, str], options: PackOptions) -> Manifest | None:
    """The manifest in `out` when this very pack is done.

    Raises:
        DataError: `out` holds another or a damaged pack, and `fresh` is off.
    """
    if not (out / "manifest.json").is_file():
        return None
    try:
        manifest = load_manifest(out)
        _refuse_other(out, manifest.source, plan)
    except DataError:
        if options.fresh:
            return None
        raise
    return manifest


def begin(staging: Staging, plan: Mapping[str, str], options: PackOptions) -> None:
    """Make the journal, or take up the one that is there.

    Raises:
        DataError: another pack was being written, and `fresh` is off.
    """
    out = staging.folder.parent
    if (out / "manifest.json").is_file():  # `finished` did not want it
        _remove_pack(out)
    before = staging.plan
    if before is not None:
        try:
            _refuse_other(out, before, plan)
            return
        except DataError:
            if not options.fresh:
                raise
            staging.remove()
    staging.begin(plan)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, however that ends.

    Raises:
        DataError: another process holds it.
        OSError: the folder cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another `vidssl pack` is writing to {out}; wait for it or give another OUT") from error
        yield
    finally:
        os.close(lock)


def _refuse_other(out: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    differs = [key for key in ("version", "format", "options", "content") if before.get(key) != now[key]]
    if not differs:
        return
    what = "the files of the source have changed since"
    if differs[0] == "options":
        old, new = json.loads(before["options"]), json.loads(now["options"])
        what = "; ".join(f"{key}={old.get(key)} then, {key}={new[key]} now" for key in new if old.get(key) != new[key])
    elif differs[0] != "content":
        what = f"{differs[0]} {before.get(differs[0])} then, {now[differs[0]]} now"
    raise DataError(f"{out} holds another pack ({what}); give another OUT, or type fresh=true to throw it away")


def _remove_pack(out: Path) -> None:
    """Remove what a pack wrote, and nothing else."""
    (out / "manifest.json").unlink(missing_ok=True)
    for pattern in ("shard-*.tar", "shard-*.idx", "samples.npz", "verdicts.csv"):
        for path in out.glob(pattern):
            path.unlink()
    Staging(out).remove()


def refuse_overlap(root: Path, out: Path, format: str) -> None:
    """Refuse to write where the videos are read from: the next run would take the shards for videos.

    Raises:
        DataError: `out` is the source, or lies inside of it.
    """
    inner, outer = out.resolve(), root.resolve()
    if inner == outer or (format != "csv" and inner.is_relative_to(outer)):
        raise DataError(f"OUT {out} lies in the source {root}; give a folder outside of it")
