"""A CSV file with a line per video: path[,label][,split][,group], paths relative to the file."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from pipelines.packing.listing import Catalog, Format, Row, classes_of, identities
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError, RecipeError

__all__ = ["CSV"]


def _read(place: Path, options: PackOptions) -> Catalog:
    rows: list[Row] = []
    lines: list[int] = []
    try:
        with place.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            table = csv.DictReader(stream, skipinitialspace=True)
            columns = set(table.fieldnames or ())
            if "path" not in columns:
                found = ", ".join(table.fieldnames or ()) or "nothing"
                raise DataError(f"{place} has no column 'path' (its first line is: {found})")
            for fields in table:
                rows.append(_row(place, table.line_num, fields))
                lines.append(table.line_num)
    except (OSError, csv.Error) as error:
        raise DataError(f"{place} cannot be read: {error}") from error
    if "group" in columns and options.group:
        raise RecipeError(f"{place} has a column 'group' already; leave group={options.group} out or drop the column")
    if "split" in columns and options.test_share:
        raise RecipeError(f"{place} has a column 'split' already; leave test_share out or drop the column")
    _refuse_repeats(place, rows, lines)
    return Catalog(place.parent, tuple(rows), classes_of(rows))


def _row(place: Path, line: int, fields: Mapping[str, str | None]) -> Row:
    path = (fields.get("path") or "").strip()
    if not path:
        raise DataError(f"{place} line {line} has no path")
    if "\0" in path:
        raise DataError(f"{place} line {line}: a path holds no zero byte")
    return Row(
        path, (fields.get("label") or "").strip() or None, fields.get("split") or "all", fields.get("group") or path
    )


def _refuse_repeats(place: Path, rows: Sequence[Row], lines: Sequence[int]) -> None:
    """One file is one row, however it is spelled: `x`, `./x`, its whole path or a link to it."""
    first: dict[Hashable, int] = {}
    for number, file in enumerate(identities(place.parent, (row.path for row in rows))):
        row, before = rows[number], first.setdefault(file, number)
        if before != number:
            other = f" (as '{rows[before].path}' in line {lines[before]})" if rows[before].path != row.path else ""
            raise DataError(f"{place} line {lines[number]} lists '{row.path}' twice{other}; a video is one row")


CSV = Format(_read, looks_for="a header line and one line per video", is_file=True)
