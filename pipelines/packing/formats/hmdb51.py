"""HMDB51 with its official split files, as the user has them."""

from __future__ import annotations

from pathlib import Path

from pipelines.packing.formats.official import from_lists, lines_of, splits_folder
from pipelines.packing.listing import Catalog, Format
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError

__all__ = ["HMDB51"]

_MARKS = {"0": "unused", "1": "train", "2": "test"}


def _read(root: Path, options: PackOptions) -> Catalog:
    """CLASS/name.avi with CLASS_test_splitN.txt: 1 train, 2 test, 0 "unused", as are videos in no list.

    Raises:
        DataError: the lists are not found, cannot be read or hold another mark.
    """
    end = f"_test_split{options.fold}.txt"
    folder = splits_folder(root, options, f"*{end}", ("testTrainMulti_7030_splits", "test_train_splits"))
    split_of: dict[str, str] = {}
    label_of: dict[str, str] = {}
    lists = sorted(folder.glob(f"*{end}"))
    for path in lists:
        label = path.name.removesuffix(end)
        for line in lines_of(path):
            name, mark = [*line.split(), "?"][:2]
            if mark not in _MARKS:
                raise DataError(f"{path}: '{line}' does not end with 0 (unused), 1 (train) or 2 (test)")
            # Names repeat over classes, so the class is part of the key.
            split_of[f"{label}/{name}"], label_of[f"{label}/{name}"] = _MARKS[mark], label
    return from_lists(root, folder, split_of, label_of, tuple(path.name.removesuffix(end) for path in lists))


HMDB51 = Format(_read, looks_for="CLASS/name.avi", has_split_files=True, has_folds=True)
