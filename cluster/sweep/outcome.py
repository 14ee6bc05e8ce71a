"""What do the trainings of a sweep say? Every arm with its interval, the best one, and which cannot be told apart from it.

All trainings answer the same held-out queries, so arms are compared query by query and seed by seed. Two things are chance
in a difference: which videos ask (the spread over queries, normal), and how a training happens to go (the spread over seeds,
Student's t). The wider of both intervals is taken; with one seed the second is unknown, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.sweep.trained import TrainedRow
from vidssl.evaluation.fewshot import mean_interval
from vidssl.evaluation.retrieval import wilson

__all__ = ["Arm", "Outcome", "against_best", "conclusion", "outcome_of", "table_lines"]

Hits = Mapping[str, NDArray[np.float64]]
"""Key of a training → whether each held-out query found its class, in one order for all."""


@dataclass(frozen=True)
class Arm:
    """Trainings that differ in nothing but the seed.

    Attributes:
        label: In words.
        pool: p; None: nothing is mined.
        rows: The last row of each seed, in the order of the seeds.
        r1: Mean over those that are finished; of an arm without any, over its rows.
        interval95: Of that mean, over videos (Wilson) and over seeds (Student), whichever is wider.
        gap: Mean difference from the best arm, query by query; None: not comparable (other rungs), or it is the best.
        gap95: Of that difference.
        at: Axis → value, as of `Training`.
    """

    label: str
    pool: int | None
    rows: tuple[TrainedRow, ...]
    r1: float
    interval95: tuple[float, float]
    gap: float | None = None
    gap95: tuple[float, float] | None = None
    at: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[TrainedRow, ...]:
        """Of the trainings that went to the end."""
        return tuple(row for row in self.rows if row.state == "finished")

    @property
    def apart(self) -> bool:
        """Whether it can be told apart from the best one."""
        return self.gap95 is not None and not self.gap95[0] <= 0 <= self.gap95[1]


@dataclass(frozen=True)
class Outcome:
    """Arms, best first; those that were stopped early behind the others."""

    arms: tuple[Arm, ...]

    @property
    def best(self) -> Arm | None:
        """None: nothing is finished."""
        return self.arms[0] if self.arms and self.arms[0].finished else None

    @property
    def alike(self) -> tuple[Arm, ...]:
        """Finished arms that cannot be told apart from the best one."""
        return tuple(arm for arm in self.arms[1:] if arm.finished and not arm.apart)


def outcome_of(
    rows: Sequence[TrainedRow], hits: Hits, points: Mapping[str, Mapping[str, Any]] | None = None
) -> Outcome:
    """Compare.

    Args:
        rows: Of any rungs; of each training the last counts.
        hits: Of the finished trainings.
        points: Arm → its value on every axis.
    """
    last: dict[str, TrainedRow] = {}
    for row in sorted(rows, key=lambda row: row.percent):
        last[row.key] = row
    labels = dict.fromkeys(row.arm for row in last.values())
    points = points or {}
    arms = [_arm([row for row in last.values() if row.arm == label], points.get(label, {})) for label in labels]
    ranked = sorted(arms, key=lambda arm: (-len(arm.finished), -arm.rows[0].percent, -arm.r1))
    if not ranked or not ranked[0].finished:
        return Outcome(tuple(ranked))
    return Outcome((ranked[0], *(_beside(arm, ranked[0], hits) for arm in ranked[1:])))


def _arm(rows: Sequence[TrainedRow], at: Mapping[str, Any]) -> Arm:
    ordered = tuple(sorted(rows, key=lambda row: (row.state != "finished", -row.percent, row.seed)))
    used = [row for row in ordered if row.state == "finished"] or list(ordered)
    scores = [row.r1 for row in used]
    mean = float(np.mean(scores))
    of_videos, of_seeds = wilson(mean, used[0].queries), mean_interval(scores)
    low, high = min(of_videos[0], of_seeds[0]), max(of_videos[1], of_seeds[1])
    return Arm(ordered[0].arm, ordered[0].pool, ordered, mean, (low, high), at=at)


def _beside(arm: Arm, best: Arm, hits: Hits) -> Arm:
    theirs = {row.seed: hits[row.key] for row in best.finished if row.key in hits}
    pairs = [hits[row.key] - theirs[row.seed] for row in arm.finished if row.key in hits and row.seed in theirs]
    if not pairs:
        return arm
    by_seed = [float(one.mean()) for one in pairs]
    gap = float(np.mean(by_seed))
    half = 1.96 * _error(np.mean(pairs, axis=0))
    if len(pairs) > 1:
        low, high = mean_interval([(one + 1) / 2 for one in by_seed])  # of −1 … 1, in its 0 … 1
        half = max(half, gap - (2 * low - 1), (2 * high - 1) - gap)
    return replace(arm, gap=gap, gap95=(gap - half, gap + half))


def _error(values: NDArray[np.float64]) -> float:
    """Standard error of a mean over queries."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def table_lines(found: Outcome, seeds: int) -> list[str]:
    """What to print: a line per arm, and what may be concluded."""
    wide = max([len(arm.label) for arm in found.arms] + [8])
    head = f"  {'trained':{wide}}  {'p':>7}  {'seeds':>5}  {'R@1':>6}  {'95 %':>13}  against the best"
    lines = [head, *(_line(arm, arm is found.best, wide) for arm in found.arms)]
    row = found.arms[0].rows[0]
    lines.append(
        f"  chance {100 * row.chance:.1f}; {row.queries} videos of held-out training groups asked; no test video"
    )
    return [*lines, "", *conclusion(found, seeds)]


def _line(arm: Arm, best: bool, wide: int) -> str:
    pool = "–" if arm.pool is None else str(arm.pool)
    interval = f"{100 * arm.interval95[0]:.1f} – {100 * arm.interval95[1]:.1f}"
    start = f"  {arm.label:{wide}}  {pool:>7}  {len(arm.finished):>5}  {100 * arm.r1:>6.1f}  {interval:>13}"
    return f"{start}  {against_best(arm, best)}".rstrip()


def against_best(arm: Arm, best: bool) -> str:
    """How an arm stands beside the best one, in words; empty where they were not compared."""
    if not arm.finished:
        return f"{arm.rows[0].state} at {arm.rows[0].percent} %"
    if best:
        return "the best"
    if arm.gap is None or arm.gap95 is None:
        return ""
    words = f"{100 * arm.gap:+.1f} [{100 * arm.gap95[0]:+.1f}, {100 * arm.gap95[1]:+.1f}]"
    return words + ("" if arm.apart else "  cannot be told apart")


def conclusion(found: Outcome, seeds: int) -> list[str]:
    """What may be said of the best arm, and what may not."""
    best = found.best
    if best is None:
        return ["nothing is finished yet: no point is called best"]
    others = sum(1 for arm in found.arms if arm.finished) - 1
    if not others:
        return ["one arm is finished: nothing to compare it with"]
    said = f"{best.label} is ahead of {others - len(found.alike)} of {others} others"
    if found.alike:
        said += f"; cannot be told apart from it: {', '.join(arm.label for arm in found.alike)}"
    lines = [said]
    if len(best.finished) < 2:
        lines.append(
            "one seed: the intervals know which videos asked, and not how much a training varies; type seeds=[0,1,2] to know it"
            if seeds < 2
            else "the best arm has one finished seed: how much a training varies is not in its interval"
        )
    return lines
