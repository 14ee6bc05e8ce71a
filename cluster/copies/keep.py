"""Keep a run's copy in a store while the run goes on: what has changed is sent every few seconds, by threads of their own.

The training never waits for it, and a store that is away never stops a training: it is said, and tried again. Only who ends
waits until the copy is whole. A checkpoint is opened with all its files before the first is sent, so that one which is
replaced meanwhile is sent whole all the same; the newest goes first.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from cluster.copies.claim import Claim
from cluster.copies.files import FACTS, RECIPE, begun, group_of, is_ours, last_of_each, newest, on_disk, ordered
from pipelines.dataset.patience import ANSWERS
from pipelines.dataset.remote import RemoteStore
from pipelines.dataset.shards import file_sha256
from vidssl.errors import StorageError
from vidssl.marks import LOCK
from vidssl.saved.meta import META

__all__ = ["Copy", "kept_copy"]

Say = Callable[[str], None]

EVERY_S, LAST_S, FAILED_S = 10.0, 240.0, 30.0
"""Seconds from one look to the next; and for the last one: of a run that ended, and of one that failed."""
GROWN, OLD_S = 1.1, 300.0
"""A long file that grows (a log) is sent again when it is this much longer, or its copy this old."""
_LONG = 2**20
_THREADS, _OPEN = 4, 256
"""Files that are sent at once; files of a checkpoint that are held open meanwhile."""


class Sent(NamedTuple):
    """What is known of a file at the store.

    Attributes:
        size: Its bytes.
        changed: Its time of change on our disk, in nanoseconds.
        at: When it was sent, on this process's clock.
    """

    size: int
    changed: int
    at: float


class Copy:
    """What the store holds of a run, and what is sent next.

    Args:
        folder: Of the run.
        store: The place of its copy.
        claim: On that place.
        say: Told what happens.
        fresh: Whether another run is going to take the place of the one in the folder: that one is not looked at.
    """

    def __init__(self, folder: Path, store: RemoteStore, claim: Claim, say: Say, fresh: bool = False) -> None:
        self._folder, self._store, self._claim, self._say = folder, store, claim, say
        self._former: tuple[str, ...] = ()
        if fresh:
            self._former = self._run_here()
        self._run: tuple[str, ...] = ()
        self._names: dict[str, int] | None = None
        self._sent: dict[str, Sent] = {}
        self._away: float | None = None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="copy")

    def look(self, last: bool = False) -> bool:
        """Send what has changed; returns whether all of it is there now.

        Args:
            last: Whether what grows is sent too.
        """
        run = self._run_here()
        if self._claim.lost.is_set() or not run:
            return False
        if run != self._run:  # the first look, or `--fresh` has put another run in its place
            self._run, self._names, self._sent = run, None, {}
        try:
            names = self._there()
            due = [name for name, known in self._now().items() if self._due(name, known, last)]
            sent = [self._send(group) for group in ordered(due)]
            self._forget(names)
        except Exception as error:  # whatever it is, a training does not stop for it
            self._tell_of(error)
            return False
        if self._away is not None:
            self._say(f"{self._store.address} is back after {time.monotonic() - self._away:.0f} s: the copy goes on")
            self._away = None
        return all(sent)

    def close(self, seconds: float) -> None:
        """The last look, again and again until all is there.

        Raises:
            StorageError: it is not after `seconds`, or another process has the copy now.
        """
        until = time.monotonic() + seconds
        try:
            while not self.look(last=True):
                if self._claim.lost.is_set():
                    raise StorageError(
                        f"{self._store.address} was taken over by another process, so this run is copied no longer; "
                        f"it is whole in {self._folder}"
                    )
                if not self._run_here():
                    return  # refused before it was begun
                if time.monotonic() > until:
                    raise StorageError(
                        f"the copy at {self._store.address} lacks what changed last; the run is whole in {self._folder}: "
                        "type the same words again when the store is back"
                    )
                time.sleep(1.0)
        finally:
            self._pool.shutdown(cancel_futures=True)
        names = self._names or {}
        step = max(newest(names).values(), default=0)
        size = sum(names.values()) / 1e6
        self._say(f"{self._store.address} holds this run up to step {step}: {len(names)} files, {size:.1f} MB")

    def _run_here(self) -> tuple[str, ...]:
        try:
            found = begun((self._folder / FACTS).read_bytes())
        except OSError:
            return ()
        return () if found == self._former else found

    def _now(self) -> dict[str, Sent]:
        return {name: Sent(one.st_size, one.st_mtime_ns, 0.0) for name, one in on_disk(self._folder).items()}

    def _there(self) -> dict[str, int]:
        """What lies at the store: asked once, and cleared where it is of the run that this one replaces."""
        if self._names is not None:
            return self._names
        names = self._store.names()
        names.pop(LOCK, None)
        if FACTS in names and begun(self._store.read(FACTS)) != self._run:
            gone = sorted((name for name in names if is_ours(name, names)), key=lambda name: name != RECIPE)
            self._delete(gone)  # the recipe first: from here on it is no run
            names = {name: size for name, size in names.items() if name not in gone}
        now = self._now()
        same = [name for name, known in now.items() if names.get(name) == known.size]
        for name, equal in zip(same, self._pool.map(self._is_equal, same), strict=True):
            if equal:
                self._sent[name] = now[name]._replace(at=time.monotonic())
        self._names = names
        return names

    def _is_equal(self, name: str) -> bool:
        path = self._folder / name
        try:
            return path.stat().st_size == 0 or self._store.sha256(name) == file_sha256(path)
        except FileNotFoundError:
            return False

    def _due(self, name: str, now: Sent, last: bool) -> bool:
        before = self._sent.get(name)
        if before is None:
            return True
        if (before.size, before.changed) == (now.size, now.changed):
            return False
        return last or now.size < _LONG or now.size > GROWN * before.size or time.monotonic() - before.at > OLD_S

    def _send(self, names: Sequence[str]) -> bool:
        """Send files that belong together; False where one was gone before it could be opened."""
        began = time.monotonic()
        with ExitStack() as open_files:
            files: dict[str, BufferedReader] = {}
            if len(names) <= _OPEN and names and group_of(names[0]):
                try:
                    files = {name: open_files.enter_context(self._open(name)) for name in names}
                except FileNotFoundError:
                    return False
            lists = [name for name in names if name.endswith(f"/{META}")]
            self._delete([name for name in lists if name in (self._names or {})])  # no list while its parts change
            rest = [name for name in names if name not in lists]
            for part in (rest, lists):
                if not all(list(self._pool.map(lambda name: self._put(name, files.get(name), began), part))):
                    return False
        return True

    def _open(self, name: str) -> BufferedReader:
        return (self._folder / name).open("rb")

    def _put(self, name: str, opened: BufferedReader | None, began: float) -> bool:
        if self._claim.lost.is_set():
            return False
        try:
            file = opened or self._open(name)
        except FileNotFoundError:
            return False
        with file:
            facts = os.fstat(file.fileno())
            source: bytes | BufferedReader = file
            if group_of(name) is None:  # it may grow while it is sent
                source = file.read(facts.st_size)
                digest = hashlib.sha256(source).hexdigest()
            else:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            self._store.write(name, source, digest)
        self._sent[name] = Sent(facts.st_size, facts.st_mtime_ns, began)
        if self._names is not None:
            self._names[name] = facts.st_size
        return True

    def _forget(self, names: dict[str, int]) -> None:
        """Checkpoints and snapshots that the run removed are removed, each with its list first; never the newest of a kind.

        A folder that lost its checkpoints is what a copy is for.
        """
        groups = {group for group in map(group_of, names) if group is not None}
        for group in sorted(groups - last_of_each(names)):
            if (self._folder / group).is_dir():
                continue
            parts = [name for name in names if name.startswith(f"{group}/")]
            self._delete([name for name in parts if name.endswith(f"/{META}")])
            self._delete([name for name in parts if not name.endswith(f"/{META}")])

    def _delete(self, names: Sequence[str]) -> None:
        if names:
            self._store.delete(names)
        for name in names:
            self._sent.pop(name, None)
            if self._names is not None:
                self._names.pop(name, None)

    def _tell_of(self, error: Exception) -> None:
        if self._away is not None:
            return
        self._away = time.monotonic()
        step = max(newest(self._names or {}).values(), default=0)
        self._say(
            f"{self._why(error)}: the training goes on, its copy stays at step {step}; tried again every {EVERY_S:.0f} s"
        )

    def _why(self, error: Exception) -> str:
        if not isinstance(error, OSError):
            return f"the copy at {self._store.address} failed ({type(error).__name__}: {error})"
        reason = error.strerror or str(error)
        if error.filename is not None:  # on our own disk
            return f"{error.filename} cannot be read ({reason})"
        verb = "does not let us write" if isinstance(error, ANSWERS) else "cannot be reached"
        return f"{self._store.address} {verb} ({reason})"


@contextmanager
def kept_copy(folder: Path, store: RemoteStore, claim: Claim, say: Say, fresh: bool = False) -> Iterator[None]:
    """Keep the copy of `folder` for the length of the block, and make it whole at its end.

    The arguments are those of `Copy`.

    Raises:
        StorageError: at the end of a block that went well: the copy is not whole.
    """
    copy, stop = Copy(folder, store, claim, say, fresh), threading.Event()
    say(f"a copy of {folder} is kept at {store.address}: what changes is sent every {EVERY_S:.0f} s")
    thread = threading.Thread(target=_look, args=(copy, stop), name="copy", daemon=True)
    thread.start()
    try:
        try:
            yield
        except Exception:
            stop.set()
            thread.join()
            try:
                copy.close(FAILED_S)
            except StorageError as error:
                say(str(error))
            raise
        stop.set()
        thread.join()
        copy.close(LAST_S)
    finally:
        stop.set()


def _look(copy: Copy, stop: threading.Event) -> None:
    while not stop.wait(EVERY_S):
        copy.look()
