"""What did a sweep find? The best points beside their honest rivals, the plateau, and whether the last pool governs.

Points are compared at one k: precision falls and coverage grows with k by nature, so the "best k" of a table is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.sweep.ledger import Ledger
from cluster.sweep.measure import Row, Study
from cluster.sweep.space import METRICS, Space
from vidssl.errors import RecipeError
from vidssl.files import write_whole
from vidssl.recipe import Recipe

__all__ = ["Findings", "best_first", "find", "live_line", "write_results"]

PLATEAU = 0.02
"""Points this close to the best are on the plateau."""
_SHOWN = 10


@dataclass(frozen=True)
class Findings:
    """What the rows of one k say.

    Attributes:
        metric: Measure that ranks.
        k: Positives per query of all rows looked at.
        best: Best row of all strategies.
        cascade: Best cascade of more than one stage, None where there is none.
        rivals: Best-first rows of one stage.
        plateau: Smallest and largest p of cascades within `PLATEAU` of the best cascade, with no worse p between them.
        over_stages: Mean over p of the spread between stages at equal p; NaN where no p was tried with two S.
        over_pools: Mean over S of the spread between pools at equal S; NaN where no S was tried with two p.
    """

    metric: str
    k: int
    best: Row
    cascade: Row | None
    rivals: tuple[Row, ...]
    plateau: tuple[int, int]
    over_stages: float
    over_pools: float


def write_results(ledger: Ledger, study: Study, space: Space, recipe: Recipe) -> str:
    """best.yaml and sweep.png beside the rows; returns the text to print.

    Raises:
        RecipeError: a metric that needs labels, and there are none.
    """
    from cluster.sweep.picture import draw_sweep

    metric = _metric(space, study)
    found = find(ledger.rows, metric, recipe.mining.topk)
    picture = ledger.folder / "sweep.png"
    draw_sweep(ledger.rows, metric, study, picture)
    files = [str(ledger.path), str(picture)]
    if study.labelled:
        best = ledger.folder / "best.yaml"
        write_whole(best, _best_yaml(ledger.rows, found, study))
        files.append(str(best))
    return "\n".join([_heading(study), *_table(ledger.rows, found), "", *_sentences(found, study), "", *files])


def live_line(number: int, of: int, row: Row) -> str:
    """One finished point in one line."""
    shape = f"S={row.stages} p={row.pool}" if row.strategy == "cascade" else row.strategy
    quality = (
        f"agreement {row.agreement:.3f}"
        if math.isnan(row.precision_at_k)
        else f"precision@{row.topk} {row.precision_at_k:.3f}"
    )
    return f"{number:>4}/{of} {shape:<14} k={row.topk:<3} {quality}  {row.ms_per_query:.2f} ms/query"


def best_first(rows: Iterable[Row], metric: str) -> list[Row]:
    """Best first; of equals the one with fewer stages, then the smaller pool."""
    return sorted(rows, key=lambda row: (-getattr(row, metric), row.stages, row.pool))


def find(rows: Sequence[Row], metric: str, k: int) -> Findings:
    """Compare the rows of one k: the recipe's, or the smallest there is."""
    k = k if any(row.topk == k for row in rows) else min(row.topk for row in rows)
    ranked = best_first((row for row in rows if row.topk == k), metric)
    cascades = [row for row in ranked if row.strategy == "cascade"]
    return Findings(
        metric=metric,
        k=k,
        best=ranked[0],
        cascade=cascades[0] if cascades else None,
        rivals=tuple(row for row in ranked if row.strategy != "cascade"),
        plateau=_plateau(cascades, metric),
        over_stages=_spread(cascades, metric, "pool"),
        over_pools=_spread(cascades, metric, "stages"),
    )


def _metric(space: Space, study: Study) -> str:
    if space.metric is None:
        return METRICS[0] if study.labelled else "agreement"
    if space.metric != "agreement" and not study.labelled:
        raise RecipeError(
            f"metric={space.metric} needs labels and this data has none; type metric=agreement or data=FOLDER"
        )
    return space.metric


def _plateau(cascades: Sequence[Row], metric: str) -> tuple[int, int]:
    """The p around the best one at which no stage count is worse than the best by more than `PLATEAU`."""
    if not cascades:
        return 0, 0
    least = getattr(cascades[0], metric) - PLATEAU
    worst: dict[int, float] = {}
    for row in cascades:
        worst[row.pool] = min(worst.get(row.pool, math.inf), getattr(row, metric))
    pools = sorted(worst)
    low = high = pools.index(cascades[0].pool)
    while low > 0 and worst[pools[low - 1]] >= least:
        low -= 1
    while high + 1 < len(pools) and worst[pools[high + 1]] >= least:
        high += 1
    return pools[low], pools[high]


def _spread(rows: Sequence[Row], metric: str, fixed: str) -> float:
    """Mean over the values of `fixed` of (highest − lowest) among the rows that share it."""
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(getattr(row, fixed), []).append(getattr(row, metric))
    spreads = [max(values) - min(values) for values in groups.values() if len(values) > 1]
    return float(np.mean(spreads)) if spreads else math.nan


def _heading(study: Study) -> str:
    sizes = study.class_sizes
    classes = (
        f"class size {int(np.median(sizes))} ({sizes.min()}–{sizes.max()}), chance {study.chance():.3f}"
        if study.labelled
        else "no labels"
    )
    return (
        f"{study.snapshot}: {study.n_filled} of {study.n_slots} slots filled, {len(study.queries)} queries, {classes}"
    )


def _table(rows: Sequence[Row], found: Findings) -> list[str]:
    head = f"{'strategy':<9}{'S':>3}{'ratio':>8}{'p':>8}{'k':>5}  {'precision@k':<14}{'hit@k':>6}{'coverage':>10}{'distinct':>10}{'agreement':>11}{'ms/query':>10}"
    ranked = best_first((row for row in rows if row.topk == found.k), found.metric)
    shown = [row for row in ranked if row.strategy == "cascade"][:_SHOWN]
    lines = [
        f"best at k={found.k} by {found.metric}:",
        head,
        *map(_line, shown),
        "one stage, for comparison:",
        *map(_line, found.rivals),
    ]
    others = sorted({row.topk for row in rows} - {found.k})
    if others:
        best = [best_first((row for row in rows if row.topk == k), found.metric)[0] for k in others]
        lines += ["best at other k (not comparable: precision falls with k by nature):", *map(_line, best)]
    return lines


def _line(row: Row) -> str:
    precision = "–" if math.isnan(row.precision_at_k) else f"{row.precision_at_k:.3f} ±{row.precision_se:.3f}"
    numbers = f"{_number(row.hit_at_k):>6}{_number(row.coverage_median):>10}{row.distinct_ratio:>10.3f}{row.agreement:>11.3f}{row.ms_per_query:>10.3f}"
    return f"{row.strategy:<9}{row.stages:>3}{row.ratio:>8.4f}{row.pool:>8}{row.topk:>5}  {precision:<14}{numbers}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _sentences(found: Findings, study: Study) -> list[str]:
    said = []
    if not study.labelled:
        said.append(
            "Without labels precision cannot be measured: the order above is by agreement of the views (lower cosine of the two), which is "
            "no quality and favours `sum` by construction; best.yaml is not written."
        )
    if found.cascade is None:
        return [*said, "No cascade of more than one stage was tried."]
    said += [_against(found, found.cascade, rival, study) for rival in found.rivals]
    said.append(_plateau_sentence(found, study))
    if not math.isnan(found.over_stages) and not math.isnan(found.over_pools):
        said.append(_governs(found))
    return said


def _against(found: Findings, cascade: Row, rival: Row, study: Study) -> str:
    ours, theirs = getattr(cascade, found.metric), getattr(rival, found.metric)
    name = f"the best cascade (S={cascade.stages} p={cascade.pool})"
    noise = 2 * math.hypot(cascade.precision_se, rival.precision_se)
    if found.metric == "precision_at_k" and abs(ours - theirs) <= noise:
        return f"`{rival.strategy}` and {name} cannot be told apart: {theirs:.3f} and {ours:.3f}, a difference within two standard errors ({noise:.3f})."
    if theirs >= ours:
        return f"`{rival.strategy}` BEATS {name}: {theirs:.3f} against {ours:.3f}; mine with mining.strategy={rival.strategy}."
    return f"{name[0].upper()}{name[1:]} beats `{rival.strategy}`: {ours:.3f} against {theirs:.3f} (the best of many points flatters itself a little)."


def _plateau_sentence(found: Findings, study: Study) -> str:
    low, high = found.plateau
    where = f"p={low}" if low == high else f"p={low} to {high}"
    size = f"; a class has {int(np.median(study.class_sizes))} rows" if study.labelled else ""
    return f"Plateau: {where} is within {PLATEAU} of the best cascade at every S tried{size}."


def _governs(found: Findings) -> str:
    numbers = (
        f"at equal p the S differ by {found.over_stages:.3f}, at equal S the p differ by {found.over_pools:.3f} (means)"
    )
    noise = 2 * found.cascade.precision_se if found.cascade and found.metric == "precision_at_k" else 0.0
    if max(found.over_pools, found.over_stages) <= noise:
        return f"Neither S nor p moves the result beyond two standard errors ({noise:.3f}): {numbers}."
    if found.over_pools > 2 * found.over_stages:
        return f"The last pool p governs: {numbers}."
    return f"Here p alone does not explain the result: {numbers}."


def _best_yaml(rows: Sequence[Row], found: Findings, study: Study) -> str:
    lines = [
        f"# best of {len(rows)} points by {found.metric} on {study.snapshot}",
        f"# data {study.data}, {len(study.queries)} queries",
    ]
    for k in sorted({row.topk for row in rows} - {found.k}):
        row = best_first((row for row in rows if row.topk == k), found.metric)[0]
        lines.append(f"# k={k}: {_recipe_line(row, study)}  ({found.metric} {getattr(row, found.metric):.3f})")
    lines.append(f"# k={found.k}: {found.metric} {getattr(found.best, found.metric):.3f}")
    return "\n".join([*lines, _recipe_line(found.best, study), ""])


def _recipe_line(row: Row, study: Study) -> str:
    if row.strategy != "cascade":
        return f"mining: {{strategy: {row.strategy}, topk: {row.topk}}}"
    return f"mining: {{strategy: cascade, stages: {row.stages}, pool: {row.pool}, topk: {row.topk}, last_view: {study.last_view}}}"
