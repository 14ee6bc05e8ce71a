"""How do tensors get into a file and back? Hashed while they are written, on the disk before they count, read without running code."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from vidssl.errors import CheckpointError, StorageError
from vidssl.files import storage_error

__all__ = [
    "UNREADABLE",
    "FileSum",
    "check_sum",
    "first_bad_number",
    "foreign_code",
    "plain",
    "read_tensors",
    "sum_of",
    "write_tensors",
]

UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)
"""What `torch.load` raises on bytes of another kind: the unpickler runs into whatever stands there."""
_FOREIGN = re.compile(r"\bGLOBAL ([\w.]+)")
"""How torch names what a file wants to import, in the text of its refusal."""


@dataclass(frozen=True)
class FileSum:
    """What a file must be: its length in bytes and its sha256 in hexadecimal digits."""

    bytes: int
    sha256: str


def write_tensors(tree: Any, path: Path) -> FileSum:
    """Write tensors, numbers, text, lists and mappings to `path` and wait until the disk has them.

    Args:
        tree: As `plain` makes it.
        path: A new file, in a folder that is renamed when all of it is there.

    Returns:
        Length and hash of what was to be written.

    Raises:
        StorageError: the disk is full or cannot be written; the partial file is removed.
    """
    stream = _Hashed()
    try:
        with path.open("wb") as file:
            stream.file = file
            torch.save(tree, cast(Any, stream))
            stream.finish()
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise storage_error(error, path, stream.length) from error
    return FileSum(stream.length, stream.digest.hexdigest())


class _Hashed:
    """A stream for `torch.save`, which turns an `OSError` of its stream into a fault of its own.

    So the first error is kept, the rest is only counted (how much was needed is then known), and `finish` raises it.
    """

    file: BinaryIO

    def __init__(self) -> None:
        self._error: OSError | None = None
        self.length, self.digest = 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        length = memoryview(data).nbytes
        self.length += length
        if self._error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self._error = error
        return length

    def flush(self) -> None:
        """Nothing: `finish` does it."""

    def finish(self) -> None:
        if self._error is not None:
            raise self._error
        self.file.flush()
        os.fsync(self.file.fileno())


def read_tensors(path: Path, expected: FileSum | None = None) -> Any:
    """What `write_tensors` wrote, on the CPU; the file cannot run code.

    Args:
        path: The file.
        expected: Its length and hash; None: not known (a checkpoint of an older version).

    Raises:
        CheckpointError: in half a sentence that begins with the file's name: missing, torn, damaged, or asking for code.
    """
    if expected is not None:
        check_sum(path, expected)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's words for who writes pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    except UNREADABLE as error:
        code = foreign_code(error)
        if code is not None:
            raise CheckpointError(
                f"{path.name} asks for the code of {code}, which is not run: only tensors, numbers and text are read"
            ) from error
        raise CheckpointError(f"{path.name} is no file of tensors") from error


def check_sum(path: Path, expected: FileSum) -> None:
    """Compare a file with what it must be.

    Raises:
        CheckpointError: in half a sentence that begins with the file's name.
    """
    try:
        length = path.stat().st_size
        if length != expected.bytes:
            raise CheckpointError(f"{path.name} has {length} of {expected.bytes} bytes")
        found = sum_of(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected:
        raise CheckpointError(f"{path.name} is damaged: its bytes are not those that were written")


def sum_of(path: Path) -> FileSum:
    """Length and hash of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileSum(stream.tell(), digest)


def foreign_code(error: BaseException) -> str | None:
    """What a refused file wanted to import, out of torch's text; None when it was refused for something else."""
    found = _FOREIGN.search(str(error)) if isinstance(error, UnpicklingError) else None
    return found[1] if found else None


def first_bad_number(tree: Any, unset: Collection[str] = ()) -> str | None:
    """Where the first number stands that is not finite, e.g. "method.backbone.weight (nan)"; None: all are.

    Args:
        tree: Tensors, arrays, numbers, text, lists and mappings.
        unset: Last parts of names under which NaN means "not known yet".
    """
    for name, value in _leaves(tree, ""):
        if name.rpartition(".")[2] in unset:
            continue
        bad = _bad_in(value)
        if bad is not None:
            return f"{name} ({bad:g})"
    return None


def plain(value: Any) -> Any:
    """A state as tensors and plain values: arrays cannot be read back without running code."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{name}.{place}" if name else str(place))
    else:
        yield name, value


def _bad_in(value: Any) -> float | None:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        if not value.is_floating_point() or bool(value.isfinite().all()):
            return None
        return float(value[~value.isfinite()].flatten()[0])
    return value if isinstance(value, float) and not math.isfinite(value) else None
