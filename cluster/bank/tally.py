"""What did one rank's bank client do? Totals for who asks, and the numbers of the log since it was last read."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["WORST", "Tally"]

WORST = ("bank/fallback_ratio", "bank/age_p99", "bank/dropped", "bank/errors", "bank/outages", "bank/away_s")
"""Of these the log has the largest of all ranks, not their mean: one rank that trains without positives must be seen."""


class Tally:
    """Counts of one client. Methods may be called from any thread.

    Attributes:
        totals: Since the start: pushed, dropped, errors, taken_rows, fallback_rows, stale_rows, other_rows.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._ages: list[NDArray[np.int64]] = []
        self._stats: Mapping[str, float | str] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a total."""
        with self._lock:
            self.totals[name] += by
            self._since[name] += by

    def pushed_for(self, seconds: float) -> None:
        """Time that training spent on one push."""
        with self._lock:
            self._seconds += seconds

    def taken(self, ages: NDArray[np.int64], fallback: int, positives: int) -> None:
        """One batch: ages in steps of the rows that got positives, rows that got none, positives of all."""
        for name, by in (("taken_rows", len(ages) + fallback), ("fallback_rows", fallback), ("positives", positives)):
            self.count(name, by)
        with self._lock:
            self._ages.append(ages)

    def read(self, stats: Mapping[str, float | str], labelled: bool) -> dict[str, float | None]:
        """Numbers for the log since the last read; always the same names, None where there is nothing to measure yet.

        Args:
            stats: The bank's own counters, as last heard.
            labelled: Whether mining precision is measured.
        """
        with self._lock:
            since, self._since = self._since, Counter()
            seconds, self._seconds = self._seconds, 0.0
            ages, self._ages = np.concatenate([np.zeros(0, np.int64), *self._ages]), []
            dropped, errors = self.totals["dropped"], self.totals["errors"]
            before, self._stats = self._stats, stats
        half, most = np.percentile(ages, [50, 99]).tolist() if len(ages) else (None, None)
        taken = since["taken_rows"]
        row: dict[str, float | None] = {
            "bank_age_steps": float(ages.mean()) if len(ages) else None,
            "bank/age_p50": half,
            "bank/age_p99": most,
            "bank/push_ms": 1e3 * seconds / max(since["pushed"] + since["dropped"], 1),
            "bank/dropped": float(dropped),
            "bank/errors": float(errors),
            "bank/fallback_ratio": since["fallback_rows"] / taken if taken else None,
            "mining/positives": since["positives"] / taken if taken else None,
        }
        row |= _rates(before, stats)
        row |= {
            f"bank/{name}": _number(stats, name)
            for name in ("filled", "mine_ms", "late_rows", "rejected", "snapshot_age_steps")
        }
        if labelled:
            row |= {f"mining/{name}": _number(stats, name) for name in ("precision_at_k", "hit_at_k")}
        return row


def _rates(before: Mapping[str, float | str], now: Mapping[str, float | str]) -> dict[str, float | None]:
    """Rows mined and needed per second, and the share of the rows asked for that no row in the bank stands for yet."""
    row: dict[str, float | None] = dict.fromkeys(("bank/mined_per_s", "bank/needed_per_s", "bank/unseen_ratio"))
    names = ("seconds", "mined_rows", "needed_rows", "unseen_rows")
    if any(name not in before or name not in now for name in names):
        return row
    seconds, mined, needed, unseen = (float(now[name]) - float(before[name]) for name in names)
    if seconds <= 0 or mined < 0 or needed < 0:  # nothing new was heard, or the bank was restarted
        return row
    asked = needed + unseen
    return {
        "bank/mined_per_s": mined / seconds,
        "bank/needed_per_s": needed / seconds,
        "bank/unseen_ratio": unseen / asked if asked else None,
    }


def _number(stats: Mapping[str, float | str], name: str) -> float | None:
    return float(stats[name]) if name in stats else None
