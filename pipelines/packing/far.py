"""Videos in a store: listed once as a tree of empty files, which every format reads like a folder, and fetched one by one.

The tree has each object's name, size and age; lists and annotations in it are whole. It lives as long as the pack. A worker
keeps the one video that it works on, so that the clips of a long source are cut from one copy.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.dataset.patience import AGAIN, ANSWERS, Patience, Say, say_in_log
from pipelines.dataset.place import Address, address_of
from pipelines.dataset.remote import RemoteStore
from pipelines.packing.catalog import FORMATS
from pipelines.packing.listing import SIDECARS
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError, RecipeError, StorageError
from vidssl.files import disk_words, is_full, process_lives

__all__ = ["Fetcher", "Source", "source_at"]

Answer = TypeVar("Answer")

PATIENCE_S = 240.0
CHUNK = 16 << 20
_MADE = "vidssl-packing-"


@dataclass(frozen=True)
class Source:
    """Where the videos are read from.

    Attributes:
        place: What a format reads: the source itself, or the tree of empty files that stands for it.
        address: Where the videos are fetched from; None: they lie in `place`.
        notes: Sentences on objects that were passed over.
    """

    place: Path
    address: Address | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def source_at(format: str, src: str | Path, options: PackOptions, say: Say) -> Iterator[Source]:
    """The source, ready to be read by its format.

    Args:
        format: A name in `FORMATS`.
        src: As typed.
        options: `add=flow` does not look at the source.
        say: Told of stores that do not answer.

    Raises:
        DataError: an address of a kind of store that is not known, that does not let us or cannot be listed; `obstore` is not
            installed.
        RecipeError: a format or an option that needs the videos in a folder.
        StorageError: the store does not answer, or this machine's disk is full.
    """
    address = address_of(src)
    if address is None or options.add == "flow":
        yield Source(Path(src))
        return
    _refuse_unlisted(format, address)
    below = address.parent if format in FORMATS and FORMATS[format].is_file else address
    with _scratch() as tree:
        notes = _lay_out(below, tree, say)
        yield Source(tree if below == address else tree / address.name, below, notes)


class Fetcher:
    """Copies of single objects on this machine, one at a time."""

    def __init__(self) -> None:
        self._store: RemoteStore | None = None
        self._folder: str | None = None
        self._here: tuple[str, str] | None = None

    def file(self, address: str, name: str) -> str:
        """The path of a copy of the object `name`; the one before is removed.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store does not answer or does not let us, or the disk of the copies is full.
            DataError: as `RemoteStore`.
        """
        if self._folder is None:
            self._folder = _made_folder()
        path = os.path.join(self._folder, f"video{Path(name).suffix[:16]}")
        if self._here == (address, name):
            return path
        self._here = None
        for left in os.listdir(self._folder):
            os.unlink(os.path.join(self._folder, left))
        if self._store is None or str(self._store.address) != address:
            place = address_of(address)
            assert place is not None
            self._store = RemoteStore(place)
        _copy(self._store, name, path, Patience(PATIENCE_S, say_in_log, advice=AGAIN))
        self._here = (address, name)
        return path

    def close(self) -> None:
        """Remove the copy."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._here = None


def _refuse_unlisted(format: str, address: Address) -> None:
    if not address.written:
        raise DataError(
            f"the source {address} is on a web server, which cannot say what it holds; give a folder, s3://… or gs://…"
        )
    if format == "webdataset":
        raise RecipeError(
            f"format webdataset reads its tars in place, and {address} is in a store; copy them into a folder"
        )


def _lay_out(address: Address, tree: Path, say: Say) -> tuple[str, ...]:
    """Make the tree; returns sentences on what has no place in one."""
    store, patience = RemoteStore(address), Patience(PATIENCE_S, say, advice=AGAIN)
    found = _asked(patience, str(address), store.listed)
    if not found:
        raise DataError(f"{address} holds no objects; give the prefix of the videos, e.g. s3://BUCKET/VIDEOS")
    strange: list[str] = []
    lists: dict[str, Path] = {}
    with _disk_words(tree):
        for name, (size, modified_ns) in sorted(
            found.items(), reverse=True
        ):  # a/b before a: it is the folder that stays
            path = tree / name
            if not size and path.is_dir():  # what some programs put in the place of a folder
                continue
            try:
                _refuse_outside(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as stream:
                    stream.truncate(size)
            except (ValueError, FileExistsError, IsADirectoryError, NotADirectoryError):
                strange.append(name)
                continue
            if path.suffix.lower() in SIDECARS:
                lists[name] = path
            os.utime(path, ns=(modified_ns, modified_ns))
        for name, path in lists.items():
            _copy(store, name, str(path), patience)
            modified_ns = found[name][1]
            os.utime(path, ns=(modified_ns, modified_ns))
    if not strange:
        return ()
    more = f" (and {len(strange) - 1} more like it)" if len(strange) > 1 else ""
    return (f"passed over '{strange[0]}'{more} in {address}, which cannot be the name of a file beside the others",)


def _refuse_outside(name: str) -> None:
    """A key may be any text; one that leads out of the tree is none of ours."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in parts):
        raise ValueError(name)


def _copy(store: RemoteStore, name: str, path: str, patience: Patience) -> None:
    """Fetch in pieces, so that a store that goes away costs one of them, and a video of hours no memory."""
    said = store.said(name)
    size = _asked(patience, said, lambda: store.length(name), gone=True)
    with _disk_words(Path(path)), open(path, "wb") as stream:
        for begin in range(0, size, CHUNK):
            count = min(CHUNK, size - begin)
            piece = _asked(patience, said, lambda b=begin, c=count: store.read_range(name, b, c), gone=True)
            stream.write(piece)


def _asked(patience: Patience, said: str, ask: Callable[[], Answer], gone: bool = False) -> Answer:
    try:
        return patience.insist(said, ask, ANSWERS)
    except FileNotFoundError:
        if gone:
            raise
        raise DataError(f"{said}: there is no such object") from None
    except OSError as error:
        raise DataError(f"{said} cannot be read: {error.strerror or error}") from None


@contextmanager
def _disk_words(path: Path) -> Iterator[None]:
    """A full disk of copies is not that of the pack."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StorageError(
            f"{disk_words(error, path)}; videos are fetched there one by one: set TMPDIR to a folder with more room"
        ) from error


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = _made_folder()
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made_folder() -> str:
    """A folder of this process, after those of processes of this machine that were killed are gone."""
    ours = f"{_MADE}{socket.gethostname()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{ours}*"):
        owner = left.name.removeprefix(ours).partition("-")[0]
        if owner.isdigit() and not process_lives(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-")
