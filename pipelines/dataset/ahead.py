"""What will be needed soon? Parts of far files, fetched beside each other before they are asked for.

An answer of a store takes tens of milliseconds however small it is. So the parts that the coming batches need are asked for
together, a bounded number at once; neighbours in a file are one question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

__all__ = ["ReadAhead", "Span", "joined"]

GAP = 64 * 2**10
"""Bytes between two parts that are rather read than asked for twice."""
LARGEST = 8 * 2**20
"""Bytes of one question, unless a single part is larger."""


class Span(NamedTuple):
    """A part of a file: name, first byte, bytes."""

    name: str
    begin: int
    size: int

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.begin + self.size


Parts = Mapping[Span, bytes]
Fetch = Callable[[Sequence[Span]], Parts]


def joined(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans that are read with one question each: neighbours of one file, in order."""
    groups: list[list[Span]] = []
    for span in sorted(spans):
        group = groups[-1] if groups else []
        near = bool(group) and group[0].name == span.name and span.begin <= max(one.stop for one in group) + GAP
        if near and max(span.stop, group[-1].stop) - group[0].begin <= LARGEST:
            group.append(span)
        else:
            groups.append([span])
    return groups


class ReadAhead:
    """Fetches spans on threads of its own; asked from one thread.

    Args:
        fetch: Reads spans that are neighbours, from any thread; one attempt.
        at_once: Questions at a time.
        kept: Calls of `want` whose spans are kept; what an older one wanted is forgotten.
    """

    def __init__(self, fetch: Fetch, at_once: int, kept: int) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(at_once, "store")
        self._waves: deque[dict[Hashable, Future[Any]]] = deque(maxlen=kept)

    def want(self, spans: Iterable[Span], alone: Callable[[Span], bool]) -> None:
        """Begin to fetch spans that are not on their way yet, or failed.

        Args:
            spans: Which.
            alone: Those that are better not joined with others.
        """
        wave = {span: _whole(self.coming(span)) for span in dict.fromkeys(spans)}
        new = [span for span, future in wave.items() if future is None]
        single = [[span] for span in new if alone(span)]
        for group in [*single, *joined(span for span in new if [span] not in single)]:
            future = self._pool.submit(self._fetch, group)
            wave.update(dict.fromkeys(group, future))
        self._waves.append({span: future for span, future in wave.items() if future is not None})

    def want_each(self, works: Mapping[Hashable, Callable[[], Any]]) -> None:
        """Begin works that each fetch what they need, where none of that name is on its way yet, or it failed."""
        known = {name: _whole(self.coming(name)) for name in works}
        self._waves.append({name: known[name] or self._pool.submit(work) for name, work in works.items()})

    def coming(self, name: Hashable) -> Future[Any] | None:
        """The answer that holds a span, or of a work of that name, or will; None: nobody wanted it lately."""
        return next((wave[name] for wave in reversed(self._waves) if name in wave), None)

    def together(self, works: Sequence[Callable[[], None]]) -> None:
        """Do other work of the same kind, all of it at once; an OSError is left to who needs the result."""
        for future in [self._pool.submit(work) for work in works]:
            if not isinstance(error := future.exception(), OSError | None):
                raise error

    def close(self) -> None:
        """End the threads; what is on its way is dropped."""
        self._waves.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _whole(coming: Future[Any] | None) -> Future[Any] | None:
    failed = coming is not None and coming.done() and coming.exception() is not None
    return None if failed else coming
