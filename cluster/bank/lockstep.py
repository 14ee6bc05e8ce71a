"""What makes a deterministic run repeat bit for bit? Steps are written whole, ranks in order, and mined before the next.

The pushes of step s are held until every rank has sent its own; then they are written in rank order, and what every rank
asked for with them is mined from exactly that state, before any push of step s+1 is written. Results wait, with the
vectors of that state, until the run is well past their step.
"""

from __future__ import annotations

import threading

from cluster.bank.spec import Push
from vidssl.batch import Positives

__all__ = ["Lockstep"]


class Lockstep:
    """Pushes that wait for their step, and results that wait for their rank. Methods may be called from any thread.

    Args:
        world: Ranks that push every step.
        start: The step that comes first.
        lookahead: Steps between a push and the rows that it asks for.

    Attributes:
        expected: The step that is written next: all before it are written and mined.
    """

    def __init__(self, world: int, start: int, lookahead: int) -> None:
        self.world, self.expected, self._lookahead = world, start, lookahead
        self._changed = threading.Condition()
        self._arrived: dict[int, dict[int, Push]] = {}
        self._results: dict[tuple[int, int], Positives] = {}
        self._closed = False

    def arrive(self, push: Push) -> bool:
        """Hold a push until its step is whole; False: that step is over."""
        with self._changed:
            if push.step < self.expected:
                return False
            self._arrived.setdefault(push.step, {})[push.rank] = push
            self._changed.notify_all()
            return True

    def take(self) -> list[Push]:
        """All ranks' pushes of the next step, in rank order; waits until they are here. Empty: this was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._arrived.get(self.expected, ())) == self.world)
            if self._closed:
                return []
            arrived = self._arrived.pop(self.expected)
            return [arrived[rank] for rank in sorted(arrived)]

    def publish(self, rank: int, step: int, found: Positives) -> None:
        """What this rank asked for is mined."""
        with self._changed:
            self._results[rank, step] = found
            for key in [key for key in self._results if key[0] == rank and key[1] < step - 8 * self._lookahead]:
                del self._results[key]  # it was fetched, or nobody came for it

    def done(self) -> None:
        """The step that was taken is written and mined."""
        with self._changed:
            self.expected += 1
            self._changed.notify_all()

    def result(self, rank: int, step: int) -> Positives | None:
        """What this rank asked for, where it is mined; asked again, the same again."""
        with self._changed:
            return self._results.get((rank, step))

    def settle(self, step: int, timeout_s: float) -> bool:
        """Wait until every step before `step` is written. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self.expected >= step, timeout_s) and not self._closed

    def close(self) -> None:
        """Nobody is waited for any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
