"""What is being packed, and does OUT hold just that? The plan of a pack, and everything that is refused before it begins."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.place import Address
from pipelines.packing.catalog import FORMATS
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions
from pipelines.packing.staging import ADDITION, Staging
from pipelines.packing.verdict import Limits
from vidssl.errors import DataError
from vidssl.files import remove_parts
from vidssl.marks import mark, mark_of, refuse_foreign

__all__ = [
    "KIND",
    "OURS",
    "begin",
    "finished",
    "make_plan",
    "refuse_other",
    "refuse_overlap",
    "refuse_strangers",
]

KIND = "pack"
"""What a packed folder is marked as (`vidssl.marks`)."""

_PACK_VERSION = "1"
_INSTEAD = "give another OUT"
OURS = re.compile(r"manifest\.json|samples\.npz|verdicts\.csv|shard-\d{5}\.(tar|idx)")
"""Names that a pack gives to its files."""


def make_plan(format: str, src: str | Path, catalog: Catalog, options: PackOptions) -> dict[str, str]:
    """What is packed, as the manifest and the journal keep it; `path` alone may change without making another pack."""
    digest = hashlib.sha256("\n".join(catalog.classes).encode("utf-8", "surrogateescape"))
    for row in catalog.rows:
        try:
            status = (catalog.root / row.source).stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        part = () if row.file is None else (row.file, row.part)
        digest.update(repr((row.path, row.label, row.split, row.group, *state, *part)).encode())
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
        DataError: `out` holds another or a damaged pack and `fresh` is off, or something that is no pack of ours.
    """
    if not os.path.isfile(out / "manifest.json"):
        return None
    try:
        manifest = load_manifest(out)
        refuse_other(out, manifest.source, plan)
    except DataError:
        refuse_foreign(out, KIND, _INSTEAD)
        if options.fresh:
            return None
        raise
    return manifest


def refuse_strangers(out: Path) -> None:
    """Refuse to write over what this pack did not make.

    Raises:
        DataError: `out` is a file, or holds files without our mark, or beside our own such as we would write over.
    """
    refuse_foreign(out, KIND, _INSTEAD)
    if strange := sorted(_named_like_ours(out) - _made(out)):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise DataError(
            f"{out} holds {strange[0]}{more}, which is not of the pack in it and is left alone; move it away, or {_INSTEAD}"
        )


def begin(out: Path, plan: Mapping[str, str], options: PackOptions) -> Staging:
    """Make the journal, or take up the one that is there; remove what an earlier pack of ours wrote. Hold the lock.

    Raises:
        DataError: another pack was being written, and `fresh` is off.
        OSError: the folder cannot be written.
    """
    staging = Staging(out)
    before = staging.plan
    same = before is not None and not _differs(before, plan)
    if before is not None and not same and not options.fresh:
        refuse_other(out, before, plan)
    Staging(out, ADDITION).remove()  # flow for a pack that is thrown away now
    made = _made(out)  # of a pack that is thrown away, or of an assembly that was killed: it is written again
    if mark_of(out) is None:
        mark(out, KIND)
    remove_parts(out)
    # A kill at any moment must leave a plan for as long as there are files that only a plan declares ours.
    if before is None:
        staging.remove()
        staging.begin(plan)
    for name in sorted(made):  # the manifest goes first
        (out / name).unlink(missing_ok=True)
    if before is not None and not same:
        staging.remove()
        staging.begin(plan)
    return staging


def refuse_overlap(root: Path, out: Path, format: str) -> None:
    """Refuse to write where the videos are read from: the next run would take the shards for videos.

    Raises:
        DataError: `out` is the source, or lies inside of it.
    """
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(root))
    if inner == outer or (not FORMATS[format].is_file and inner.is_relative_to(outer)):
        raise DataError(f"OUT {out} lies in the source {root}; give a folder outside of it")


def _named_like_ours(out: Path) -> set[str]:
    return {name for name in os.listdir(out) if OURS.fullmatch(name)} if os.path.isdir(out) else set()


def _made(out: Path) -> set[str]:
    """Names in `out` that a pack of ours wrote: what the manifest says, or whatever is there while a pack is under way."""
    there = _named_like_ours(out)
    if mark_of(out) is None:
        return set()
    if "manifest.json" not in there:
        # A verdict table alone is what a pack without one good video leaves.
        return there if Staging(out).plan is not None else there & {"verdicts.csv"}
    try:
        tree = json.loads((out / "manifest.json").read_bytes())
        shards = [str(shard["name"]) for shard in tree["shards"]]
    except (OSError, ValueError, TypeError, LookupError):
        return there
    indexes = [str(Path(name).with_suffix(".idx")) for name in shards]
    return there & {"manifest.json", "samples.npz", "verdicts.csv", *shards, *indexes}


def refuse_other(out: Path | Address, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with another pack than the one that is there.

    Args:
        out: Where it is.
        before: Its plan.
        now: The plan of this one.

    Raises:
        DataError: they differ; names the first difference.
    """
    if what := _differs(before, now):
        raise DataError(f"{out} holds another pack ({what}); {_INSTEAD}, or type fresh=true to throw it away")


def _differs(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What makes two packs two, in words; empty when they are one."""
    old = {**before, "options": _options(before.get("options", ""))}
    new = {**now, "options": _options(now["options"])}
    differs = [key for key in ("version", "format", "options", "content") if old.get(key) != new[key]]
    if not differs:
        return ""
    if differs[0] == "options":
        pairs = [(key, old["options"].get(key), value) for key, value in new["options"].items()]
        return "; ".join(f"{key}={then} then, {key}={value} now" for key, then, value in pairs if then != value)
    if differs[0] != "content":
        return f"{differs[0]} {before.get(differs[0])} then, {now[differs[0]]} now"
    return "the files of the source have changed since"


def _options(text: str) -> dict[str, object]:
    """Options of a plan; one that did not exist when it was written has its default."""
    try:
        given = json.loads(text)
    except ValueError:
        given = {}
    usual = json.loads(PackOptions().model_dump_json(exclude={"fresh", "add", *vars(Limits())}))
    return {**usual, **(given if isinstance(given, dict) else {})}
