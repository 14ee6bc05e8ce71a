"""Who keeps a copy in a store? One process at a time: an object says which, made by whoever comes first.

A store has no process to ask, and machines have clocks of their own. So the owner writes its object anew again and again,
and who finds one watches it: where it changes its owner lives; where it stays as it is for `STALE_S` the owner is gone, and
so it is at once where it was a process of this machine that is no more.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from pipelines.dataset.patience import AGAIN, ANSWERS, Patience
from pipelines.dataset.remote import RemoteStore
from vidssl.errors import BusyError, DataError
from vidssl.lock import STALE_S, Owner, died_here, myself, named
from vidssl.marks import LOCK

__all__ = ["BEAT_S", "Claim", "claimed"]

Say = Callable[[str], None]

BEAT_S = 15.0
"""Seconds from one sign of life to the next."""
_LOOK_S = 2.0
_PATIENCE_S = 240.0


class Claim:
    """A copy that is ours for the length of `claimed`.

    Attributes:
        lost: Set when another process took it over.
    """

    def __init__(self, store: RemoteStore, owner: Owner) -> None:
        self._store, self._owner, self._beats = store, owner, 0
        self.lost = threading.Event()

    def beat(self) -> None:
        """Say that we live, unless the claim is another's by now.

        Raises:
            OSError: the store does not answer.
        """
        there = _owner_in(_read(self._store))
        if there is not None and there.token != self._owner.token:
            self.lost.set()
            return
        self._beats += 1
        _write(self._store, self._owner, self._beats)

    def release(self) -> None:
        """Remove the object where it is ours."""
        with suppress(OSError):
            there = _owner_in(_read(self._store))
            if there is not None and there.token == self._owner.token:
                self._store.delete([LOCK])


@contextmanager
def claimed(store: RemoteStore, doing: str, say: Say) -> Iterator[Claim]:
    """Be the one that keeps the copy at a place.

    Args:
        store: The place.
        doing: What others are told: `train`.
        say: Told when it is waited for, and when it is taken over.

    Raises:
        BusyError: another process keeps it.
        DataError: the store does not let us write.
        StorageError: the store cannot be reached.
    """
    owner = myself(doing)
    patience = Patience(_PATIENCE_S, say, advice=AGAIN, what="written")
    try:
        patience.insist(store.said(LOCK), lambda: _take(store, owner, say), ANSWERS)
    except OSError as error:
        raise DataError(f"{store.address} cannot be written: {error.strerror}") from None
    claim, stop = Claim(store, owner), threading.Event()
    thread = threading.Thread(target=_beat, args=(claim, stop), name="copy-heartbeat", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        stop.set()
        thread.join()
        claim.release()


def _beat(claim: Claim, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S) and not claim.lost.is_set():
        with suppress(OSError):  # who copies says that the store is away
            claim.beat()


def _take(store: RemoteStore, owner: Owner, say: Say) -> None:
    while not store.create(LOCK, _text(owner, 0)):
        found = _read(store)
        there = _owner_in(found)
        if there is not None and there.token == owner.token:
            return  # written by an attempt whose answer was lost
        if found is None or not _falls_silent(store, found, there, say):
            continue
        _write(store, owner, 0)
        time.sleep(min(1.0, _LOOK_S))  # of several that take it over the last one has it
        last = _owner_in(_read(store))
        if last is not None and last.token == owner.token:
            say(f"{store.address}: the copy of {_who(there)}, which is gone, is taken over")
            return


def _falls_silent(store: RemoteStore, found: bytes, there: Owner | None, say: Say) -> bool:
    """Watch an owner: True when it is gone, False when it let go.

    Raises:
        BusyError: it lives.
    """
    if there is not None and died_here(there):
        return True
    say(f"{store.address} is kept by {_who(there)}: whether it lives is seen in {STALE_S:.0f} s at most")
    until = time.monotonic() + STALE_S
    while time.monotonic() < until:
        time.sleep(_LOOK_S)
        now = _read(store)
        if now is None:
            return False
        if now != found:
            raise BusyError(
                f"{store.address} is kept by {_who(_owner_in(now))}, which lives; wait for it, stop it, or type trainer.copy_to=OTHER"
            )
    return True


def _who(owner: Owner | None) -> str:
    return "a process that left no name" if owner is None else f"{named(owner)}, since {owner.since}"


def _read(store: RemoteStore) -> bytes | None:
    try:
        return store.read(LOCK)
    except FileNotFoundError:
        return None


def _write(store: RemoteStore, owner: Owner, beats: int) -> None:
    store.write(LOCK, _text(owner, beats), "")


def _text(owner: Owner, beats: int) -> bytes:
    return json.dumps({**asdict(owner), "beats": beats}).encode()


def _owner_in(text: bytes | None) -> Owner | None:
    try:
        tree = json.loads(text or b"")
        tree.pop("beats")
        return Owner(**tree)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
