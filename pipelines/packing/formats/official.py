"""Official split files beside the videos: where they lie, and what they make of the files on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.packing.listing import Catalog, Row, files_below, is_sidecar
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError

__all__ = ["NoLists", "from_lists", "lines_of", "list_files", "splits_folder"]

_UCF_GROUP = re.compile(r"^v_(.+)_(g\d+)_c\d+$")
_HMDB_GROUP = re.compile(r"^(.+)_[hulf]_[cn]m_np\d_(?:fr|ba|le|ri)_(?:bad|med|goo)_\d+$")
"""Film, class, then what HMDB51 notes of a clip: visible body, camera, people, viewpoint, quality, number."""


class NoLists(DataError):
    """The official lists of a split are nowhere."""


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
        label = label_of.get(key, folder)
        rows.append(Row(path, label, split_of.get(key, "unused"), _group(parts[-1], label, path)))
    for key in sorted(split_of.keys() - found):
        path = key if "/" in key else f"{label_of[key]}/{key}"
        rows.append(Row(path, label_of[key], split_of[key], _group(key.split("/")[-1], label_of[key], path)))
    return Catalog(root, tuple(sorted(rows, key=lambda row: row.path)), classes, notes)


def _relative(folder: Path, root: Path) -> Path | None:
    """`folder` as seen from `root` when it lies below it."""
    inner, outer = folder.resolve(), root.resolve()
    return inner.relative_to(outer) if inner != outer and inner.is_relative_to(outer) else None


def _group(name: str, label: str | None, path: str) -> str:
    """What a video was cut from: UCF101's class and gNN; HMDB51's film, whatever class its clips are of."""
    if match := _UCF_GROUP.match(Path(name).stem):
        return "_".join(match.groups())
    match = _HMDB_GROUP.match(Path(name).stem)
    return match[1].removesuffix(f"_{label}") if match else path


def splits_folder(root: Path, options: PackOptions, pattern: str, usual: Sequence[str]) -> Path:
    """Where the official lists are: as told, or at the usual places in and beside the source.

    Raises:
        NoLists: they are not there.
    """
    for place in _places(root, options, usual):
        if any(place.glob(pattern)):
            return place
    where = options.splits or "the source or beside it"
    raise NoLists(f"no {pattern} in {where}; type splits=FOLDER with the official split files (fold={options.fold})")


def list_files(
    root: Path, options: PackOptions, pattern: re.Pattern[str], usual: Sequence[str], example: str
) -> dict[str, Path]:
    """The official lists by what the first group of `pattern` takes from their names, all from one folder.

    Args:
        root: The source.
        options: Reads `splits`: a folder, or one list.
        pattern: Matches whole file names.
        usual: Folders in and beside the source where the lists may lie.
        example: The name of a list, for people.

    Raises:
        DataError: there is none, or two lists are of one name.
    """
    if options.splits and Path(options.splits).is_file():
        match = pattern.fullmatch(Path(options.splits).name)
        return {match[1] if match else "all": Path(options.splits)}
    for place in _places(root, options, usual):
        found: dict[str, Path] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match is None or not path.is_file():
                continue
            if (before := found.setdefault(match[1], path)) != path:
                raise DataError(
                    f"{place} holds two lists of '{match[1]}', {before.name} and {path.name}; "
                    "type splits=FOLDER with the lists of one release"
                )
        if found:
            return found
    where = options.splits or "the source or beside it"
    raise DataError(f"no list like {example} in {where}; type splits=FOLDER with the official annotation files")


def _places(root: Path, options: PackOptions, usual: Sequence[str]) -> list[Path]:
    if options.splits:
        return [Path(options.splits)]
    return [root, *(base / name for base in (root, root.parent) for name in usual)]


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
