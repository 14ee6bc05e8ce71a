"""What is done? `sweep.csv`, one row per point, written as each trial ends, so that a killed sweep goes on."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from cluster.mine.measure import Row
from cluster.mine.study import Study
from cluster.mine.words import Point
from vidssl.errors import DataError, StorageError
from vidssl.files import disk_words, remove_parts, storage_error, write_whole
from vidssl.lock import held
from vidssl.marks import mark, mark_of, refuse_foreign
from vidssl.records import read_record, write_record

__all__ = ["Ledger", "MeasuredOn", "RowFile", "held_results"]

_KIND = "sweep"

_KINDS = {
    "str": str,
    "SpaceKind": str,
    "State": str,
    "int": int,
    "int | None": lambda text: int(text) if text else None,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
}


class _Row(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def point(self) -> Hashable: ...


class _About(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Row)
"""A frozen dataclass of plain fields, whose `point` says which later row replaces it."""


@dataclass(frozen=True)
class MeasuredOn:
    """What the rows of a ledger were measured on: the content of sweep.json.

    Attributes:
        id: Of bank, labels, queries and last view: rows of another id cannot be compared.
        snapshot: Folder of the snapshot, for people.
        data_hash: Of the data, empty when unknown.
        slots: N.
        filled: Of those.
        queries: Rows that mine.
        last_view: View of the last stage.
    """

    id: str
    snapshot: str
    data_hash: str
    slots: int
    filled: int
    queries: int
    last_view: str


class RowFile(Generic[R]):
    """The finished points of one sweep folder.

    Rows are only comparable where they were measured on the same, which `sweep.json` names. Rows of something else are set
    aside as `sweep-<its id>.csv`, never mixed in and never thrown away; they come back with it.

    Args:
        folder: Made where missing; the caller holds its lock.
        kind: Class of the rows.
        about: What new rows are measured on: a frozen dataclass.

    Raises:
        DataError: the folder holds other things than a sweep, or cannot be written.
        CheckpointError: sweep.json is damaged.
    """

    def __init__(self, folder: Path, kind: type[R], about: _About) -> None:
        self.folder, self.path, self.set_aside, self.kind, self.about = folder, folder / "sweep.csv", "", kind, about
        _check_ours(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark(folder, _KIND)
            remove_parts(folder)
            self._settle(about)
            self.rows = _read(self.path, kind)
            self._write(self.rows)  # drops a line that a kill tore
        except OSError as error:
            raise DataError(f"{disk_words(error, folder)}; type --out FOLDER") from error

    def add(self, row: R) -> None:
        """Keep a finished point: on disk before the next one is waited for.

        Raises:
            StorageError: it cannot be written; the rows before it stay.
        """
        self.rows.append(row)
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow(_texts(row))
        except OSError as error:
            raise storage_error(error, self.path, instead="make room and type the same words again") from error

    def _settle(self, own: _About) -> None:
        note = self.folder / "sweep.json"
        former = read_record(type(own), note, "type the same words again") if note.is_file() else None
        if former is not None and former.id != own.id and self.path.is_file():
            self.set_aside = f"sweep-{former.id}.csv"
            self.path.replace(self.folder / self.set_aside)
        before = self.folder / f"sweep-{own.id}.csv"
        if before.is_file() and not self.path.is_file():
            before.replace(self.path)
        write_record(note, own)

    def _write(self, rows: Iterable[R]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_columns(self.kind), *map(_texts, rows)])
        write_whole(self.path, text.getvalue())


class Ledger(RowFile[Row]):
    """The finished points of an offline sweep.

    Args:
        folder: As of `RowFile`.
        study: The bank and queries that new rows are measured on.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        super().__init__(folder, Row, _measured_on(study))

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Points without a row, in order."""
        done = {row.point for row in self.rows}
        return [point for point in points if point not in done]


@contextmanager
def held_results(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A sweep's folder, for this sweep alone; one that was made before folders were marked is ours too.

    Args:
        folder: May be new.
        say: Told when a lock is taken over.

    Raises:
        DataError: it holds other things than a sweep.
        BusyError: another sweep writes there.
        StorageError: it cannot be written.
    """
    _check_ours(folder)
    with ExitStack() as opened:
        try:
            opened.enter_context(held(folder, "sweep", say))
        except StorageError as error:
            raise type(error)(f"{error}; type --out FOLDER") from error
        yield


def _check_ours(folder: Path) -> None:
    older = mark_of(folder) is None and (folder / "sweep.json").is_file() and (folder / "sweep.csv").is_file()
    if not older:
        refuse_foreign(folder, _KIND, "type --out FOLDER with a folder that is new or empty")


def _measured_on(study: Study) -> MeasuredOn:
    digest = hashlib.sha256()
    for array in (*study.rows_in("raw"), study.group, study.label, study.queries):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(study.last_view.encode())
    return MeasuredOn(
        id=digest.hexdigest()[:12],
        snapshot=study.source,
        data_hash=study.data,
        slots=study.n_slots,
        filled=study.n_filled,
        queries=len(study.queries),
        last_view=study.last_view,
    )


def _columns(kind: type[_Row]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _texts(row: _Row) -> list[str]:
    values = (getattr(row, name) for name in _columns(type(row)))
    return ["" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]


def _read(path: Path, kind: type[R]) -> list[R]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if header and header != _columns(kind):
        raise DataError(f"{path} has other columns than a sweep writes; move it away, or type --out FOLDER")
    parsers = [_KINDS[str(field.type)] for field in dataclasses.fields(kind)]
    rows: dict[Hashable, R] = {}
    for line in lines:
        try:
            row = kind(*(parse(text) for parse, text in zip(parsers, line, strict=True)))
        except ValueError:
            continue
        rows[row.point] = row
    return list(rows.values())
