"""Which videos are there? Folder, CSV, UCF101 and HMDB51 → rows of (path, label, split, group).

Every file in a class folder becomes a row (a verdict says later whether it is a video); hidden files are passed over,
and so are text files beside the class folders.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.packing.listing import Catalog, Row, files_below, is_sidecar
from pipelines.packing.official import read_hmdb51, read_ucf101
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError, RecipeError

__all__ = ["FORMATS", "Catalog", "Row", "read_catalog"]


def read_catalog(format: str, src: str | Path, options: PackOptions | None = None) -> Catalog:
    """List a source.

    Args:
        format: "folder" (CLASS/file), "csv" (path[,label][,split][,group]), "ucf101" or "hmdb51".
        src: Folder of the videos, or the CSV file.
        options: Reads `splits`, `fold`, `group`, `test_share`, `seed`.

    Raises:
        RecipeError: an unknown format, or an option that the format does not have.
        DataError: a source, column or split file that is missing or damaged, or no videos at all.
    """
    options, place = options or PackOptions(), Path(src)
    if format not in FORMATS:
        raise RecipeError(f"unknown format '{format}'; there are {', '.join(FORMATS)}")
    if options.splits and format not in ("ucf101", "hmdb51"):
        raise RecipeError(
            f"splits={options.splits}: only ucf101 and hmdb51 have split files; use csv with a column 'split'"
        )
    if not (place.is_file() if format == "csv" else place.is_dir()):
        raise DataError(f"{place} is no {'file' if format == 'csv' else 'folder'}; type: vidssl pack {format} SRC OUT")
    catalog = FORMATS[format](place, options)
    if not catalog.rows:
        raise DataError(f"{place} holds no videos; format {format} looks for {_LOOKS_FOR[format]}")
    return _with_test_share(_with_groups(catalog, options), options)


def _read_folder(root: Path, options: PackOptions) -> Catalog:
    del options
    rows = [
        Row(path, path.split("/")[0] if "/" in path else None, "all", path)
        for path in files_below(root)
        if not is_sidecar(path)
    ]
    return Catalog(root, tuple(rows), tuple(sorted({row.label for row in rows if row.label is not None})))


def _read_csv(place: Path, options: PackOptions) -> Catalog:
    rows: list[Row] = []
    try:
        with place.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            table = csv.DictReader(stream, skipinitialspace=True)
            columns = set(table.fieldnames or ())
            if "path" not in columns:
                found = ", ".join(table.fieldnames or ()) or "nothing"
                raise DataError(f"{place} has no column 'path' (its first line is: {found})")
            rows.extend(_csv_row(place, table.line_num, line) for line in table)
    except (OSError, csv.Error) as error:
        raise DataError(f"{place} cannot be read: {error}") from error
    if "group" in columns and options.group:
        raise RecipeError(f"{place} has a column 'group' already; leave group={options.group} out or drop the column")
    if "split" in columns and options.test_share:
        raise RecipeError(f"{place} has a column 'split' already; leave test_share out or drop the column")
    _refuse_repeats(place, rows)
    return Catalog(place.parent, tuple(rows), tuple(sorted({row.label for row in rows if row.label is not None})))


def _csv_row(place: Path, line: int, fields: Mapping[str, str | None]) -> Row:
    path = (fields.get("path") or "").strip()
    if not path:
        raise DataError(f"{place} line {line} has no path")
    return Row(
        path, (fields.get("label") or "").strip() or None, fields.get("split") or "all", fields.get("group") or path
    )


def _refuse_repeats(place: Path, rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.path in seen:
            raise DataError(f"{place} lists '{row.path}' twice; a video is one row")
        seen.add(row.path)


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


FORMATS: Mapping[str, Callable[[Path, PackOptions], Catalog]] = {
    "folder": _read_folder,
    "csv": _read_csv,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
}
_LOOKS_FOR = {
    "folder": "CLASS/file",
    "csv": "a header line and one line per video",
    "ucf101": "CLASS/v_CLASS_gNN_cNN.avi",
    "hmdb51": "CLASS/name.avi",
}
