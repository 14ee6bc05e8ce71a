"""Did we make this folder? A small file says what made it; without that file nothing in it is removed or overwritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vidssl import __version__
from vidssl.errors import DataError
from vidssl.files import write_whole

__all__ = ["LOCK", "MARK", "Mark", "is_mark", "mark", "mark_of", "mark_text", "refuse_foreign", "remove_marked"]

MARK = ".vidssl.json"
"""Name of the file."""
LOCK = ".vidssl.lock"
"""Name of the file that says who is working in a folder; see `vidssl.lock`."""

_MADE_BY = "vidssl"


@dataclass(frozen=True)
class Mark:
    """What a folder is.

    Attributes:
        kind: run, pack, demo, card or embeddings.
        version: Of the package that made it.
    """

    kind: str
    version: str


def mark(folder: Path, kind: str) -> None:
    """Say that `folder` is ours from now on.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(folder / MARK, mark_text(kind))


def mark_text(kind: str) -> str:
    """What stands in the mark of a kind, for places that are no folders."""
    return json.dumps({"made_by": _MADE_BY, "kind": kind, "version": __version__}, indent=1) + "\n"


def is_mark(text: bytes, kind: str) -> bool:
    """Whether a text is our mark of a kind."""
    found = _read(text)
    return found is not None and found.kind == kind


def mark_of(folder: Path) -> Mark | None:
    """What made `folder`; None where it does not say, or what it says is not ours or torn."""
    try:
        return _read((folder / MARK).read_bytes())
    except OSError:
        return None


def _read(text: bytes) -> Mark | None:
    try:
        tree = json.loads(text)
        return Mark(str(tree["kind"]), str(tree["version"])) if tree["made_by"] == _MADE_BY else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def refuse_foreign(folder: Path, kind: str, instead: str) -> None:
    """Refuse to write into a folder that somebody else filled.

    Args:
        folder: What was named; absent, empty and ours are fine.
        kind: What it must have been made as.
        instead: What to type, e.g. `give another OUT`.

    Raises:
        DataError: a file, or a path below one, a folder that cannot be read, or a filled one without our mark of this kind.
    """
    try:
        if not folder.is_dir():
            if folder.exists() or folder.is_symlink():
                raise DataError(f"{folder} is a file and a folder is needed; {instead}")
            above = next((path for path in folder.parents if path.exists()), folder)
            if not above.is_dir():
                raise DataError(f"{folder} cannot be made: {above} is a file; {instead}")
            return
        # Somebody who was killed at his first step left no more than a lock, or the beginning of a mark.
        if all(path.name.startswith((LOCK, f".{MARK}.")) for path in folder.iterdir()):
            return
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); {instead}") from error
    found = mark_of(folder)
    if found is None:
        raise DataError(f"{folder} holds files that vidssl did not make, and they are left alone; {instead}")
    if found.kind != kind:
        raise DataError(f"{folder} was made as a {found.kind}, not as a {kind}, and is left alone; {instead}")


def remove_marked(folder: Path, kind: str, names: Sequence[str]) -> list[str]:
    """Remove what we made in `folder`, and the folder when nothing else is in it.

    Args:
        folder: Absent is fine.
        kind: What it must have been made as.
        names: Patterns of what a folder of this kind holds (files, or folders that are wholly ours).

    Returns:
        Names that were left, because they match no pattern: somebody else's. The mark then stays too.

    Raises:
        DataError: as `refuse_foreign`.
        OSError: something cannot be removed.
    """
    refuse_foreign(folder, kind, "remove it yourself if it may go")
    if not folder.is_dir():
        return []
    for path in [path for pattern in names for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    left = sorted(path.name for path in folder.iterdir() if path.name != MARK and not path.name.startswith(LOCK))
    if not left:
        (folder / MARK).unlink(missing_ok=True)
        with suppress(OSError):  # who holds its lock goes on in it
            folder.rmdir()
    return left
