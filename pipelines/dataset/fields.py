"""Does a manifest say only what a manifest may say? Every field is read by its type and bounds, and named when it is wrong.

A manifest may be edited and sealed again by anyone, so a right hash says nothing about sense: names of shards are names of
files in the folder and no paths, numbers are numbers of the right size, columns are as long as the data set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError

__all__ = ["Fields", "checked_column", "read_json"]

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_MOST = 2**62


def read_json(text: bytes, name: str) -> Fields:
    """The fields of a JSON object.

    Raises:
        DataError: no JSON, nested without end, or no object.
    """
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{name} is damaged (nested too deeply); pack again") from error
    except ValueError as error:
        raise DataError(f"{name} is damaged ({error}); pack again") from error
    if not isinstance(tree, dict):
        raise DataError(f"{name} is no manifest (it holds no JSON object); pack again")
    return Fields(tree, name)


class Fields:
    """The fields of one JSON object, each asked for by its type.

    Args:
        tree: The object.
        where: What it is, in front of every sentence.
    """

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        self._tree, self._where = tree, where

    def has(self, key: str) -> bool:
        """Whether there is such a field."""
        return key in self._tree

    def is_null(self, key: str) -> bool:
        """Whether there is such a field, and it says nothing."""
        return key in self._tree and self._tree[key] is None

    def number(self, key: str, least: int, most: int = _MOST) -> int:
        """A whole number within bounds.

        Raises:
            DataError: another type, or out of bounds.
        """
        value = self._get(key)
        if type(value) is not int or not least <= value <= most:
            bounds = f"a whole number from {least} on" if most == _MOST else f"a whole number from {least} to {most}"
            raise self._wrong(key, value, bounds)
        return value

    def positive(self, key: str) -> float:
        """A number above 0, at most a million.

        Raises:
            DataError: another type, NaN, or out of bounds.
        """
        value = self._get(key)
        if type(value) not in (int, float) or not 0 < value <= 1e6:  # NaN is not above 0 either
            raise self._wrong(key, value, "a number above 0, at most 1000000")
        return value

    def text(self, key: str, pattern: str = r".*", said: str = "a text") -> str:
        """A text that a pattern matches wholly.

        Raises:
            DataError: another type, or another form.
        """
        value = self._get(key)
        if not isinstance(value, str) or re.fullmatch(pattern, value, re.DOTALL) is None:
            raise self._wrong(key, value, said)
        return value

    def shard_name(self, key: str) -> str:
        """The name of a tar that lies in the folder itself.

        Raises:
            DataError: a path, or no tar.
        """
        return self.text(key, _SHARD_NAME.pattern, "the name of a tar in this folder, e.g. shard-00000.tar")

    def texts(self, key: str) -> tuple[str, ...]:
        """Distinct texts.

        Raises:
            DataError: another type, or the same text twice.
        """
        value = self._list(key, "a list of texts")
        if not all(isinstance(one, str) for one in value) or len(set(value)) != len(value):
            raise self._wrong(key, value, "a list of distinct texts")
        return tuple(value)

    def object(self, key: str) -> Fields:
        """An object within the object.

        Raises:
            DataError: another type.
        """
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self._where}: {key}")

    def objects(self, key: str) -> list[Fields]:
        """A list of objects.

        Raises:
            DataError: another type.
        """
        value = self._list(key, "a list of objects")
        if not all(isinstance(one, dict) for one in value):
            raise self._wrong(key, value, "a list of objects")
        return [Fields(one, f"{self._where}: {key}[{number}]") for number, one in enumerate(value)]

    def words(self, key: str) -> dict[str, str]:
        """Texts by name.

        Raises:
            DataError: another type.
        """
        value = self._get(key)
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise self._wrong(key, value, "an object of texts")
        return dict(value)

    def _list(self, key: str, allowed: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, value, allowed)
        return value

    def _get(self, key: str) -> Any:
        if key not in self._tree:
            raise DataError(f"{self._where} has no field '{key}'; pack again")
        return self._tree[key]

    def _wrong(self, key: str, value: object, allowed: str) -> DataError:
        return DataError(f"{self._where}: {key} is {_short(value)}, but must be {allowed}; pack again")


def checked_column(
    columns: Mapping[str, NDArray[Any]], name: str, kind: np.dtype[Any], rows: int, bounds: tuple[int, int]
) -> NDArray[Any]:
    """A column of `samples.npz`.

    Args:
        columns: All columns.
        name: Which.
        kind: Its type; for text any length will do.
        rows: How long it must be.
        bounds: Smallest and largest value allowed (numbers only).

    Raises:
        DataError: it is missing, of another type or length, or a value is out of bounds.
    """
    if name not in columns:
        raise DataError(f"samples.npz has no column '{name}'; pack again")
    found, (least, most) = columns[name], bounds
    fits = found.dtype.kind == kind.kind if kind.kind == "U" else found.dtype == kind
    if not fits or found.shape != (rows,):
        raise DataError(
            f"samples.npz: column '{name}' is {found.dtype} of shape {found.shape}, but must be {kind.name} "
            f"of {rows} rows; pack again"
        )
    if kind.kind != "U" and rows and (wrong := _outside(found, least, most)) is not None:
        raise DataError(
            f"samples.npz: {name} of sample {wrong} is {found[wrong]}, but must be from {least} to {most}; pack again"
        )
    return found


def _outside(values: NDArray[Any], least: int, most: int) -> int | None:
    wrong = np.flatnonzero((values.astype(np.int64) < least) | (values.astype(np.int64) > most))
    return int(wrong[0]) if len(wrong) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
