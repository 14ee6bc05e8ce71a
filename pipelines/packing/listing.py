"""What a source is, as a list: rows of videos, and the files below a folder, each once however links lead to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.packing.options import PackOptions
from pipelines.packing.part import WHOLE, Part
from vidssl.errors import DataError

__all__ = [
    "SIDECARS",
    "Catalog",
    "Format",
    "LeftOut",
    "Row",
    "classes_of",
    "files_below",
    "identities",
    "is_sidecar",
    "is_video_name",
    "without_copies",
]

SIDECARS = {".csv", ".tsv", ".txt", ".json", ".yaml", ".yml", ".md", ".html", ".pdf", ".xml"}
"""Endings of texts that may lie beside videos: lists, annotations, licences."""
_VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".flv", ".3gp", ".ogv", ".mpg", ".mpeg", ".wmv"}
_SPLIT_ORDER = ("all", "train", "val", "test", "unused")


@dataclass(frozen=True)
class Row:
    """One video of the source.

    Attributes:
        path: Its name: where it lies relative to the catalogue's root, with `/`.
        label: Class name; None unknown.
        split: "all", or what the source says.
        group: Name of what it was cut from; rows of one group are never each other's positive.
        file: The file that holds it, where `path` names a part of one; None: `path` is the file.
        part: What of the file it is.
    """

    path: str
    label: str | None
    split: str
    group: str
    file: str | None = None
    part: Part = WHOLE

    @property
    def source(self) -> str:
        """The file to read, relative to the catalogue's root."""
        return self.path if self.file is None else self.file


@dataclass(frozen=True)
class LeftOut:
    """A video that the source lists and that is not packed: what it is called, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Catalog:
    """The source as a list.

    Attributes:
        root: Folder the paths are relative to.
        rows: Sorted by path (CSV: as written).
        classes: Class names; labels index them.
        notes: Sentences on what was passed over.
        left_out: Videos that are listed and not there, or contradicted; `verdicts.csv` names them.
    """

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names: train, val, test, unused, then others by name."""
        present = {row.split for row in self.rows}
        known = [name for name in _SPLIT_ORDER if name in present]
        return (*known, *sorted(present.difference(known)))


@dataclass(frozen=True)
class Format:
    """One kind of source.

    Attributes:
        read: (source, options) → its catalogue; raises DataError for what is missing or damaged.
        looks_for: What an empty source lacks, for people.
        is_file: The source is a file, not a folder.
        has_split_files: The option `splits` means something.
        has_folds: The option `fold` means something.
        has_keys: The options `label_key` and `group_key` mean something.
    """

    read: Callable[[Path, PackOptions], Catalog]
    looks_for: str
    is_file: bool = False
    has_split_files: bool = False
    has_folds: bool = False
    has_keys: bool = False


def is_sidecar(path: str) -> bool:
    """Whether a relative path is a text file beside the class folders (a list, a readme), not a video."""
    return "/" not in path and Path(path).suffix.lower() in SIDECARS


def is_video_name(path: str) -> bool:
    """Whether a file is called like a video."""
    return Path(path).suffix.lower() in _VIDEOS


def identities(root: Path, paths: Iterable[str]) -> Iterator[Hashable]:
    """One value per path, equal where two lead to one file, whatever links and spellings; a missing file is its spelling."""
    real: dict[str, str] = {}  # folder → where it really is; asking once per folder saves most of the time
    for path in paths:
        whole = os.path.join(root, path)
        folder, name = os.path.split(whole)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        try:
            status = os.stat(whole)
            place = os.path.realpath(whole) if os.path.islink(whole) else os.path.join(real[folder], name)
        except OSError:
            yield os.path.abspath(whole)
            continue
        # Some network file systems number every file 0: only a file with several names is known by its number.
        yield (status.st_dev, status.st_ino) if status.st_nlink > 1 else place


def without_copies(catalog: Catalog) -> Catalog:
    """Drop rows that are a file (or a part of one) which is listed already (through a link), and note it.

    Raises:
        DataError: one file with two labels or two splits.
    """
    first: dict[Hashable, Row] = {}
    dropped: list[tuple[Row, Row]] = []
    for row, file in zip(catalog.rows, identities(catalog.root, (row.source for row in catalog.rows)), strict=True):
        before = first.setdefault((file, row.part), row)
        if before is row:
            continue
        if (before.label, before.split) != (row.label, row.split):
            raise DataError(
                f"'{before.path}' and '{row.path}' in {catalog.root} are one file,"
                f" once as {_place(before)} and once as {_place(row)}; remove one of the two"
            )
        dropped.append((before, row))
    if not dropped:
        return catalog
    gone = {row.path for _, row in dropped}
    before, row = dropped[0]
    more = f" (and {len(dropped) - 1} more like it)" if len(dropped) > 1 else ""
    note = f"passed over '{row.path}', which is the same file as '{before.path}'{more}"
    rows = tuple(row for row in catalog.rows if row.path not in gone)
    return replace(catalog, rows=rows, notes=(*catalog.notes, note))


def files_below(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Relative paths of all files below `root`, sorted; hidden files and folders are passed over.

    Links to folders are followed, each folder once: by its own name where it has one below `root`.

    Returns:
        The paths, and sentences on folders that were passed over because a link leads to them again.

    Raises:
        DataError: a folder cannot be listed, or a link shows a whole class folder under a second class.
    """
    listed: dict[str, str] = {}  # real folder → the relative path it was listed by
    files: list[str] = []
    again: list[str] = []
    links = [""]
    while links:
        files.extend(_walk(root, links.pop(0), listed, links, again))
    notes = (f"passed over {', '.join(again[:3])}{' …' if len(again) > 3 else ''}",) if again else ()
    return sorted(files), notes


def _walk(root: Path, start: str, listed: dict[str, str], links: list[str], again: list[str]) -> Iterator[str]:
    """Files below one folder; links to folders are put off, so that real folders come first."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, inner, names in os.walk(root / start, onerror=refuse):
        here = Path(folder).relative_to(root).as_posix()
        if (before := listed.setdefault(os.path.realpath(folder), here)) != here:
            again.append(_said_again(root, here, before))
            inner[:] = []
            continue
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        links.extend(_below(here, name) for name in inner if os.path.islink(os.path.join(folder, name)))
        yield from (_below(here, name) for name in names if not name.startswith("."))


def _said_again(root: Path, here: str, before: str) -> str:
    inside = os.path.realpath((root / here).parent)
    loop = inside == (real := os.path.realpath(root / here)) or inside.startswith(real.rstrip("/") + "/")
    if not loop and here.split("/")[0] != before.split("/")[0]:
        raise DataError(
            f"'{here}' in {root} leads to the folder that is listed as '{before}' already, so its videos would have two"
            f" classes; remove one of the two"
        )
    return f"'{here}', which leads back to '{before}'"


def _below(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _place(row: Row) -> str:
    return f"label {row.label or '(none)'} in split {row.split}"


def classes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Class names of rows, sorted."""
    return tuple(sorted({row.label for row in rows if row.label is not None}))
