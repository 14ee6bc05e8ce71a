"""Which rows are mined next? Those with the oldest positives first, of these the ones needed soonest, ranks in turn.

While the miners keep up all of it is mined and the order is that of the deadlines. When they do not, going by deadline
alone would mine the same lucky rows again and again; by age everybody's turn comes, and no row is left with nothing. A
row whose step came before its turn is not forgotten: it is mined as soon as nothing is needed sooner.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LATE", "Part", "Requests"]

LATE = -1
"""Rank and step of rows that are mined after their step has come."""

Ids = NDArray[np.int64]
Key = tuple[int, int]
"""Minus the urgency, and the step that needs the rows: the smallest is mined first."""


@dataclass(frozen=True)
class Part:
    """Rows that one rank needs at one step, or rows of before (rank and step are `LATE`).

    Attributes:
        rank: Who needs them.
        step: When.
        urgency: See `Requests.note`.
        noted: The step at which that was said.
        ids: int64 [R].
    """

    rank: int
    step: int
    urgency: int
    noted: int
    ids: Ids


class Requests:
    """Rows to mine, by urgency, deadline and rank. Methods may be called from any thread; `take` waits, nothing else does.

    Memory is bounded: a rank holds what it needs from its last push on, late rows are one flag a video.

    Args:
        n_slots: N.
    """

    def __init__(self, n_slots: int) -> None:
        self._work = threading.Condition()
        self._open: dict[int, dict[int, dict[int, Part]]] = {}  # rank → step → urgency
        self._keys: list[Key] = []
        self._newest: dict[int, int] = {}
        self._noted: dict[int, int] = {}
        self._served: Counter[int] = Counter()
        self._late = np.zeros(n_slots, bool)
        self._cursor = self._late_rows = 0
        self._closed = False

    def come(self, rank: int, step: int) -> None:
        """This rank has done `step`: what it needed up to the next one is late now."""
        with self._work:
            if step <= self._newest.get(rank, -1):
                return
            self._newest[rank] = step
            mine = self._open.get(rank, {})
            for over in [needed for needed in mine if needed <= step + 1]:
                for part in mine.pop(over).values():
                    self._belate(part.ids)

    def is_new(self, rank: int, step: int) -> bool:
        """Whether this rank said nothing yet of what it needs at `step`."""
        with self._work:
            return step > self._noted.get(rank, -1) and step > self._newest.get(rank, -1) + 1

    def note(self, rank: int, step: int, ids: Ids, urgency: Ids) -> None:
        """A rank will need these rows (int64 [R]) at `step`; said twice, it counts once.

        Args:
            rank: Who.
            step: When; a rank names steps in rising order.
            ids: Which videos.
            urgency: int64 [R], larger is mined first: whole epochs that their positives are old.
        """
        with self._work:
            if step <= self._noted.get(rank, -1) or step <= self._newest.get(rank, -1) + 1:
                return
            self._noted[rank] = step
            noted = self._newest.get(rank, -1)
            parts = {int(one): Part(rank, step, int(one), noted, ids[urgency == one]) for one in np.unique(urgency)}
            for part in parts.values():
                self._add(part)

    def again(self, parts: list[Part]) -> None:
        """What was taken and not mined (a miner died) is to be mined still."""
        with self._work:
            for part in parts:
                if part.rank == LATE or part.step <= self._newest.get(part.rank, -1) + 1:
                    self._belate(part.ids)
                else:
                    self._served[part.rank] -= len(part.ids)
                    self._add(part)

    def take(self, rows: int, timeout_s: float | None = None) -> list[Part]:
        """At most `rows` rows to mine now, at least one; waits for work. Empty: none came in time, or this was closed."""
        with self._work:
            self._work.wait_for(lambda: self._closed or self._late_rows or self._waiting(), timeout_s)
            if self._closed:
                return []
            taken, room = [], rows
            while room > 0 and (part := self._next(room)) is not None:
                taken.append(part)
                room -= len(part.ids)
            return taken or self._take_late(rows)

    def counts(self) -> tuple[int, int]:
        """Rows that wait for a step to come, and rows that are late."""
        with self._work:
            soon = sum(len(part.ids) for mine in self._open.values() for at in mine.values() for part in at.values())
            return soon, self._late_rows

    def close(self) -> None:
        """Nobody is waited for any more."""
        with self._work:
            self._closed = True
            self._work.notify_all()

    def _add(self, part: Part) -> None:
        if not len(part.ids):
            return
        soon = np.unique(part.ids[self._late[part.ids]])
        self._late[soon] = False
        self._late_rows -= len(soon)
        at = self._open.setdefault(part.rank, {}).setdefault(part.step, {})
        there = at.get(part.urgency)
        if there is not None:  # the rest of it is still here
            part = Part(part.rank, part.step, part.urgency, part.noted, np.concatenate([there.ids, part.ids]))
        at[part.urgency] = part
        key = (-part.urgency, part.step)
        if key not in self._keys:
            heapq.heappush(self._keys, key)
        self._work.notify()

    def _waiting(self) -> bool:
        return any(self._open.values())

    def _next(self, room: int) -> Part | None:
        while self._keys:
            urgency, step = -self._keys[0][0], self._keys[0][1]
            ranks = [rank for rank, mine in self._open.items() if urgency in mine.get(step, ())]
            if not ranks:
                heapq.heappop(self._keys)
                continue
            rank = min(ranks, key=lambda one: (self._served[one], one))
            at = self._open[rank][step]
            part = at.pop(urgency)
            ids, rest = part.ids[:room], part.ids[room:]
            if len(rest):
                at[urgency] = Part(rank, step, urgency, part.noted, rest)
            elif not at:
                del self._open[rank][step]
            self._served[rank] += len(ids)
            return Part(rank, step, urgency, part.noted, ids)
        return None

    def _take_late(self, rows: int) -> list[Part]:
        if not self._late_rows:
            return []
        found = self._cursor + np.flatnonzero(self._late[self._cursor :])[:rows]
        if not len(found):
            self._cursor = 0
            found = np.flatnonzero(self._late)[:rows]
        self._cursor = int(found[-1]) + 1
        self._late[found] = False
        self._late_rows -= len(found)
        return [Part(LATE, LATE, 0, LATE, found)]

    def _belate(self, ids: Ids) -> None:
        fresh = np.unique(ids[~self._late[ids]])
        self._late[fresh] = True
        self._late_rows += len(fresh)
        if len(fresh):
            self._work.notify()
