"""Official split files beside the videos: where they lie, and what they make of the files on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.packing.listing import Catalog, Row, files_below, is_sidecar
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError

__all__ = ["from_lists", "lines_of", "splits_folder"]

_UCF_GROUP = re.compile(r"^v_(.+)_(g\d+)_c\d+$")


def from_lists(
    root: Path, lists: Path, split_of: Mapping[str, str], label_of: Mapping[str, str], classes: tuple[str, ...]
) -> Catalog:
    """Files on disk with what the lists say of them, and listed files that are not there (their verdict says so)."""
    rows: list[Row] = []
    found: set[str] = set()
    below = f"{inside.as_posix()}/" if (inside := _relative(lists, root)) else ""
    paths, notes = files_below(root)
    for path in paths:
        if is_sidecar(path) or (below and path.startswith(below)):
            continue
        parts = path.split("/")
        key = next((key for key in ("/".join(parts[-2:]), parts[-1]) if key in split_of), "")
        found.add(key)
        folder = parts[-2] if len(parts) > 1 and parts[-2] in classes else None
        rows.append(Row(path, label_of.get(key, folder), split_of.get(key, "unused"), _ucf_group(parts[-1], path)))
    for key in sorted(split_of.keys() - found):
        path = key if "/" in key else f"{label_of[key]}/{key}"
        rows.append(Row(path, label_of[key], split_of[key], _ucf_group(key, path)))
    return Catalog(root, tuple(sorted(rows, key=lambda row: row.path)), classes, notes)


def _relative(folder: Path, root: Path) -> Path | None:
    """`folder` as seen from `root` when it lies below it."""
    inner, outer = folder.resolve(), root.resolve()
    return inner.relative_to(outer) if inner != outer and inner.is_relative_to(outer) else None


def _ucf_group(name: str, path: str) -> str:
    match = _UCF_GROUP.match(Path(name).stem)
    return "_".join(match.groups()) if match else path


def splits_folder(root: Path, options: PackOptions, pattern: str, usual: Sequence[str]) -> Path:
    """Where the official lists are: as told, or at the usual places in and beside the source."""
    if options.splits:
        places = [Path(options.splits)]
    else:
        places = [root, *(base / name for base in (root, root.parent) for name in usual)]
    for place in places:
        if any(place.glob(pattern)):
            return place
    where = options.splits or "the source or beside it"
    raise DataError(f"no {pattern} in {where}; type splits=FOLDER with the official split files (fold={options.fold})")


def lines_of(path: Path) -> list[str]:
    """Lines of a list that say something.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [
            line for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if line.strip()
        ]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it belongs to the official split files") from error
