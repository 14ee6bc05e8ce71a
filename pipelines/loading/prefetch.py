"""Work ahead of the one who needs it: an iterator run on a background thread behind a bounded queue."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetched"]

Item = TypeVar("Item")

POLL_S = 0.2


class _End:
    """What the thread leaves last: nothing more, or why there is nothing more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Prefetched(Generic[Item]):
    """Items of an iterator, made on a thread of their own, at most `depth` of them waiting.

    An exception of the iterator is raised by the `next` that would have given its item. The thread looks every
    0.2 s whether it is still wanted, so neither `close` nor the end of the process waits for long.

    Args:
        make: Called on the thread; gives the iterator (a generator is closed there too).
        depth: Items that may wait.
        name: Name of the thread.
        closed: Set when it is no longer wanted, for an iterator that waits itself.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[Item]],
        depth: int,
        name: str,
        closed: threading.Event | None = None,
    ) -> None:
        self._ready: queue.Queue[Item | _End] = queue.Queue(depth)
        self._end: _End | None = None
        closed = closed or threading.Event()
        self._thread = threading.Thread(target=_work, args=(make, self._ready, closed), name=name, daemon=True)
        self._thread.start()
        # Also at the end of the process: a thread that is still inside DALI while Python goes away can crash it.
        self._stop = weakref.finalize(self, _stop, self._thread, closed)

    def __iter__(self) -> Iterator[Item]:
        return self

    @property
    def filled(self) -> float:
        """Share of the `depth` items that are waiting."""
        return self._ready.qsize() / self._ready.maxsize

    def __next__(self) -> Item:
        if self._end is None:
            item = self._take()
            if not isinstance(item, _End):
                return item
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        raise StopIteration

    def close(self) -> None:
        """End the thread after the item it is making; what was made is dropped. May be called again."""
        self._stop()
        self._end = self._end or _End()

    def _take(self) -> Item | _End:
        while True:
            try:
                return self._ready.get(timeout=POLL_S)  # a timeout, so that Ctrl-C is heard while waiting
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    return _End()


def _work(make: Callable[[], Iterator[Item]], ready: queue.Queue[Item | _End], closed: threading.Event) -> None:
    end = _End()
    try:
        items = make()
        try:
            for item in items:
                if not _put(ready, item, closed):
                    return
        finally:
            if isinstance(items, Generator):
                items.close()
    except BaseException as error:  # not swallowed: the caller of next() gets it
        end = _End(error)
    _put(ready, end, closed)


def _put(ready: queue.Queue[Item | _End], item: Item | _End, closed: threading.Event) -> bool:
    while not closed.is_set():
        try:
            ready.put(item, timeout=POLL_S)
        except queue.Full:
            continue
        return True
    return False


def _stop(thread: threading.Thread, closed: threading.Event) -> None:
    closed.set()
    if thread is not threading.current_thread():
        thread.join()
