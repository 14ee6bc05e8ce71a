"""Is somebody working in this folder? A lock that holds on a shared file system, and says who holds it.

The lock is a file that is linked into place, which every file system does for one comer alone. It names its owner: host,
process and the moment that process began. On the owner's own machine one looks whether that process lives; from another
machine one looks at the heartbeat, the file's time of change, held against the file system's own clock. A lock whose owner
is gone is taken over, with a word. An owner elsewhere that may have died just now is watched until it says that it lives or
has been silent for too long: a job that is begun again because its machine died goes on by itself.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vidssl.errors import BusyError
from vidssl.files import storage_error
from vidssl.marks import LOCK

__all__ = [
    "HEARTBEAT_S",
    "STALE_S",
    "Owner",
    "died_here",
    "heartbeat",
    "held",
    "myself",
    "named",
    "owner_of",
    "token_of",
]

HEARTBEAT_S = 10.0
"""Seconds from one heartbeat to the next."""
STALE_S = 90.0
"""Seconds without a heartbeat after which an owner on another machine counts as gone."""

_TAKEOVERS = 3
_ours: dict[Path, int] = {}  # folders that this process holds, with how often
_guard = threading.Lock()


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Its machine's name.
        machine: Boot and process space in which `pid` means something.
        pid: Its process.
        began: When that process began, in clock ticks since boot: a number that was used again differs.
        doing: What it does, for people: train, pack …
        since: When the lock was taken, for people.
        token: Tells two locks apart.
    """

    host: str
    machine: str
    pid: int
    began: int
    doing: str
    since: str
    token: str


@contextmanager
def held(folder: Path, doing: str, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock of `folder`, which is made where it is missing (and removed again when it stays empty).

    A process that holds it already may take it again.

    Args:
        folder: A run or a packed folder; on a disk of this machine or one that many share.
        doing: What the others are told: `train`, `pack` …
        say: Told when the lock of an owner that is gone is taken over.

    Raises:
        BusyError: another process holds it; names which, where and since when.
        StorageError: the folder cannot be written.
    """
    place = folder.expanduser().resolve()
    with _guard:
        _ours[place] = _ours.get(place, 0) + 1
        first = _ours[place] == 1
    try:
        if not first:
            yield
            return
        with _taken(place, doing, say):
            yield
    finally:
        with _guard:
            _ours[place] -= 1
            if not _ours[place]:
                del _ours[place]


def owner_of(folder: Path) -> Owner | None:
    """Who holds the lock of `folder` now; None when nobody does, or nobody that lives."""
    path = folder / LOCK
    owner = _read(path)
    return None if owner is None or _gone(path, owner) else owner


def token_of(folder: Path) -> str:
    """What tells the lock of `folder` from any other; "" where there is none, or it cannot be read."""
    return _token(folder / LOCK)


def heartbeat(folder: Path) -> float | None:
    """When the owner of the lock of `folder` last said that it lives, by the clock of the file system; None where that cannot be read."""
    try:
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return None


@contextmanager
def _taken(folder: Path, doing: str, say: Callable[[str], None]) -> Iterator[None]:
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = _take(folder, doing, say)
        _sweep(folder / LOCK)
    except OSError as error:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise storage_error(error, folder) from error
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / LOCK, owner, stop, say), name="lock-heartbeat", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with suppress(OSError):
            if os.getpid() == owner.pid and _token(folder / LOCK) == owner.token:
                (folder / LOCK).unlink()
            if made:
                folder.rmdir()  # refused by the system where anything is in it


def _take(folder: Path, doing: str, say: Callable[[str], None]) -> Owner:
    path, owner = folder / LOCK, myself(doing)
    for _ in range(_TAKEOVERS):
        if _linked(path, owner):
            return owner
        before = _read(path)
        if before is None and not path.exists():
            continue  # released just now
        if not _gone(path, before):
            if before is None or _here(before) or not _falls_silent(path, before, say):
                break
            continue
        if _removed(path, before):
            who = "an owner that left no name" if before is None else f"{named(before)}, which is gone"
            say(f"{folder}: the lock of {who}, is taken over")
    before = _read(path)
    who = "another process" if before is None else f"{named(before)}, since {before.since}"
    raise BusyError(f"{folder} is in use by {who}; wait for it, stop it, or give another folder")


def _linked(path: Path, owner: Owner) -> bool:
    """Make the lock, whole at once; False when there is one."""
    mine = path.with_name(f"{path.name}.{owner.token}")
    try:
        mine.write_text(json.dumps(asdict(owner)))
        try:
            os.link(mine, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: exclusive creation is the next best
            if path.exists():
                return False
            with suppress(FileExistsError), path.open("x") as stream:
                stream.write(mine.read_text())
        return _token(path) == owner.token
    finally:
        mine.unlink(missing_ok=True)


def _removed(path: Path, judged: Owner | None) -> bool:
    """Take a dead owner's lock away; of several that try one does, and a lock newer than the one judged goes back."""
    away = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return False
    try:
        if _token(away) == ("" if judged is None else judged.token):
            return True
        with suppress(OSError):
            os.link(away, path)
        return False
    finally:
        away.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed comers left beside the lock: files that are too old to belong to one that is still at it."""
    now = path.stat().st_mtime  # just made, so the clock of the file system
    for left in path.parent.glob(f"{path.name}.*"):
        with suppress(OSError):
            if now - left.stat().st_mtime > STALE_S:
                left.unlink()


def _falls_silent(path: Path, owner: Owner, say: Callable[[str], None]) -> bool:
    """Watch an owner on another machine: False as soon as its heartbeat moves, True when it has been silent for too long, or left."""
    beat, said = _beat_of(path), False
    while _token(path) == owner.token and _quiet_s(path) <= STALE_S:
        if _beat_of(path) != beat:
            return False
        if not said and _quiet_s(path) > 2 * HEARTBEAT_S:
            left = STALE_S - _quiet_s(path)
            say(
                f"{path.parent}: {named(owner)} holds it and says nothing; it counts as gone in {left:.0f} s, until then it is waited for"
            )
            said = True
        time.sleep(min(1.0, STALE_S / 10))
    return True


def _beat_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _here(owner: Owner) -> bool:
    here = myself("")
    return (owner.host, owner.machine) == (here.host, here.machine)


def died_here(owner: Owner) -> bool:
    """Whether an owner was a process of this machine that is no more; of one elsewhere nobody here can say."""
    return _here(owner) and _began(owner.pid) != owner.began


def _gone(path: Path, owner: Owner | None) -> bool:
    if owner is not None and _here(owner):
        return died_here(owner)
    return _quiet_s(path) > STALE_S


def _quiet_s(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system that holds the lock."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        with suppress(OSError):  # a folder that one may only read has no clock to ask
            return time.time() - path.stat().st_mtime
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _beat(path: Path, owner: Owner, stop: threading.Event, say: Callable[[str], None]) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            if _token(path) != owner.token:
                say(f"{path.parent}: the lock of this process was taken over by another; two may be writing here")
                return
            os.utime(path)
        except OSError:
            continue  # a store that is away for a moment: the next beat tries again


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _token(path: Path) -> str:
    owner = _read(path)
    return "" if owner is None else owner.token


def named(owner: Owner) -> str:
    """An owner, for people."""
    return f"`vidssl {owner.doing}` (process {owner.pid} on {owner.host})"


def myself(doing: str) -> Owner:
    """This process as an owner, with a token of its own."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Owner(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()), doing, since, uuid.uuid4().hex)


def _machine() -> str:
    try:  # two containers of one host have process numbers of their own
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _began(pid: int) -> int:
    """When a process began, in clock ticks since boot; -1 when there is none, or it is a dead one nobody has buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])
