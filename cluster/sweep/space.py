"""Which cascades are worth trying? Stages × last pool × top-k, without the points that repeat another or cannot be.

The pool p that reaches the last stage is searched instead of the ratio, because p is what quality follows (DESIGN,
"Mining, exactly"). The honest rivals, one stage on the main view and the sum of both, are among the points of every k.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vidssl.errors import RecipeError
from vidssl.mining.plan import CascadePlan, LastView, plan_from
from vidssl.recipe import Mining
from vidssl.tables.strategies import RIVALS

__all__ = ["METRICS", "Point", "Space", "read_space", "search_points"]

METRICS = ("precision_at_k", "hit_at_k", "coverage_median", "agreement")
"""What points may be ranked by; the first three need labels."""

Count = Annotated[int, Field(ge=1)]

if TYPE_CHECKING:
    RivalName = str
else:
    RivalName = Literal[RIVALS]


class Space(BaseModel):
    """What is searched, on how many queries and by which measure.

    Attributes:
        stages: S; 1 is plain top-k.
        pools: Last pools p; none: eight from just above k to half the bank, evenly on a log scale.
        topk: k; none: the recipe's.
        rivals: One-stage strategies beside the cascade; `single` and `sum` are always measured.
        trials: Most points; the rivals first, then the others in a seeded order, so that more trials extend fewer.
        queries: Most rows that mine in one trial; larger banks are sampled (seeded).
        metric: Measure that ranks the points; none: precision_at_k, or agreement where there are no labels.
        seed: Of the order of points and the sample of queries.
        run: Run whose bank snapshot is searched.
        data: Packed folder that knows the labels; none: the run's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Count, ...] = (1, 3, 5, 7)
    pools: tuple[Count, ...] | None = None
    topk: tuple[Count, ...] | None = None
    rivals: tuple[RivalName, ...] = ("single", "sum")
    trials: Count | None = None
    queries: Count = 4096
    metric: Literal["precision_at_k", "hit_at_k", "coverage_median", "agreement"] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    run: str | None = None
    data: str | None = None

    @field_validator("stages", "pools", "topk", "rivals", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, int | str) else value


@dataclass(frozen=True)
class Point:
    """One way to mine.

    Attributes:
        strategy: cascade, or one of its rivals.
        stages: S; 1 for the rivals.
        pool: p, candidates that reach the last stage; all of the bank for the rivals.
        topk: k.
    """

    strategy: str
    stages: int
    pool: int
    topk: int

    def plan(self, n_slots: int, last_view: LastView) -> CascadePlan:
        """The plan of this point on a bank of `n_slots` filled slots."""
        pool = self.pool if self.strategy == "cascade" else None
        asked = {"strategy": self.strategy, "stages": self.stages, "pool": pool, "topk": self.topk}
        return plan_from(Mining.model_validate({**asked, "last_view": last_view}), n_slots)

    def describe(self) -> str:
        """A few words for a live line."""
        shape = f"S={self.stages} p={self.pool}" if self.strategy == "cascade" else self.strategy
        return f"{shape} k={self.topk}"


def read_space(words: Sequence[str]) -> tuple[Space, list[str]]:
    """The space that `key=value` words describe, and the words that belong to the recipe (`mining.last_view=…`).

    Raises:
        RecipeError: an unknown key or a value that is not allowed.
    """
    ours: dict[str, Any] = {}
    for word in words:
        key, sep, value = word.partition("=")
        if not sep:
            raise RecipeError(f"'{word}' is no setting; type key=value, e.g. stages=[1,3,5]")
        if "." not in key:
            ours[key] = _value(key, value)
    try:
        return Space.model_validate(ours), [word for word in words if "." in word.partition("=")[0]]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Space.model_fields)
            raise RecipeError(
                f"unknown key '{key}' of a sweep; there are {known}, and the recipe's mining.…"
            ) from error
        raise RecipeError(f"{key}={ours[key]!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def search_points(space: Space, n_slots: int, recipe: Mining) -> list[Point]:
    """Feasible points, none of which mines what another one mines; the rivals of every k first.

    Args:
        space: What is asked for.
        n_slots: Filled slots of the bank.
        recipe: Gives `last_view`, and k where the space names none.

    Raises:
        RecipeError: stages that repeat others, no k that this bank can serve, or nothing left to compare.
    """
    ks = sorted(set(space.topk or (recipe.topk,)))
    if ks[-1] >= n_slots:
        raise RecipeError(f"topk={ks[-1]} of {n_slots} filled slots: give topk=[…] below {n_slots}")
    stages = sorted(set(space.stages) - {1})
    for depth in stages:
        CascadePlan(n_slots, depth, 1.0, ks[0], recipe.last_view).check_search()
    rivals = list(dict.fromkeys(("single", "sum", *space.rivals)))
    first = [Point(rival, 1, n_slots, k) for k in ks for rival in rivals]
    pools = sorted(set(space.pools or default_pools(ks, n_slots)))
    grid = [Point("cascade", depth, pool, k) for k in ks for depth in stages for pool in pools if k <= pool <= n_slots]
    if space.pools is not None and stages and not grid:
        raise RecipeError(f"pools={list(pools)}: no pool lies between topk={ks[0]} and the {n_slots} filled slots")
    distinct = _without_repeats(grid, n_slots, recipe.last_view)
    if space.trials is not None and space.trials < len(first) + len(distinct):
        random.Random(space.seed).shuffle(distinct)
        distinct = distinct[: max(space.trials - len(first), 0)]
    return first + distinct


def default_pools(ks: Sequence[int], n_slots: int, number: int = 8) -> list[int]:
    """Pools from just above the smallest k to half the bank, evenly on a log scale."""
    low = min(ks) + 1
    high = max(n_slots // 2, low)
    return sorted({round(p) for p in np.geomspace(low, high, number)} & set(range(1, n_slots + 1)))


def _without_repeats(points: Sequence[Point], n_slots: int, last_view: LastView) -> list[Point]:
    """Points whose stages keep the same numbers in the same views mine the same: the first of them stays."""
    singles = {((0, point.topk),) for point in points}
    seen: dict[tuple[tuple[int, int], ...], Point] = {}
    for point in points:
        plan = point.plan(n_slots, last_view)
        seen.setdefault(_effective(plan.views, plan.sizes(n_slots), n_slots), point)
    return [point for stages, point in seen.items() if stages not in singles]


def _effective(views: Sequence[int], sizes: Sequence[int], n_slots: int) -> tuple[tuple[int, int], ...]:
    """Stages that remove something; one that keeps all it was given changes nothing."""
    narrowing, left = [], n_slots
    for stage, (view, size) in enumerate(zip(views, sizes, strict=True)):
        if size < left or stage == len(sizes) - 1:
            narrowing.append((view, size))
            left = size
    return tuple(narrowing)


def _value(key: str, value: str) -> Any:
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(f"{key}={value} cannot be read; lists are written {key}=[1,3,5]") from error
    assert isinstance(tree, dict)
    return tree["v"]
