"""Files that are either whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["remove_parts", "written_aside"]

_ASIDE = ".part"


@contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary stream whose bytes become `path` only when the block ends without an error.

    Args:
        path: The file to make or replace.
        durable: Wait until the bytes are on the disk before the rename (survives loss of power too).

    Raises:
        OSError: the file cannot be written; the partial file is removed.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_ASIDE}")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what a killed writer left in `folder`."""
    for part in folder.glob(f"*{_ASIDE}"):
        part.unlink(missing_ok=True)
