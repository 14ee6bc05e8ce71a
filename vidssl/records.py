"""Frozen dataclasses as JSON files, and back: a file that is torn, foreign or of another shape is one sentence.

The fields' annotations are the schema: what is read has been checked against them, so nobody behind this module meets a
bare dictionary. Keys that a class does not know are left out, so that files of later versions stay readable.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vidssl.errors import CheckpointError
from vidssl.files import write_json

__all__ = ["read_record", "to_tree", "write_record"]

T = TypeVar("T")


def to_tree(record: object) -> dict[str, Any]:
    """The JSON object of a frozen dataclass: its fields by name, tuples as lists."""
    return _adapter(type(record)).dump_python(record, mode="json", by_alias=True)


def write_record(path: Path, record: object) -> None:
    """Write a frozen dataclass as JSON, whole or not at all; its folder is made where it is missing.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_tree(record))


def read_record(kind: type[T], path: Path, mend: str) -> T:
    """Read what `write_record` wrote.

    Args:
        kind: The class it was written from.
        path: The file.
        mend: What to type where it cannot be read, e.g. "type vidssl evaluate RUN what=knn".

    Raises:
        CheckpointError: the file is missing, torn, or says something else than `kind`.
    """
    try:
        return _adapter(kind).validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CheckpointError(
            f"{path} is of another shape ({where}: {first['msg'][:1].lower()}{first['msg'][1:]}); remove it and {mend}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({_said(error)}); remove it and {mend}") from error


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)


@lru_cache(maxsize=64)
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)
