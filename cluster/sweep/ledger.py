"""Which points are done? `sweep.csv`, one row per point, written as each trial ends, so that a killed sweep goes on."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cluster.sweep.measure import Row, Study
from cluster.sweep.space import Point
from vidssl.errors import DataError
from vidssl.files import remove_parts, written_aside

__all__ = ["Ledger"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_KINDS = {"str": str, "int": int, "float": float}
_PARSERS = tuple(_KINDS[str(field.type)] for field in dataclasses.fields(Row))


class Ledger:
    """The finished points of one sweep folder.

    Rows are only comparable on one bank with one set of queries, which `sweep.json` names. Rows of another bank are set
    aside as `sweep-<their id>.csv`, never mixed in and never thrown away.

    Args:
        folder: Made where missing.
        study: The bank and queries that new rows are measured on.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.path, self.set_aside = folder, folder / "sweep.csv", ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
            self._settle(_protocol(study))
            self.rows = _read(self.path)
            self._write(self.rows)  # drops a line that a kill tore
        except OSError as error:
            raise DataError(f"{folder} cannot be written ({error.strerror}); type --out FOLDER") from error

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Points without a row, in order."""
        done = {row.point for row in self.rows}
        return [point for point in points if (point.strategy, point.stages, point.pool, point.topk) not in done]

    def add(self, row: Row) -> None:
        """Keep a finished point: on disk before the next one is waited for."""
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(_texts(row))

    def _settle(self, protocol: dict[str, object]) -> None:
        note, former = self.folder / "sweep.json", {}
        if note.is_file():
            former = json.loads(note.read_text())
        if former and former.get("id") != protocol["id"] and self.path.is_file():
            self.set_aside = f"sweep-{former.get('id')}.csv"
            self.path.replace(self.folder / self.set_aside)
        with written_aside(note) as file:
            file.write(json.dumps(protocol, indent=1).encode())

    def _write(self, rows: Iterable[Row]) -> None:
        lines = [",".join(_COLUMNS), *(",".join(_texts(row)) for row in rows)]
        with written_aside(self.path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


def _protocol(study: Study) -> dict[str, object]:
    digest = hashlib.sha256()
    for array in (study.main, study.aux, study.group, study.label, study.queries):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(study.last_view.encode())
    return {
        "id": digest.hexdigest()[:12],
        "snapshot": study.snapshot,
        "data_hash": study.data,
        "slots": study.n_slots,
        "filled": study.n_filled,
        "queries": len(study.queries),
        "last_view": study.last_view,
    }


def _texts(row: Row) -> list[str]:
    values = (getattr(row, name) for name in _COLUMNS)
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if tuple(header) != _COLUMNS:
        return []
    rows = {}
    for line in lines:
        try:
            row = Row(*(parse(text) for parse, text in zip(_PARSERS, line, strict=True)))
        except ValueError:
            continue
        rows[row.point] = row
    return list(rows.values())
