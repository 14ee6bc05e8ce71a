"""Which videos are there? A source of any format → rows of (path, label, split, group)."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.packing.formats.folder import FOLDER
from pipelines.packing.formats.hmdb51 import HMDB51
from pipelines.packing.formats.kinetics import KINETICS
from pipelines.packing.formats.ssv2 import SSV2
from pipelines.packing.formats.table import CSV
from pipelines.packing.formats.ucf101 import UCF101
from pipelines.packing.formats.webdataset import WEBDATASET
from pipelines.packing.listing import Catalog, Format, Row, without_copies
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError, RecipeError

__all__ = ["FORMATS", "Catalog", "Format", "Row", "format_for", "read_catalog"]

FORMATS: dict[str, Format] = {
    "folder": FOLDER,
    "csv": CSV,
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "kinetics": KINETICS,
    "ssv2": SSV2,
    "webdataset": WEBDATASET,
}
"""Name → format. A new one is its file in `pipelines/packing/formats`, its line here, its test."""


def read_catalog(format: str, src: str | Path, options: PackOptions | None = None) -> Catalog:
    """List a source.

    Args:
        format: A name in `FORMATS`.
        src: Folder of the videos, or the file that lists them.
        options: Reads `splits`, `fold`, `group`, `label_key`, `group_key`, `test_share`, `seed`.

    Raises:
        RecipeError: an unknown format, or an option that the format does not have.
        DataError: a source, column or split file that is missing or damaged, or no videos at all.
    """
    options, place = options or PackOptions(), Path(src)
    kind = format_for(format, options)
    if not (os.path.isfile if kind.is_file else os.path.isdir)(place):
        raise DataError(f"{place} is no {'file' if kind.is_file else 'folder'}; type: vidssl pack {format} SRC OUT")
    if options.fold == "all":
        raise RecipeError("fold=all is a whole pack and one list is read at a time; type fold=1, 2 or 3")
    catalog = kind.read(place, options)
    if not catalog.rows and catalog.left_out:
        some, number = catalog.left_out[0], len(catalog.left_out)
        raise DataError(
            f"nothing in {place} can be packed: '{some.path}' is left out ({some.reason})"
            f"{f', and so are {number - 1} more' if number > 1 else ''}; format {format} looks for {kind.looks_for}"
        )
    if not catalog.rows:
        raise DataError(f"{place} holds no videos; format {format} looks for {kind.looks_for}")
    catalog = without_copies(catalog)
    return _with_test_share(_with_groups(catalog, options), options)


def format_for(name: str, options: PackOptions) -> Format:
    """The format of that name.

    Raises:
        RecipeError: an unknown format, or an option that the format does not have.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(f"unknown format '{name}'; there are {', '.join(FORMATS)}{hint}")
    _refuse_what_means_nothing(FORMATS[name], options)
    return FORMATS[name]


def _refuse_what_means_nothing(kind: Format, options: PackOptions) -> None:
    def having(trait: str) -> str:
        return " and ".join(name for name, other in FORMATS.items() if getattr(other, trait))

    if options.splits and not kind.has_split_files:
        have = having("has_split_files")
        raise RecipeError(f"splits={options.splits}: only {have} have split files; use csv with a column 'split'")
    if options.fold != 1 and not kind.has_folds:
        raise RecipeError(f"fold={options.fold}: only {having('has_folds')} have several official splits; leave it out")
    for name, value in (("label_key", options.label_key), ("group_key", options.group_key)):
        if value and not kind.has_keys:
            raise RecipeError(f"{name}={value}: only {having('has_keys')} has such keys; leave it out")


def _with_groups(catalog: Catalog, options: PackOptions) -> Catalog:
    if not options.group:
        return catalog
    pattern = re.compile(options.group)
    matches = [pattern.search(row.path) for row in catalog.rows]
    if not any(matches):
        raise RecipeError(f"group={options.group} fits no path, e.g. not '{catalog.rows[0].path}'")
    rows = [
        replace(row, group=match.group(1) or row.path) if match else replace(row, group=row.path)
        for row, match in zip(catalog.rows, matches, strict=True)
    ]
    return replace(catalog, rows=tuple(rows))


def _with_test_share(catalog: Catalog, options: PackOptions) -> Catalog:
    """Give whole groups of each class to test, in seeded order, until their share is reached."""
    if not options.test_share:
        return catalog
    if catalog.splits != ("all",):
        raise RecipeError(f"the source has splits already ({', '.join(catalog.splits)}); leave test_share out")
    sizes: dict[str, dict[str, int]] = {}
    home = {row.group: row.label or "" for row in reversed(catalog.rows)}  # a group over classes counts in its first
    for row in catalog.rows:
        of_class = sizes.setdefault(home[row.group], {})
        of_class[row.group] = of_class.get(row.group, 0) + 1
    test: set[str] = set()
    rng = np.random.default_rng(options.seed)
    for label in sorted(sizes):
        test.update(_share_of(sizes[label], options.test_share, rng))
    rows = [replace(row, split="test" if row.group in test else "train") for row in catalog.rows]
    return replace(catalog, rows=tuple(rows))


def _share_of(sizes: Mapping[str, int], share: float, rng: np.random.Generator) -> list[str]:
    names = sorted(sizes)
    wanted, taken = share * sum(sizes.values()), []
    for index in rng.permutation(len(names))[: len(names) - 1]:  # one group at least stays in train
        if wanted < 0.5 * sizes[names[index]]:
            break
        taken.append(names[index])
        wanted -= sizes[names[index]]
    return taken
