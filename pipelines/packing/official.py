"""UCF101 and HMDB51 with their official split files, as the user has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.packing.listing import Catalog, Row, files_below, is_sidecar
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError

__all__ = ["read_hmdb51", "read_ucf101"]

_UCF_GROUP = re.compile(r"^v_(.+)_(g\d+)_c\d+$")
_HMDB_MARKS = {"0": "unused", "1": "train", "2": "test"}


def read_ucf101(root: Path, options: PackOptions) -> Catalog:
    """CLASS/v_CLASS_gNN_cNN.avi with trainlistNN.txt, testlistNN.txt, classInd.txt; group = class and gNN.

    Videos in neither list get the split "unused".

    Raises:
        DataError: the lists are not found or cannot be read.
    """
    folder = _splits_folder(root, options, f"trainlist0{options.fold}.txt", ("ucfTrainTestlist",))
    classes = tuple(line.split()[-1] for line in _lines(folder / "classInd.txt"))
    split_of: dict[str, str] = {}
    label_of: dict[str, str] = {}
    for split in ("train", "test"):
        for line in _lines(folder / f"{split}list0{options.fold}.txt"):
            label, _, name = line.split()[0].rpartition("/")
            split_of[name], label_of[name] = split, label
    return _from_lists(root, folder, split_of, label_of, classes)


def read_hmdb51(root: Path, options: PackOptions) -> Catalog:
    """CLASS/name.avi with CLASS_test_splitN.txt: 1 train, 2 test, 0 "unused", as are videos in no list.

    Raises:
        DataError: the lists are not found, cannot be read or hold another mark.
    """
    end = f"_test_split{options.fold}.txt"
    folder = _splits_folder(root, options, f"*{end}", ("testTrainMulti_7030_splits", "test_train_splits"))
    split_of: dict[str, str] = {}
    label_of: dict[str, str] = {}
    lists = sorted(folder.glob(f"*{end}"))
    for path in lists:
        label = path.name.removesuffix(end)
        for line in _lines(path):
            name, mark = [*line.split(), "?"][:2]
            if mark not in _HMDB_MARKS:
                raise DataError(f"{path}: '{line}' does not end with 0 (unused), 1 (train) or 2 (test)")
            # Names repeat over classes, so the class is part of the key.
            split_of[f"{label}/{name}"], label_of[f"{label}/{name}"] = _HMDB_MARKS[mark], label
    return _from_lists(root, folder, split_of, label_of, tuple(path.name.removesuffix(end) for path in lists))


def _from_lists(
    root: Path, lists: Path, split_of: Mapping[str, str], label_of: Mapping[str, str], classes: tuple[str, ...]
) -> Catalog:
    """Files on disk with what the lists say of them, and listed files that are not there (their verdict says so)."""
    rows: list[Row] = []
    found: set[str] = set()
    below = f"{inside.as_posix()}/" if (inside := _relative(lists, root)) else ""
    for path in files_below(root):
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
    return Catalog(root, tuple(sorted(rows, key=lambda row: row.path)), classes)


def _relative(folder: Path, root: Path) -> Path | None:
    """`folder` as seen from `root` when it lies below it."""
    inner, outer = folder.resolve(), root.resolve()
    return inner.relative_to(outer) if inner != outer and inner.is_relative_to(outer) else None


def _ucf_group(name: str, path: str) -> str:
    match = _UCF_GROUP.match(Path(name).stem)
    return "_".join(match.groups()) if match else path


def _splits_folder(root: Path, options: PackOptions, pattern: str, usual: Sequence[str]) -> Path:
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


def _lines(path: Path) -> list[str]:
    try:
        return [
            line for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if line.strip()
        ]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it belongs to the official split files") from error
