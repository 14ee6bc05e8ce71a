"""What was read before? Parts of far files in a folder of this machine: never more than a bound, shared by its processes.

A file is whole or absent, and named by the hash of the data, so it never goes stale. Who writes holds a lock of the system
(it ends with its process) and has written the new total down before; so a kill at any moment leaves a total that is too
large at worst, and the next count corrects it. When the bound is reached, what was read longest ago goes. Readers take no
lock: what vanishes under them is read from the store again. A cache that cannot be written is said once, and done without.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.dataset.patience import Say
from vidssl.files import disk_words, written_aside
from vidssl.marks import MARK, mark, mark_of, refuse_foreign

__all__ = ["Cache", "refuse_cache"]

KIND = "cache"
TOTAL, LOCK = "total", "writing.lock"
BLOCK = 4096
"""Files take whole blocks of a disk, and are counted so."""
KEPT = 0.9
"""Share of the bound that stays when room is made: making it looks at every file."""
LOCK_S = 2.0
"""Seconds after which a part is rather not kept than waited with."""


def refuse_cache(folder: Path) -> None:
    """Refuse a folder that is no cache of ours and holds something.

    Raises:
        DataError: as `vidssl.marks.refuse_foreign`.
    """
    refuse_foreign(folder, KIND, "give another loader.cache")


class Cache:
    """Bytes by name, in a folder.

    Args:
        folder: Made where it is missing.
        limit: Bytes that its files may take on the disk.
        say: Told when it cannot be written.

    Raises:
        DataError: the folder holds what we did not make.
    """

    def __init__(self, folder: Path, limit: int, say: Say) -> None:
        refuse_cache(folder)
        self.folder, self.limit, self._say = folder, limit, say
        self._writes, self._own = True, threading.Lock()
        with self._or_without():
            folder.mkdir(parents=True, exist_ok=True)
            if mark_of(folder) is None:
                mark(folder, KIND)

    def has(self, name: str) -> bool:
        """Whether there are bytes of this name now."""
        return (self.folder / name).is_file()

    def get(self, name: str, size: int) -> bytes | None:
        """The bytes of this name, which count as read now; None: they are not there, or not `size` many."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes, which is no promise: room is made for them, or they are left out."""
        path, needed = self.folder / name, _on_disk(len(data))
        if not self._writes or needed > self.limit or path.is_file():
            return
        with self._or_without(), self._alone() as alone:
            if not alone or path.is_file():
                return
            total = self._total()
            if total + needed > self.limit:
                total = self._make_room(min(int(KEPT * self.limit), self.limit - needed))
            (self.folder / TOTAL).write_text(str(total + needed))
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path, durable=False) as stream:
                stream.write(data)

    def drop(self, name: str) -> None:
        """Forget bytes that turned out to be damaged."""
        with self._or_without():
            (self.folder / name).unlink(missing_ok=True)

    def _total(self) -> int:
        try:
            return int((self.folder / TOTAL).read_text())
        except (OSError, ValueError):  # none yet, or a kill tore it
            return sum(size for _, size, _ in self._files())

    def _make_room(self, left: int) -> int:
        """Remove what was read longest ago until at most `left` bytes stay; returns how many do."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= left:
                break
            path.unlink(missing_ok=True)
            total -= size
            with suppress(OSError):  # others are in it
                path.parent.rmdir()
        return total

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each was read, the bytes that it takes, and where it is. Hold the lock: what is half written is a dead writer's."""
        for here, _, names in os.walk(self.folder):
            for name in names:
                path = Path(here, name)
                if here == str(self.folder) and name in (TOTAL, LOCK, MARK):
                    continue
                with suppress(FileNotFoundError):
                    status = path.stat()
                    yield (0.0 if name.startswith(".") else status.st_mtime), _on_disk(status.st_size), path

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """The right to write; False: others had it for too long."""
        with self._own, (self.folder / LOCK).open("ab") as file:
            end = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        yield False
                        return
                    time.sleep(0.002)
            yield True

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writes:
                self._writes = False
                self._say(f"{disk_words(error, self.folder)}: going on without keeping what is read in it")


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
