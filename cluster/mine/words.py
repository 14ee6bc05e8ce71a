"""Which ways of mining are worth a look? Stages × last pool × top-k × strategy × space, without what repeats or cannot be.

The pool p that reaches the last stage is searched instead of the ratio, because p is what quality follows (DESIGN,
"Mining, exactly"). The honest rivals, one stage on the main view and the sum of both, are among the points of every k.
`vidssl mine` and `vidssl sweep` try the same points.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import numpy as np
from pydantic import Field, ValidationError, field_validator

from vidssl.errors import RecipeError
from vidssl.fields import Count, Place, Section
from vidssl.mining.plan import CascadePlan, LastView, plan_from
from vidssl.mining.space import SpaceKind
from vidssl.plain import UNREADABLE, of_word
from vidssl.recipe import Mining
from vidssl.tables.strategies import RIVALS, STRATEGIES

__all__ = [
    "METRICS",
    "REFERENCES",
    "SPACES",
    "MineWords",
    "Point",
    "Search",
    "SweepWords",
    "effective",
    "own_point",
    "read_search",
    "reference_points",
    "search_points",
]

METRICS: Final = ("precision_at_k", "hit_at_k", "class_mining_recall_median")
"""What points may be ranked by: all of it needs labels. `agreement` needs none and misleads, so it ranks nothing."""

SPACES: Final = get_args(SpaceKind)
"""In which rows mining happens: raw | white | canonical."""

REFERENCES: Final = ("aux", "random", "oracle")
"""Rows of the table that no recipe asks for: top-k of the aux view, lots (the floor), the class mates (the ceiling)."""

S = TypeVar("S", bound="Search")

if TYPE_CHECKING:
    RivalName = MetricName = str
else:
    RivalName, MetricName = Literal[RIVALS], Literal[METRICS]


class Search(Section):
    """What is tried, on how many queries, ranked by which measure."""

    stages: tuple[Count, ...] = Field(
        default=(1, 3, 5, 7), min_length=1, max_length=64, description="S, stages of the cascade; 1 is plain top-k"
    )
    pools: tuple[Count, ...] | None = Field(
        default=None,
        max_length=1000,
        description="last pools p; null: eight from just above k to half the bank, evenly on a log scale",
    )
    topk: tuple[Count, ...] | None = Field(
        default=None, min_length=1, max_length=64, description="k, positives per query; null: the recipe's mining.topk"
    )
    spaces: tuple[SpaceKind, ...] = Field(
        default=SPACES,
        min_length=1,
        description=f"spaces in which is mined, some of {' | '.join(SPACES)}; one that the rows do not carry is left out",
    )
    rivals: tuple[RivalName, ...] = Field(
        default=RIVALS,
        description=f"one-stage strategies beside the cascade, some of {' | '.join(RIVALS)}; single and sum are always measured",
    )
    trials: Count | None = Field(
        default=None, description="most points: the rivals first, then others in a seeded order; null: all"
    )
    queries: Count = Field(default=4096, description="most videos that mine; of a larger bank a seeded sample asks")
    metric: MetricName = Field(
        default=METRICS[0],
        description=f"what ranks the points: {' | '.join(METRICS)}; without labels nothing is ranked",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="of the order of points and the sample of queries")
    data: Place | None = Field(default=None, description="packed folder that knows the labels; null: the run's")

    @field_validator("stages", "pools", "topk", "rivals", "spaces", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, int | str) and not isinstance(value, bool) else value


class SweepWords(Search):
    """What `vidssl sweep` searches, and whose bank."""

    level: Literal["bank", "train"] = Field(
        default="bank", description="bank (mining alone, on a snapshot) | train (every point a whole training)"
    )
    run: Place | None = Field(default=None, description="run whose bank snapshot is searched")


class MineWords(Search):
    """What `vidssl mine` tries, and on which rows."""

    rows: Place = Field(
        default="auto",
        description="bank (the last snapshot) | encoder (embeddings made now) | a store of `vidssl embed` | auto: bank where there is one",
    )
    second: Place | None = Field(
        default=None,
        description="run or card whose trained stream is the main view, where RUN|CARD has an encoder of one view",
    )
    videos: Count | None = Field(
        default=None, description="most training videos that are embedded, a seeded sample; null: all"
    )


@dataclass(frozen=True)
class Point:
    """One way to mine.

    Attributes:
        strategy: cascade, one of its rivals, or one of `REFERENCES`.
        stages: S; 1 for the rivals.
        pool: p, candidates that reach the last stage; all of the bank for the rivals.
        topk: k.
        space: Rows in which is mined.
    """

    strategy: str
    stages: int
    pool: int
    topk: int
    space: SpaceKind = "raw"

    @property
    def needs_aux(self) -> bool:
        """Whether a second view is read at all."""
        return self.strategy in ("cascade", "aux") or (self.strategy in STRATEGIES and STRATEGIES[self.strategy].fuses)

    def plan(self, n_slots: int, last_view: LastView) -> CascadePlan:
        """The plan of this point on a bank of `n_slots` filled slots; that of a reference is one stage."""
        pool = self.pool if self.strategy == "cascade" else None
        strategy = "single" if self.strategy in REFERENCES else self.strategy
        asked = {"strategy": strategy, "stages": self.stages, "pool": pool, "topk": self.topk}
        return plan_from(Mining.model_validate({**asked, "last_view": last_view}), n_slots)

    def describe(self) -> str:
        """A few words for a live line."""
        shape = f"S={self.stages} p={self.pool}" if self.strategy == "cascade" else self.strategy
        return f"{shape} k={self.topk}" + ("" if self.space == "raw" else f" {self.space}")


def read_search(model: type[S], words: Sequence[str], verb: str) -> tuple[S, list[str]]:
    """What `key=value` words say about a search, and the words with a dot, which belong to the recipe (`mining.…`).

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
        return model.model_validate(ours), [word for word in words if "." in word.partition("=")[0]]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise RecipeError(
                f"unknown key '{key}' of a {verb}; there are {known}, and the recipe's mining.…"
            ) from error
        if ours[key] == "agreement":
            raise RecipeError(
                f"{key}=agreement is refused: without labels it misleads, so it stands in the table and ranks nothing; "
                f"type {key}= one of {', '.join(METRICS)} with data=FOLDER that knows labels"
            ) from error
        raise RecipeError(f"{key}={ours[key]!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def search_points(search: Search, n_slots: int, recipe: Mining, views: int = 2) -> list[Point]:
    """Feasible points, none of which mines what another one mines; the rivals of every k first.

    Args:
        search: What is asked for.
        n_slots: Filled slots of the bank.
        recipe: Gives `last_view`, and k where the search names none.
        views: With one view there is plain top-k and nothing else.

    Raises:
        RecipeError: stages that repeat others, no k that this bank can serve, or nothing left to compare.
    """
    ks = sorted(set(search.topk or (recipe.topk,)))
    if ks[-1] >= n_slots:
        raise RecipeError(f"topk={ks[-1]} of {n_slots} filled slots: give topk=[…] below {n_slots}")
    stages = sorted(set(search.stages) - {1})
    for depth in stages:
        CascadePlan(n_slots, depth, 1.0, ks[0], recipe.last_view).check_search()
    rivals = list(dict.fromkeys(("single", "sum", *search.rivals)))
    spaces = list(dict.fromkeys(search.spaces))
    first = [Point(rival, 1, n_slots, k, space) for k in ks for space in spaces for rival in rivals]
    pools = sorted(set(search.pools or default_pools(ks, n_slots)))
    grid = [
        Point("cascade", depth, pool, k, space)
        for k in ks
        for space in spaces
        for depth in stages
        for pool in pools
        if k <= pool <= n_slots
    ]
    if search.pools is not None and stages and not grid:
        raise RecipeError(f"pools={list(pools)}: no pool lies between topk={ks[0]} and the {n_slots} filled slots")
    if views < 2:
        return [point for point in first if not point.needs_aux]
    distinct = _without_repeats(grid, n_slots, recipe.last_view)
    if search.trials is not None and search.trials < len(first) + len(distinct):
        random.Random(search.seed).shuffle(distinct)
        distinct = distinct[: max(search.trials - len(first), 0)]
    return first + distinct


def reference_points(search: Search, n_slots: int, recipe: Mining, views: int, labelled: bool) -> list[Point]:
    """Floor, ceiling and the aux view alone, of every k; not searched, and never the best."""
    ks = sorted(set(search.topk or (recipe.topk,)))
    spaces = dict.fromkeys(search.spaces) if views > 1 else ()
    names = ("random", "oracle") if labelled else ("random",)
    aux = [Point("aux", 1, n_slots, k, space) for k in ks for space in spaces]
    return aux + [Point(name, 1, n_slots, k) for k in ks for name in names]


def own_point(recipe: Mining, n_slots: int, space: SpaceKind) -> Point | None:
    """What the run itself mines with, on a bank of this size; None where that cannot be, or needs labels."""
    if recipe.traits.reads_labels:
        return None
    try:
        plan = plan_from(recipe, n_slots)
    except RecipeError:
        return None
    staged = plan.depth > 1
    return Point(
        recipe.strategy if staged or not recipe.traits.staged else "single",
        plan.depth if staged else 1,
        plan.last_pool,
        plan.k,
        space,
    )


def default_pools(ks: Sequence[int], n_slots: int, number: int = 8) -> list[int]:
    """Pools from just above the smallest k to half the bank, evenly on a log scale."""
    low = min(ks) + 1
    high = max(n_slots // 2, low)
    return sorted({round(p) for p in np.geomspace(low, high, number)} & set(range(1, n_slots + 1)))


def _without_repeats(points: Sequence[Point], n_slots: int, last_view: LastView) -> list[Point]:
    """Points whose stages keep the same numbers in the same views mine the same: the first of them stays."""
    singles = {((0, point.topk),) for point in points}
    seen: dict[tuple[str, tuple[tuple[int, int], ...]], Point] = {}
    for point in points:
        plan = point.plan(n_slots, last_view)
        seen.setdefault((point.space, effective(plan.views, plan.sizes(n_slots), n_slots)), point)
    return [point for (_, stages), point in seen.items() if stages not in singles]


def effective(views: Sequence[int], sizes: Sequence[int], n_slots: int) -> tuple[tuple[int, int], ...]:
    """Stages that remove something; one that keeps all it was given changes nothing."""
    narrowing, left = [], n_slots
    for stage, (view, size) in enumerate(zip(views, sizes, strict=True)):
        if size < left or stage == len(sizes) - 1:
            narrowing.append((view, size))
            left = size
    return tuple(narrowing)


def _value(key: str, value: str) -> Any:
    try:
        return of_word(value)
    except UNREADABLE as error:
        raise RecipeError(f"{key}={value} cannot be read; lists are written {key}=[1,3,5]") from error
