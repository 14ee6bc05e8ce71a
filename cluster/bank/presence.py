"""Is the bank there? An outage is one sentence, when it is over: with what the bank came back with, and what it cost.

One that lasts is told before, too: a user who waits should not have to guess.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Presence"]


class Presence:
    """What one rank knows of the bank's being there. Methods may be called from any thread.

    Args:
        say: Told the sentences.
        away_s: Seconds without an answer after which a dropped push means that the bank is away, and seconds of an outage
            after which it is told although it goes on.
    """

    def __init__(self, say: Callable[[str], None], away_s: float) -> None:
        self._say, self._away_s = say, away_s
        self._lock = threading.Lock()
        self._answered_at = time.monotonic()
        self._since: float | None = None
        self._why, self._told, self._process = "", False, 0
        self._dropped = self._rows = self._outages = 0
        self._seconds, self._over_s = 0.0, -1.0

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
        self._tell_if_long()

    def fell_back(self, rows: int) -> None:
        """So many rows of a batch had no positives."""
        with self._lock:
            self._rows += rows if self._since is not None else 0
        self._tell_if_long()

    def answered(self) -> bool:
        """The bank answered; returns whether it was away: `seen` then says what it came back with."""
        with self._lock:
            now = time.monotonic()
            self._answered_at, since, self._since = now, self._since, None
            if since is not None:
                self._over_s = max(self._over_s, 0.0) + now - since
                self._seconds += now - since
        return since is not None

    def seen(self, process: int, restart: str) -> None:
        """The bank's own account of itself.

        Args:
            process: Number of its process.
            restart: What it began with, where it took the place of a process that was lost; else "".
        """
        with self._lock:
            over_s, self._over_s = self._over_s, -1.0
            before, self._process = self._process, process
            dropped, rows, self._told = self._dropped, self._rows, False
        if over_s < 0 and (not restart or before in (0, process)):
            return
        cost = f"{rows} rows were trained without mined positives and {dropped} pushes were dropped"
        away = "" if over_s < 0 else f"; it was away for {over_s:.0f} s, in which {cost}"
        self._say((restart or "the bank is back") + away)

    def read(self) -> dict[str, float | None]:
        """Since the start: how often the bank was away, and for how long in all, this time included."""
        with self._lock:
            open_s = 0.0 if self._since is None else time.monotonic() - self._since
            return {"bank/outages": float(self._outages), "bank/away_s": self._seconds + open_s}

    def _away(self, why: str) -> None:
        with self._lock:
            if self._since is not None:
                return
            self._since, self._why = time.monotonic(), why
            if self._over_s >= 0:
                return  # it was back for a moment only, and nothing was said of it: still the same outage
            self._dropped = self._rows = 0
            self._outages += 1
        self._tell_if_long()

    def _tell_if_long(self) -> None:
        with self._lock:
            if self._since is None or self._told or time.monotonic() - self._since < self._away_s:
                return
            self._told = True
        self._say(
            f"the bank is away ({self._why}): training goes on, rows without mined positives fall back to their own "
            "instance until it is back"
        )
