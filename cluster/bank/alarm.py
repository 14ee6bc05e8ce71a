"""Does mining keep up? Said in words when many rows are trained without mined positives for long, or with old ones, and what to set."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

__all__ = ["AgeAlarm", "FallbackAlarm", "alarms_of"]

if TYPE_CHECKING:
    from cluster.bank.spec import BankSpec

STEPS, SHARE = 100, 0.05
PASSES, KEPT_UP = 2.0, 0.9
"""Epochs that positives may be old, and share of the needed rows that is mined, before it is said."""
FEWEST = 1024
"""Slots that a pool is not made smaller than, in advice."""


class FallbackAlarm:
    """Looks at the rows of the log: more than 5 % of the worst rank's rows over 100 steps, beyond videos never seen before.

    A video that was never pushed has no row to be mined with: the first pass over the data falls back by itself.

    Args:
        shards: As `mining.shards`.
    """

    def __init__(self, shards: int = 1) -> None:
        self._shards = shards
        self._rows: deque[tuple[int, float, float]] = deque()  # steps, share, pushes dropped by then
        self._last, self._said = -1, False

    def note(self, row: Mapping[str, float]) -> str:
        """A sentence where there is something to say now, else ""."""
        steps, self._last = int(row["step"]) - self._last, int(row["step"])
        if "bank/fallback_ratio" not in row:
            return ""
        missed = max(row["bank/fallback_ratio"] - row.get("bank/unseen_ratio", 0.0), 0.0)
        self._rows.append((max(steps, 1), missed, row.get("bank/dropped", 0.0)))
        while sum(one for one, *_ in self._rows) - self._rows[0][0] >= STEPS:
            self._rows.popleft()
        seen = sum(one for one, *_ in self._rows)
        if seen < STEPS:
            return ""
        share = sum(one * ratio for one, ratio, _ in self._rows) / seen
        before, self._said = self._said, share > SHARE
        return "" if before or not self._said else self._sentence(seen, share, row)

    def _sentence(self, steps: int, share: float, row: Mapping[str, float]) -> str:
        said = f"over the last {steps} steps {100 * share:.0f} % of a rank's rows were trained without mined positives"
        mined, needed = row.get("bank/mined_per_s"), row.get("bank/needed_per_s")
        if row.get("bank/away_s", 0.0) and mined is None:
            return f"{said}: the bank is away; look at the run's Ray log"
        dropped = self._rows[-1][2] - self._rows[0][2]
        if dropped > SHARE * steps:
            return (
                f"{said}: the bank's process is asked more often than it can answer, and {dropped:.0f} pushes of a rank were "
                "dropped; fewer workers with a larger trainer.batch ask less often (docs/scaling.md)"
            )
        if mined is not None and needed is not None and mined < 0.95 * needed:
            return (
                f"{said}: {mined:,.0f} rows/s are mined and {needed:,.0f} are needed; type "
                f"{more_mining(mined, needed, self._shards)}, or a smaller mining.stages"
            )
        return f"{said}, although {_or_unknown(mined)} rows/s are mined: answers come too late; type a larger mining.lookahead"


class AgeAlarm:
    """Looks at the rows of the log: positives that are more than two epochs old because less is mined than is needed.

    Nothing falls back then (`cluster.bank.table.Pace`): what is mined grows older, up to as many epochs as miners need to come
    round, and no other number says so.

    Args:
        epoch_steps: Steps of an epoch.
        slots: N, of a bank that may be mined in a pool; 0: this one may not.
        shards: As `mining.shards`.
    """

    def __init__(self, epoch_steps: int, slots: int = 0, shards: int = 1) -> None:
        self._epoch, self._slots, self._shards = max(epoch_steps, 1), slots, shards
        self._last, self._for, self._said = -1, 0, False

    def note(self, row: Mapping[str, float]) -> str:
        """A sentence where there is something to say now, else ""."""
        steps, self._last = int(row["step"]) - self._last, int(row["step"])
        age, mined, needed = (row.get(f"bank/{name}") for name in ("age_p99", "mined_per_s", "needed_per_s"))
        if age is None or mined is None or needed is None:
            return ""
        if age <= PASSES * self._epoch or mined >= KEPT_UP * needed:
            self._for, self._said = 0, False
            return ""
        self._for += steps
        if self._for < STEPS or self._said:
            return ""
        self._said = True
        return (
            f"mined positives are up to {age:.0f} steps old (an epoch has {self._epoch}): {mined:,.0f} rows/s are mined and "
            f"{needed:,.0f} are needed; type {more_mining(mined, needed, self._shards)}{self._or_less(mined / needed)}"
        )

    def _or_less(self, share: float) -> str:
        pool = int(share * self._slots)
        return (
            f", or mining.pool_slots={pool} to mine among fewer" if pool >= FEWEST else ", or a smaller mining.stages"
        )


def alarms_of(spec: BankSpec | None) -> tuple[FallbackAlarm | AgeAlarm, ...]:
    """What looks at the log of a run with this bank; None: it has none."""
    if spec is None:
        return ()
    whole = spec.shards == 1 and not spec.gpus_per_miner and spec.pool_slots is None and not spec.deterministic
    return FallbackAlarm(spec.shards), AgeAlarm(spec.epoch_steps, spec.n_slots if whole else 0, spec.shards)


def more_mining(mined: float, needed: float, shards: int = 1) -> str:
    """The setting that makes up the difference; shards mine by themselves, so there it is more of them."""
    if shards > 1:
        return f"mining.shards={math.ceil(shards * needed / max(mined, 1))}"
    return f"mining.miners={max(2, math.ceil(needed / max(mined, 1)))}"


def _or_unknown(value: float | None) -> str:
    return "enough" if value is None else f"{value:,.0f}"
