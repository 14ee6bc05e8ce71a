"""How is the bank narrowed? Stages, sizes and views of one cascade, checked before anything starts.

A stage reads the scores of one view and keeps the best rows. The published cascade (CPR, `cascade_knn`) reads the main
view, the aux one, the main one, … and always ends on the main one; stage i keeps int(n·rⁱ), the last keeps k.
What decides its quality is the *last pool*, n·r^(S−1): how many candidates the last stage chooses from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vidssl.errors import RecipeError
from vidssl.recipe import Mining
from vidssl.tables.lookup import named
from vidssl.tables.strategies import STRATEGIES, StrategyTraits

__all__ = ["PUBLISHED_RATIO", "CascadePlan", "LastView", "plan_from"]

LastView = Literal["main", "alternate"]

PUBLISHED_RATIO = 0.5
"""Ratio of CPR's released settings; used where a recipe gives neither a ratio nor a pool."""


@dataclass(frozen=True)
class CascadePlan:
    """One way to mine, for banks of `n_slots` slots.

    Attributes:
        n_slots: N, for which the plan is feasible; `sizes` serves a bank that is only part filled.
        stages: S ≥ 1; one stage is plain top-k on the main view (CoCLR).
        ratio: r in (0, 1], share that each stage but the last keeps.
        k: Positives per query.
        last_view: "main" as published, or "alternate" (main, aux, main, aux …).
        strategy: One of `vidssl.tables.strategies`: "cascade", or a rival in one stage. With "oracle" the caller has
            excluded every slot of another class: an upper bound, for which labels are read outside the miner.

    Raises:
        RecipeError: values out of range, an unknown strategy, or fewer than k candidates would reach the last stage.
    """

    n_slots: int
    stages: int = 3
    ratio: float = PUBLISHED_RATIO
    k: int = 5
    last_view: LastView = "main"
    strategy: str = "cascade"

    def __post_init__(self) -> None:
        named(STRATEGIES, self.strategy, "mining.strategy")
        if self.stages < 1 or self.k < 1 or not 0 < self.ratio <= 1:
            raise RecipeError(
                f"mining.stages={self.stages} mining.ratio={self.ratio} mining.topk={self.k}: "
                "stages and topk start at 1, ratio is above 0 and at most 1"
            )
        if self.n_slots < self.k:
            raise RecipeError(f"mining.topk={self.k} of {self.n_slots} slots: type mining.topk={max(1, self.n_slots)}")
        if self.last_pool < self.k:
            raise RecipeError(self._infeasible())

    @property
    def traits(self) -> StrategyTraits:
        """What is known of the strategy."""
        return STRATEGIES[self.strategy]

    @property
    def depth(self) -> int:
        """Stages that are run: S of a cascade, 1 of a rival."""
        return self.stages if self.traits.staged else 1

    @property
    def views(self) -> tuple[int, ...]:
        """View of each stage: 0 main, 1 aux."""
        views = [stage % 2 for stage in range(self.depth)]
        if self.last_view == "main":
            views[-1] = 0
        return tuple(views)

    @property
    def needs_aux(self) -> bool:
        """Whether the aux view's scores are read at all."""
        return 1 in self.views or self.traits.fuses

    @property
    def last_pool(self) -> int:
        """Last pool p = int(N·r^(S−1)): candidates that reach the last stage of a full bank."""
        return int(self.n_slots * self.ratio ** (self.depth - 1))

    def sizes(self, n_filled: int) -> tuple[int, ...]:
        """How many candidates each stage keeps in a bank with `n_filled` filled slots.

        As published, `int(n·rⁱ)` in floating point (1000·0.3³ gives 26) and with the query's excluded slots counted in
        n. No stage keeps fewer than k; a query with fewer allowed slots keeps what it has.
        """
        narrowed = (max(self.k, int(n_filled * self.ratio**stage)) for stage in range(1, self.depth))
        return (*narrowed, self.k)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the log about a plan that is allowed but says less than it seems to."""
        even = self._same_as_one_less()
        return (even,) if even else ()

    def check_search(self) -> None:
        """Refuse, in a search, a plan that repeats another one.

        Raises:
            RecipeError: an even number of stages that ends on the main view.
        """
        if note := self._same_as_one_less():
            raise RecipeError(note)

    def describe(self) -> str:
        """One line for logs and reports; it always states the last pool."""
        if not self.traits.staged:
            return f"{self.strategy} top-{self.k} of p={self.last_pool}"
        kept = f"last pool p={self.last_pool} of N={self.n_slots}"
        return f"{self.strategy} S={self.stages} r={self.ratio:.4g} top-{self.k} {kept}"

    def _same_as_one_less(self) -> str:
        if not self.traits.staged or self.stages % 2 or self.last_view != "main":
            return ""
        return (
            f"mining.stages={self.stages} with mining.last_view=main mines what {self.stages - 1} of the same ratio "
            f"mine, because its last two stages read one view; type mining.stages={self.stages + 1} or "
            "mining.last_view=alternate"
        )

    def _infeasible(self) -> str:
        least = math.ceil(1e4 * (self.k / self.n_slots) ** (1 / (self.stages - 1))) / 1e4
        most = next(s for s in range(self.stages, 0, -1) if int(self.n_slots * self.ratio ** (s - 1)) >= self.k)
        return (
            f"mining.stages={self.stages} mining.ratio={self.ratio:.4g} leave {self.last_pool} of {self.n_slots} slots "
            f"for the last stage, fewer than mining.topk={self.k}; type mining.stages={most}, mining.ratio={least:g} "
            f"or mining.pool={min(4 * self.k, self.n_slots)}"
        )


def plan_from(mining: Mining, n_slots: int) -> CascadePlan:
    """The plan that a recipe asks for, on a bank (or queue) of `n_slots`.

    A `pool` p becomes r = (p/N)^(1/(S−1)), rounded up where floating point would lose a candidate. With neither ratio
    nor pool the published ratio 0.5 is used; with one stage both are without effect. With `pool_slots` that is the N.

    Raises:
        RecipeError: as `CascadePlan`, and for a pool that holds fewer than topk or more than all slots.
    """
    n_slots = min(n_slots, mining.pool_slots or n_slots)
    ratio = PUBLISHED_RATIO if mining.ratio is None else mining.ratio
    if mining.pool is not None and mining.stages > 1 and mining.traits.staged:
        ratio = _ratio_of_pool(mining.pool, mining.stages, n_slots, mining.topk)
    return CascadePlan(
        n_slots=n_slots,
        stages=mining.stages,
        ratio=ratio,
        k=mining.topk,
        last_view=mining.last_view,
        strategy=mining.strategy,
    )


def _ratio_of_pool(pool: int, stages: int, n_slots: int, k: int) -> float:
    if not k <= pool <= n_slots:
        raise RecipeError(
            f"mining.pool={pool} must hold mining.topk={k} and at most all {n_slots} slots; "
            f"type mining.pool={min(max(pool, min(4 * k, n_slots)), n_slots)}"
        )
    ratio = (pool / n_slots) ** (1 / (stages - 1))
    while int(n_slots * ratio ** (stages - 1)) < pool:
        ratio = math.nextafter(ratio, 2.0)
    return min(ratio, 1.0)
