"""What did one rank's bank client do? Totals for who asks, and the numbers of the log since it was last read."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

__all__ = ["Tally"]


class Tally:
    """Counts of one client. Methods may be called from any thread.

    Attributes:
        totals: Since the start: pushed, dropped, errors, taken_rows, fallback_rows, stale_rows, other_rows.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._seconds = self._ages = 0.0

    def count(self, name: str, by: int = 1) -> None:
        """Add to a total."""
        with self._lock:
            self.totals[name] += by
            self._since[name] += by

    def pushed_for(self, seconds: float) -> None:
        """Time that training spent on one push."""
        with self._lock:
            self._seconds += seconds

    def served(self, ages: float) -> None:
        """Sum of the ages, in steps, of the rows of one batch that got positives."""
        with self._lock:
            self._ages += ages

    def read(self, stats: Mapping[str, float | str], labelled: bool) -> dict[str, float | None]:
        """Numbers for the log since the last read; always the same names, None where there is nothing to measure yet.

        Args:
            stats: The bank's own counters, as last heard.
            labelled: Whether mining precision is measured.
        """
        with self._lock:
            since, self._since = self._since, Counter()
            seconds, ages, self._seconds, self._ages = self._seconds, self._ages, 0.0, 0.0
            dropped, errors = self.totals["dropped"], self.totals["errors"]
        served = since["taken_rows"] - since["fallback_rows"]
        row: dict[str, float | None] = {
            "bank_age_steps": ages / served if served else None,
            "bank/push_ms": 1e3 * seconds / max(since["pushed"] + since["dropped"], 1),
            "bank/dropped": float(dropped),
            "bank/errors": float(errors),
            "bank/fallback_ratio": since["fallback_rows"] / max(since["taken_rows"], 1),
            "mining/positives": since["positives"] / max(since["taken_rows"], 1),
        }
        names = ["filled", "mine_ms", "requests_dropped", "rejected"]
        row |= {f"bank/{name}": float(stats.get(name, 0.0)) for name in names}
        if labelled:
            known = {name: stats.get(name) for name in ("precision_at_k", "hit_at_k")}
            row |= {f"mining/{name}": None if value is None else float(value) for name, value in known.items()}
        return row
