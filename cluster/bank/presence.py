"""Is the bank there? Said once in words when it is away, and once when it is back, with what that cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Presence"]


class Presence:
    """What one rank knows of the bank's being there. Methods may be called from any thread.

    Args:
        say: Told the sentences.
        away_s: Seconds without an answer after which a dropped push means that the bank is away.
    """

    def __init__(self, say: Callable[[str], None], away_s: float) -> None:
        self._say, self._away_s = say, away_s
        self._lock = threading.Lock()
        self._answered_at = time.monotonic()
        self._since: float | None = None
        self._dropped = self._rows = self._outages = 0
        self._seconds = 0.0

    def lost(self, why: str) -> None:
        """A call failed because the bank cannot be reached."""
        self._away(why)

    def dropped(self) -> None:
        """A push found no room: the bank is slow, or silent for so long that it counts as away."""
        silent = time.monotonic() - self._answered_at
        if silent > self._away_s:
            self._away(f"no answer for {silent:.0f} s")
        with self._lock:
            self._dropped += self._since is not None

    def fell_back(self, rows: int) -> None:
        """So many rows of a batch had no positives."""
        with self._lock:
            self._rows += rows if self._since is not None else 0

    def answered(self) -> None:
        """The bank answered."""
        with self._lock:
            now = time.monotonic()
            self._answered_at, since, self._since = now, self._since, None
            dropped, rows = self._dropped, self._rows
            self._seconds += 0.0 if since is None else now - since
        if since is not None:
            self._say(
                f"the bank is back after {now - since:.0f} s; meanwhile {rows} rows were trained without "
                f"mined positives and {dropped} pushes were dropped"
            )

    def read(self) -> dict[str, float | None]:
        """Since the start: how often the bank was away, and for how long in all, this time included."""
        with self._lock:
            open_s = 0.0 if self._since is None else time.monotonic() - self._since
            return {"bank/outages": float(self._outages), "bank/away_s": self._seconds + open_s}

    def _away(self, why: str) -> None:
        with self._lock:
            if self._since is not None:
                return
            self._since, self._dropped, self._rows = time.monotonic(), 0, 0
            self._outages += 1
        self._say(
            f"the bank is away ({why}): training goes on, rows without mined positives fall back to their own instance "
            "until it is back"
        )
