"""How are the files of a packed data set read? One interface over folders and stores: whole small files, parts of large ones."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from pipelines.dataset.place import Address
from pipelines.dataset.remote import RemoteStore

__all__ = ["OPEN_SHARDS", "FolderStore", "Store", "open_store"]

OPEN_SHARDS = 128


class Store(Protocol):
    """Files by name, each method one attempt.

    What a store cannot say now is an OSError; what it has said for certain is one of `pipelines.dataset.patience.ANSWERS`.

    Attributes:
        far: Whether an answer takes so long that several questions should be asked at once; such a store is asked from any
            thread, one that is near from a single one.
    """

    far: bool

    def said(self, name: str) -> str:
        """What sentences call the file `name`."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes of a small file."""
        ...

    def read_range(self, name: str, begin: int, size: int) -> bytes:
        """`size` bytes from `begin` on; an OSError where the file ends before."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def forget(self, name: str) -> None:
        """Open the file anew when it is read next: what was open may be stale."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class FolderStore:
    """A folder: positional reads, up to 128 files stay open.

    Args:
        folder: Which.
    """

    far = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def said(self, name: str) -> str:
        """Its name: all that is read lies in one folder."""
        return name

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            OSError: it is not there, or the disk does not answer.
        """
        return (self.folder / name).read_bytes()

    def read_range(self, name: str, begin: int, size: int) -> bytes:
        """`size` bytes from `begin` on.

        Raises:
            OSError: it is not there, it ends before, or the disk does not answer.
        """
        try:
            data = os.pread(self._descriptor(name), size, begin)
            if len(data) != size:  # the index lies within the shard's size, so the file is not whole now
                raise OSError(f"it ends before byte {begin + size}")
            return data
        except OSError:
            self.forget(name)  # a stale handle stays stale: the next attempt opens the file again
            raise

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: it is not there, or the disk does not answer.
        """
        return (self.folder / name).stat().st_size

    def forget(self, name: str) -> None:
        """Close a file."""
        if (descriptor := self._open.pop(name, None)) is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        self._open.move_to_end(name)
        return self._open[name]


def open_store(place: Path | Address) -> Store:
    """What reads the files at a place.

    Raises:
        DataError: as `RemoteStore`.
    """
    return RemoteStore(place) if isinstance(place, Address) else FolderStore(place)
