"""The one way to write: a file or folder is either whole or absent, and what is whole is on the disk.

Written beside its place, fsynced, renamed, and the folder's own entry fsynced: a kill or a power cut at any moment leaves
the former state or the new one.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vidssl.errors import DataError, DiskFullError, StorageError

__all__ = [
    "check_place",
    "disk_words",
    "folder_aside",
    "is_full",
    "process_lives",
    "remove_parts",
    "storage_error",
    "sync_folder",
    "sync_tree",
    "write_json",
    "write_whole",
    "written_aside",
]

_ASIDE = ".part"
_PART = re.compile(rf"\..+-\d+-\d+-\d+\{_ASIDE}$")
_numbers = itertools.count()


@contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary stream whose bytes become `path` only when the block ends without an error.

    Args:
        path: The file to make or replace.
        durable: Wait until the bytes are on the disk before the rename (survives loss of power too).

    Raises:
        OSError: the file cannot be written; the partial file is removed.
    """
    part = _beside(path)
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        part.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Make or replace a file.

    Raises:
        OSError: as `written_aside`.
    """
    with written_aside(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, tree: object) -> None:
    """Make or replace a JSON file, one key a line.

    Raises:
        OSError: as `written_aside`.
        ValueError: a NaN or an infinity, which JSON has no word for.
        TypeError: a value that is no JSON.
    """
    write_whole(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A fresh folder that becomes `path`, with everything in it on the disk, when the block ends without an error.

    A folder that is there already is replaced: it is renamed away first, so that no moment shows half of either.

    Raises:
        OSError: it cannot be written; what was made is removed, and a former folder stays.
    """
    aside = _beside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        sync_tree(aside)
        former = _beside(path) if path.exists() else None
        if former is not None:
            path.rename(former)
        aside.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Remove what killed writers left in `folder`; call it only where nobody else writes."""
    for part in (path for path in folder.iterdir() if _PART.match(path.name)):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk; a file system that cannot do that for folders is left alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until every file under `folder`, and every name, is on the disk."""
    for here, _, files in os.walk(folder):
        for name in files:
            handle = os.open(Path(here) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(here))


def check_place(path: Path, instead: str) -> None:
    """Find out, before hours of work, whether `path` could be written; leaves nothing behind.

    Args:
        path: A file or folder that need not exist; nor need the folders above it.
        instead: What to type where it cannot.

    Raises:
        DataError: something on the way to it is a file.
        StorageError: the disk cannot be written.
    """
    above = next(here for here in path.absolute().parents if here.exists())
    if not above.is_dir():
        raise DataError(f"{path} cannot be made: {above} is a file; {instead}")
    probe = above / f".{path.name}.{os.getpid()}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise storage_error(error, path, instead=instead) from error


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk, or somebody's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def process_lives(pid: int) -> bool:
    """Whether there is a process of that number on this machine, anybody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def disk_words(error: OSError, path: Path, needed: int | None = None) -> str:
    """What an error means for who reads it: `PATH cannot be written: …`, with the disk and its room where it is full.

    Args:
        error: What the system said.
        path: What was being written; its folder need not exist.
        needed: Bytes that it would have taken, where known.
    """
    if not is_full(error):
        return f"{path} cannot be written ({error.strerror or type(error).__name__})"
    wanted = "" if needed is None else f"{_size(needed)} needed, "
    there = path if path.exists() else next((above for above in path.parents if above.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    return f"{path} cannot be written: the disk {_mount(there)} is full ({wanted}{_size(free)} free)"


def storage_error(error: OSError, path: Path, needed: int | None = None, instead: str = "") -> StorageError:
    """`disk_words` as the exception to raise; a full disk is final, what else a disk may have is not.

    Args:
        error: As for `disk_words`.
        path: As for `disk_words`.
        needed: As for `disk_words`.
        instead: What to type.
    """
    kind = DiskFullError if is_full(error) else StorageError
    return kind(disk_words(error, path, needed) + (f"; {instead}" if instead else ""))


def _beside(path: Path) -> Path:
    # Two nodes may write into one folder of a shared file system, with equal process ids.
    owner = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-{next(_numbers)}"
    return path.with_name(f".{path.name}.{owner}{_ASIDE}")


def _mount(path: Path) -> Path:
    path = path.resolve()
    return next((here for here in (path, *path.parents) if os.path.ismount(here)), path)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
