"""What was found? The best points beside their honest rivals, the plateau, the spaces, and what to write into a recipe.

Points are compared at one k: precision falls and class mining recall grows with k by nature, so the "best k" of a table is
no finding. Without labels nothing is ranked and nothing is called best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.mine.measure import Row
from cluster.mine.study import Study
from cluster.mine.words import METRICS, REFERENCES, Point
from vidssl.mining.metrics import CLASS_MINING_RECALL

__all__ = ["Findings", "best_first", "find", "live_line", "recipe_words", "table_text", "value_of"]

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
        rivals: Best-first rows of one stage, the best space of each strategy.
        references: Floor, ceiling and the aux view alone.
        plateau: Smallest and largest p of cascades within `PLATEAU` of the best cascade, with no worse p between them.
        over_stages: Mean over p of the spread between stages at equal p; NaN where no p was tried with two S.
        over_pools: Mean over S of the spread between pools at equal S; NaN where no S was tried with two p.
        by_space: Best row of each space, best first.
    """

    metric: str
    k: int
    best: Row
    cascade: Row | None
    rivals: tuple[Row, ...]
    references: tuple[Row, ...]
    plateau: tuple[int, int]
    over_stages: float
    over_pools: float
    by_space: tuple[Row, ...]


def table_text(rows: Sequence[Row], study: Study, metric: str, k: int, own: Point | None = None) -> list[str]:
    """What to print of measured rows.

    Args:
        rows: Of any k.
        study: What they were measured on.
        metric: What ranks them, one of `METRICS`.
        k: Positives per query to compare at: the recipe's, or the smallest there is.
        own: What the run mines with; its row is marked.
    """
    if not study.labelled:
        return [*_heading(study), *_unranked(rows, own), "", *_why_unranked(), *_note(study)]
    found = find(rows, metric, k)
    words = ["", f"to paste: {' '.join(recipe_words(found.best, study))}", *_simpler(found, study)]
    return [
        *_heading(study),
        *_ranked(rows, found, own),
        "",
        *_sentences(found, study, own, rows),
        *_note(study),
        *words,
    ]


def live_line(number: int, of: int, row: Row) -> str:
    """One finished point in one line."""
    quality = (
        f"agreement {_number(row.agreement)}"
        if row.precision_at_k is None
        else f"precision@{row.topk} {row.precision_at_k:.3f}"
    )
    return f"{number:>4}/{of} {row.point.describe():<26} {quality}  {row.ms_per_query:.2f} ms/query"


def value_of(row: Row, metric: str) -> float:
    """The measure of a row that has it."""
    value = getattr(row, metric)
    return math.nan if value is None else float(value)


def best_first(rows: Iterable[Row], metric: str) -> list[Row]:
    """Best first; of equals the one with fewer stages, then the smaller pool, then the plainer space."""
    plain = {"raw": 0}
    return sorted(rows, key=lambda row: (-value_of(row, metric), row.stages, row.pool, plain.get(row.space, 1)))


def find(rows: Sequence[Row], metric: str, k: int) -> Findings:
    """Compare the rows of one k: the one asked for, or the smallest there is."""
    k = k if any(row.topk == k for row in rows) else min(row.topk for row in rows)
    here = [row for row in rows if row.topk == k]
    ranked = best_first((row for row in here if row.strategy not in REFERENCES), metric)
    cascades = [row for row in ranked if row.strategy == "cascade"]
    alike = [row for row in cascades if row.space == cascades[0].space]
    return Findings(
        metric=metric,
        k=k,
        best=ranked[0],
        cascade=cascades[0] if cascades else None,
        rivals=_first_of_each((row for row in ranked if row.strategy != "cascade"), "strategy"),
        references=_first_of_each(best_first((row for row in here if row.strategy in REFERENCES), metric), "strategy"),
        plateau=_plateau(alike, metric),
        over_stages=_spread(alike, metric, "pool"),
        over_pools=_spread(alike, metric, "stages"),
        by_space=_first_of_each(ranked, "space"),
    )


def recipe_words(row: Row, study: Study) -> list[str]:
    """`key=value` words of a recipe that mines as this row did."""
    words = [f"mining.strategy={row.strategy}", f"mining.topk={row.topk}"]
    if row.strategy == "cascade":
        words[1:1] = [f"mining.stages={row.stages}", f"mining.pool={row.pool}"]
        words.append(f"mining.last_view={study.last_view}")
    return words if row.space == "raw" else [*words, f"mining.space={row.space}"]


def _simpler(found: Findings, study: Study) -> list[str]:
    """Words of the best one-stage rival, where the best point is a cascade that cannot be told apart from it."""
    if found.best.strategy != "cascade" or not found.rivals or found.metric != METRICS[0]:
        return []
    rival = found.rivals[0]
    noise = 2 * math.hypot(found.best.precision_se or 0.0, rival.precision_se or 0.0)
    if value_of(found.best, found.metric) - value_of(rival, found.metric) > noise:
        return []
    return [f"one stage, and no worse within two standard errors: {' '.join(recipe_words(rival, study))}"]


def _first_of_each(ranked: Iterable[Row], what: str) -> tuple[Row, ...]:
    seen: dict[str, Row] = {}
    for row in ranked:
        seen.setdefault(getattr(row, what), row)
    return tuple(seen.values())


def _plateau(cascades: Sequence[Row], metric: str) -> tuple[int, int]:
    """The p around the best one at which no stage count is worse than the best by more than `PLATEAU`."""
    if not cascades:
        return 0, 0
    least = value_of(cascades[0], metric) - PLATEAU
    worst: dict[int, float] = {}
    for row in cascades:
        worst[row.pool] = min(worst.get(row.pool, math.inf), value_of(row, metric))
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
        groups.setdefault(getattr(row, fixed), []).append(value_of(row, metric))
    spreads = [max(values) - min(values) for values in groups.values() if len(values) > 1]
    return float(np.mean(spreads)) if spreads else math.nan


def _heading(study: Study) -> list[str]:
    sizes = study.class_sizes
    classes = (
        f"class size {int(np.median(sizes))} ({sizes.min()}–{sizes.max()}), chance {study.chance():.3f}"
        if study.labelled
        else "no labels"
    )
    views = f"main {study.views[0]}, aux {study.views[1]}" if study.aux is not None else f"one view, {study.views[0]}"
    filled = f"{study.n_filled} of {study.n_slots} slots filled, {len(study.queries)} queries, {classes}"
    return [f"{study.source}: {filled}; {views}"]


_HEAD = (
    f"  {'strategy':<9}{'space':<10}{'S':>2}{'p':>8}{'k':>4}  {'precision@k':<13}{'hit@k':>6}{'recall':>8}{'worst':>7}"
    f"{'cover':>7}{'distinct':>9}{'hubs':>6}{'agree':>7}{'ms/query':>10}"
)


def _ranked(rows: Sequence[Row], found: Findings, own: Point | None) -> list[str]:
    ranked = best_first((row for row in rows if row.topk == found.k), found.metric)
    cascades = [row for row in ranked if row.strategy == "cascade"]
    shown = cascades[:_SHOWN] + [row for row in cascades[_SHOWN:] if row.point == own]
    lines = [f"best at k={found.k} by {found.metric}:", _HEAD, *(_line(row, own) for row in shown)]
    rivals = [row for row in ranked if row.strategy != "cascade" and row.strategy not in REFERENCES]
    lines += ["  one stage, for comparison:", *(_line(row, own) for row in rivals)]
    references = [row for row in ranked if row.strategy in REFERENCES]
    if references:
        lines += ["  no recipe's: the aux view alone, lots, the class mates:", *(_line(row, own) for row in references)]
    others = sorted({row.topk for row in rows} - {found.k})
    if others:
        best = [find(rows, found.metric, k).best for k in others]
        lines += ["best at other k (not comparable: precision falls with k by nature):", _HEAD]
        lines += [_line(row, own) for row in best]
    return lines


def _unranked(rows: Sequence[Row], own: Point | None) -> list[str]:
    ordered = sorted(rows, key=lambda row: (row.topk, row.space, row.strategy, row.stages, row.pool))
    return ["all points, in no order of merit:", _HEAD, *(_line(row, own) for row in ordered)]


def _line(row: Row, own: Point | None) -> str:
    precision = "–" if row.precision_at_k is None else f"{row.precision_at_k:.3f} ±{row.precision_se:.3f}"
    numbers = (
        f"{_number(row.hit_at_k):>6}{_number(row.class_mining_recall_median):>8}"
        f"{_number(row.class_mining_recall_least):>7}{_number(row.coverage):>7}{row.distinct_ratio:>9.3f}"
        f"{row.hubness:>6.1f}{_number(row.agreement):>7}{row.ms_per_query:>10.3f}"
    )
    mark = "   ← this run's" if row.point == own else ""
    return (
        f"  {row.strategy:<9}{row.space:<10}{row.stages:>2}{row.pool:>8}{row.topk:>4}  {precision:<13}{numbers}{mark}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _note(study: Study) -> list[str]:
    if not study.labelled:
        return []
    sampled = len(study.queries) < study.n_filled
    bound = (
        f" Only {len(study.queries)} of {study.n_filled} videos asked, so it is a lower bound; type queries={study.n_filled} for the whole."
        if sampled
        else ""
    )
    return [
        f"{CLASS_MINING_RECALL[0].upper()}{CLASS_MINING_RECALL[1:]}, when every video mines its k once (column recall: "
        f"median over classes; worst: the worst class; cover: the same share over all videos).{bound}"
    ]


def _why_unranked() -> list[str]:
    return [
        "Without labels precision cannot be measured, and agreement of the views (lower cosine of the two) misleads: it is no "
        "quality and favours `sum` by construction. So nothing is ranked and no words are given to paste; type data=FOLDER "
        "that knows labels."
    ]


def _sentences(found: Findings, study: Study, own: Point | None, rows: Sequence[Row]) -> list[str]:
    said = [_own_sentence(found, own, rows)] if own is not None else []
    if found.cascade is None:
        return [*said, "No cascade of more than one stage was tried."]
    said += [_against(found, found.cascade, rival) for rival in found.rivals]
    if len(found.by_space) > 1:
        said.append(_spaces_sentence(found))
    said.append(_plateau_sentence(found, study))
    if not math.isnan(found.over_stages) and not math.isnan(found.over_pools):
        said.append(_governs(found))
    return [sentence for sentence in said if sentence]


def _own_sentence(found: Findings, own: Point | None, rows: Sequence[Row]) -> str:
    mine = next((row for row in rows if row.point == own and row.topk == found.k), None)
    if mine is None or mine == found.best:
        return "" if mine is None else "What this run mines with is the best point of the table."
    ours, best = value_of(mine, found.metric), value_of(found.best, found.metric)
    return f"This run mines with {mine.point.describe()}: {ours:.3f}; the best point reaches {best:.3f}."


def _against(found: Findings, cascade: Row, rival: Row) -> str:
    ours, theirs = value_of(cascade, found.metric), value_of(rival, found.metric)
    space = "" if cascade.space == "raw" else f" {cascade.space}"
    name = f"the best cascade (S={cascade.stages} p={cascade.pool}{space})"
    noise = 2 * math.hypot(cascade.precision_se or 0.0, rival.precision_se or 0.0)
    if found.metric == "precision_at_k" and abs(ours - theirs) <= noise:
        return f"`{rival.strategy}` and {name} cannot be told apart: {theirs:.3f} and {ours:.3f}, a difference within two standard errors ({noise:.3f})."
    if theirs >= ours:
        return f"`{rival.strategy}` BEATS {name}: {theirs:.3f} against {ours:.3f}; mine with mining.strategy={rival.strategy}."
    return f"{name[0].upper()}{name[1:]} beats `{rival.strategy}`: {ours:.3f} against {theirs:.3f} (the best of many points flatters itself a little)."


def _spaces_sentence(found: Findings) -> str:
    best = ", ".join(
        f"{row.space} {value_of(row, found.metric):.3f} ({row.point.describe().removesuffix(' ' + row.space)})"
        for row in found.by_space
    )
    return f"Best of each space: {best}."


def _plateau_sentence(found: Findings, study: Study) -> str:
    low, high = found.plateau
    where = f"p={low}" if low == high else f"p={low} to {high}"
    size = f"; a class has {int(np.median(study.class_sizes))} rows" if study.labelled else ""
    return f"Plateau: {where} is within {PLATEAU} of the best cascade at every S tried{size}."


def _governs(found: Findings) -> str:
    numbers = (
        f"at equal p the S differ by {found.over_stages:.3f}, at equal S the p differ by {found.over_pools:.3f} (means)"
    )
    noise = 2 * (found.cascade.precision_se or 0.0) if found.cascade and found.metric == METRICS[0] else 0.0
    if max(found.over_pools, found.over_stages) <= noise:
        return f"Neither S nor p moves the result beyond two standard errors ({noise:.3f}): {numbers}."
    if found.over_pools > 2 * found.over_stages:
        return f"The last pool p governs: {numbers}."
    return f"Here p alone does not explain the result: {numbers}."
