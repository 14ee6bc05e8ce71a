"""What a source is, as a list: rows of videos, and the files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidssl.errors import DataError

__all__ = ["Catalog", "Row", "files_below", "is_sidecar"]

_SIDECARS = {".csv", ".tsv", ".txt", ".json", ".yaml", ".yml", ".md", ".html", ".pdf", ".xml"}
_SPLIT_ORDER = ("all", "train", "val", "test", "unused")


@dataclass(frozen=True)
class Row:
    """One video of the source.

    Attributes:
        path: Relative to the catalogue's root, with `/`.
        label: Class name; None unknown.
        split: "all", or what the source says.
        group: Name of what it was cut from; rows of one group are never each other's positive.
    """

    path: str
    label: str | None
    split: str
    group: str


@dataclass(frozen=True)
class Catalog:
    """The source as a list.

    Attributes:
        root: Folder the paths are relative to.
        rows: Sorted by path (CSV: as written).
        classes: Class names; labels index them.
    """

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names: train, val, test, unused, then others by name."""
        present = {row.split for row in self.rows}
        known = [name for name in _SPLIT_ORDER if name in present]
        return (*known, *sorted(present.difference(known)))


def is_sidecar(path: str) -> bool:
    """Whether a relative path is a text file beside the class folders (a list, a readme), not a video."""
    return "/" not in path and Path(path).suffix.lower() in _SIDECARS


def files_below(root: Path) -> list[str]:
    """Relative paths of all files below `root`, sorted; hidden files and folders are passed over.

    Raises:
        DataError: a folder cannot be listed.
    """
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()
