"""UCF101 with its official split files, as the user has them."""

from __future__ import annotations

from pathlib import Path

from pipelines.packing.formats.official import from_lists, lines_of, splits_folder
from pipelines.packing.listing import Catalog, Format
from pipelines.packing.options import PackOptions

__all__ = ["UCF101"]


def _read(root: Path, options: PackOptions) -> Catalog:
    """CLASS/v_CLASS_gNN_cNN.avi with trainlistNN.txt, testlistNN.txt, classInd.txt; group = class and gNN.

    Videos in neither list get the split "unused".

    Raises:
        DataError: the lists are not found or cannot be read.
    """
    folder = splits_folder(root, options, f"trainlist0{options.fold}.txt", ("ucfTrainTestlist",))
    classes = tuple(line.split()[-1] for line in lines_of(folder / "classInd.txt"))
    split_of: dict[str, str] = {}
    label_of: dict[str, str] = {}
    for split in ("train", "test"):
        for line in lines_of(folder / f"{split}list0{options.fold}.txt"):
            label, _, name = line.split()[0].rpartition("/")
            split_of[name], label_of[name] = split, label
    return from_lists(root, folder, split_of, label_of, classes)


UCF101 = Format(_read, looks_for="CLASS/v_CLASS_gNN_cNN.avi", has_split_files=True, has_folds=True)
