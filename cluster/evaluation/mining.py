"""How good is what a run's bank hands out? Measured on its last snapshot, with labels that mining never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

import numpy as np

from cluster.evaluation.evaluator import About, Evaluator, Result, Seen
from cluster.page.parts import Section, bare, card, class_bars, percent, table
from cluster.page.pictures import Stage, funnel
from cluster.subject import Subject
from vidssl.errors import RecipeError
from vidssl.evaluation.protocol import Protocol
from vidssl.methods import bank_views_of, mining_of
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.metrics import CLASS_MINING_RECALL, MiningQuality, rivals
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.snapshots import latest_snapshot, load_snapshot, read_info
from vidssl.recipe import Recipe
from vidssl.tables.strategies import RIVALS, STRATEGIES

__all__ = ["Measured", "Mined", "Mining", "MiningResult", "quality_of_bank"]

MOST_QUERIES: Final = 10_000  # a larger bank answers a sample of its own rows


@dataclass(frozen=True, kw_only=True)
class Mined:
    """What one strategy mined; see `vidssl.mining.metrics.MiningQuality`.

    Attributes:
        precision: Share of the mined that have the query's class, mean over queries.
        precision_median: The same, median over classes.
        hit: Queries with at least one.
        hit_median: The same, median over classes.
        coverage_median: Class mining recall (share of a class that was mined by its own), median over classes.
        coverage_q1: First quartile.
        coverage_q3: Third quartile.
        coverage_least: The worst class.
        coverage: The same share over all videos; None in a file of an earlier version.
        per_class: Class → class mining recall; empty in a file of an earlier version.
        sibling_rate: Share of the mined that are cut from the query's own source.
        distinct: Different videos among the mined, of their number.
        last_pool: p.
    """

    precision: float
    precision_median: float
    hit: float
    hit_median: float
    coverage_median: float
    coverage_q1: float
    coverage_q3: float
    coverage_least: float
    sibling_rate: float
    distinct: float
    last_pool: int | None
    coverage: float | None = None
    per_class: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MiningProtocol(Protocol):
    """With the plan, the snapshot and who asked.

    Attributes:
        bank_step: Step of the snapshot.
        slots: N.
        filled: Of those.
        strategy_of_run: What the run itself mined with.
        main_view: Mines last.
        aux_view: The other.
        aggregate: How queries become one number.
        plan: In words.
        k: Positives per query.
        last_pool: p.
        queries: How many asked.
        space: In which scores were taken, and why.
    """

    bank_step: int | None = None
    slots: int | None = None
    filled: int | None = None
    strategy_of_run: str | None = None
    main_view: str | None = None
    aux_view: str | None = None
    aggregate: str | None = None
    plan: str | None = None
    k: int | None = None
    last_pool: int | None = None
    queries: int | None = None
    space: str | None = None


@dataclass(frozen=True, kw_only=True)
class MiningResult(Result):
    """The cascade by stage, and all strategies.

    Attributes:
        stages: Survivors and purity, the whole bank first.
        results: By strategy.
    """

    protocol: MiningProtocol
    stages: tuple[Stage, ...] = ()
    results: Mapping[str, Mined] | None = None


@dataclass(frozen=True)
class Measured:
    """One bank's quality: `stages` and `results` as in `MiningResult`, `queries` asked."""

    queries: int
    stages: tuple[Stage, ...]
    results: Mapping[str, Mined]


class Mining(Evaluator[MiningResult]):
    """The cascade of the run's plan and its rivals on the last bank snapshot."""

    name = "mining"
    needs = "bank"
    as_card = False
    result = MiningResult

    def measure(self, subject: Subject, seen: Seen) -> MiningResult:
        """See `Evaluator.measure`."""
        why = _why_not(subject)
        return _measured(subject) if why is None else _nothing(subject, why)

    def text(self, result: MiningResult) -> list[str]:
        """See `Evaluator.text`."""
        lines = [
            f"mining on the bank of step {result.protocol.bank_step}, {result.protocol.plan}",
            f"  {'':15}{'prec@k':>8}{'hit@k':>8}{'recall':>8}{'worst':>8}  ({CLASS_MINING_RECALL}, median over classes)",
        ]
        return lines + [
            f"  {name:15}{100 * row.precision:7.1f} {100 * row.hit:7.1f} {100 * row.coverage_median:7.1f} {100 * row.coverage_least:7.1f}"
            for name, row in (result.results or {}).items()
        ]

    def heading(self, about: About) -> tuple[str, str]:
        """See `Evaluator.heading`."""
        lead = (
            "The cascade narrows the bank of all videos view by view; each stage keeps those most similar in one view. "
            "Measured afterwards on the last snapshot of the bank, with labels that mining itself never sees."
        )
        return "What the bank hands out", lead

    def part(self, result: MiningResult | None, about: About) -> Section:
        """See `Evaluator.part`; a run that does not mine has nothing to measure."""
        if about.recipe.mines:
            return super().part(result, about)
        why = _no_mining(about.recipe)
        return Section(*self.heading(about), f'<p class="missing">This run does not mine: {escape(why)}.</p>')

    def section(self, result: MiningResult, about: About) -> Section:
        """See `Evaluator.section`."""
        protocol = result.protocol
        shape = card(
            "From the whole bank to the positives",
            funnel(result.stages),
            "Top to bottom: how many videos are left after each stage (mean over queries; widths are logarithmic) and the share of "
            "them with the query's class. A cascade that works gets purer on the way down.",
        )
        words = (
            f"Plan: {protocol.plan}. k = {protocol.k}. Bank of step {protocol.bank_step}, "
            f"{protocol.filled} of {protocol.slots} slots filled. Space: {protocol.space or 'raw'}."
        )
        mined, ran = result.results or {}, protocol.strategy_of_run or "cascade"
        body = f'<div class="grid wide">{shape}{_rivals(mined)}</div><p class="note">{escape(words)}</p>'
        if (of_run := mined.get(ran)) is not None and of_run.per_class:
            body += _class_recall(of_run.per_class, mined["single"].per_class, ran)
        return Section(*self.heading(about), body)


def quality_of_bank(
    bank: EmbeddingBank, plan: CascadePlan, label: np.ndarray, main: str, aux: str, classes: Sequence[str] = ()
) -> Measured:
    """The cascade of `plan` and its rivals on one bank.

    Args:
        bank: A bank or snapshot.
        plan: Made for its filled slots.
        label: int64 [N], -1 unknown.
        main: Name of the main view.
        aux: Name of the aux view.
        classes: Their names.
    """
    query = np.flatnonzero((bank.version >= 0) & (label >= 0))
    if len(query) > MOST_QUERIES:
        query = np.sort(np.random.default_rng(0).choice(query, MOST_QUERIES, replace=False))
    found = rivals(bank, plan, label, main=main, aux=aux, query=query)
    stages = _stages(bank, plan, label, query, found["cascade"], (main, aux))
    return Measured(len(query), stages, {name: _mined(one, classes) for name, one in found.items()})


def _no_mining(recipe: Recipe) -> str:
    known = recipe.method.traits
    return f"{known.title} {known.positives}" if known.positives else f"mining.where={recipe.mining.where}"


def _why_not(subject: Subject) -> str | None:
    """Why there is nothing to measure."""
    if subject.folder is None:
        return "a card has no bank, so there is no mining to measure"
    method = subject.recipe.method
    if method.traits.mines != "always" and not method.cascade:
        return f"{method.name} does not mine"
    if latest_snapshot(subject.folder.bank) is None:
        return f"the run has no bank snapshot; type vidssl mine {subject.home}, which makes embeddings itself"
    if not subject.own_data:
        return "the bank belongs to the data of the training run, not to this data"
    return None if (subject.manifest.samples.label >= 0).any() else "the labels are unknown"


def _measured(subject: Subject) -> MiningResult:
    path = latest_snapshot(subject.folder.bank) if subject.folder else None
    assert path is not None  # `_why_not` has looked
    bank, info = load_snapshot(path, data_hash=subject.manifest.hash), read_info(path)
    mining, (main, aux) = mining_of(subject.recipe), bank_views_of(subject.recipe)
    try:
        plan = plan_from(mining.model_copy(update={"strategy": "cascade"}), bank.filled)
    except RecipeError as error:
        why = f"the bank of step {info.step} holds {bank.filled} videos, too few for the plan: {error}"
        return _nothing(subject, why)
    label, classes = subject.manifest.samples.label.astype(np.int64), subject.manifest.classes
    found = quality_of_bank(bank, plan, label, main, aux, classes)
    protocol = subject.protocol().grown(
        MiningProtocol,
        bank_step=info.step,
        slots=bank.n_slots,
        filled=bank.filled,
        strategy_of_run=mining.strategy,
        main_view=main,
        aux_view=aux,
        aggregate="mean over the queries of a class, then median and quartiles over classes",
        plan=plan.describe(),
        k=plan.k,
        last_pool=plan.last_pool,
        queries=found.queries,
        space=bank.mapped.describe(),
    )
    return MiningResult(protocol=protocol, stages=found.stages, results=found.results)


def _nothing(subject: Subject, reason: str) -> MiningResult:
    return MiningResult(protocol=subject.protocol().grown(MiningProtocol), reason=reason)


def _stages(
    bank: EmbeddingBank,
    plan: CascadePlan,
    label: np.ndarray,
    query: np.ndarray,
    cascade: MiningQuality,
    views: tuple[str, str],
) -> tuple[Stage, ...]:
    """The bank a query may mine from, then what each stage leaves of it."""
    filled, exclude = bank.version >= 0, bank.exclusions(query)
    owner, inside = exclude.row_of_slot(), filled[exclude.slots]
    of_class = inside & (label[exclude.slots] == label[query[owner]])
    allowed = bank.filled - np.bincount(owner, inside, len(query))
    mates = np.bincount(label[filled & (label >= 0)])[label[query]] - np.bincount(owner, of_class, len(query))
    purity = float(np.mean(mates / np.maximum(allowed, 1)))
    stages = [Stage("the bank", float(allowed.mean()), round(purity, 6))]
    sizes = plan.sizes(bank.filled)
    for number, (view, size, share) in enumerate(zip(plan.views, sizes, cascade.purity, strict=True), 1):
        left = float(np.minimum(size, allowed).mean())
        stages.append(Stage(f"stage {number}: {views[view]}", left, round(share, 6)))
    return tuple(stages)


def _mined(one: MiningQuality, classes: Sequence[str]) -> Mined:
    return Mined(
        precision=round(one.precision.micro, 6),
        precision_median=round(one.precision.median, 6),
        hit=round(one.hit.micro, 6),
        hit_median=round(one.hit.median, 6),
        coverage_median=round(one.class_mining_recall.median, 6),
        coverage_q1=round(one.class_mining_recall.lower, 6),
        coverage_q3=round(one.class_mining_recall.upper, 6),
        coverage_least=round(one.class_mining_recall.least, 6),
        sibling_rate=round(one.sibling_rate, 6),
        distinct=round(one.distinct, 6),
        last_pool=one.last_pool,
        coverage=round(one.class_mining_recall.micro, 6),
        per_class={
            classes[label] if label < len(classes) else str(label): round(share, 6)
            for label, share in one.recall_of_class.items()
        },
    )


def _class_recall(per_class: Mapping[str, float], single: Mapping[str, float], name: str) -> str:
    rows = [(one, share, single.get(one)) for one, share in per_class.items()]
    lead = f"{CLASS_MINING_RECALL}, in percent, best first; bars: {name}, the tick: the main view alone."
    return f"<h3>Class mining recall, class by class</h3><p>{escape(lead[0].upper() + lead[1:])}</p>{class_bars(rows)}"


def _fused() -> str:
    """Names of the rivals that use both views at once."""
    return " and ".join(name for name in RIVALS if STRATEGIES[name].fuses)


def _rivals(results: Mapping[str, Mined]) -> str:
    rows = [
        [
            name,
            bare(row.precision),
            bare(row.hit),
            f"{100 * row.coverage_median:.0f} ({100 * row.coverage_q1:.0f} – {100 * row.coverage_q3:.0f})",
        ]
        for name, row in results.items()
    ]
    siblings = max(row.sibling_rate for row in results.values())
    return card(
        "Against its rivals, on the same bank",
        table(["percent", "precision@k", "hit@k", "class mining recall"], rows, strong=0),
        "precision@k: share of mined videos with the query's class. hit@k: queries with at least one. "
        f"{CLASS_MINING_RECALL[0].upper()}{CLASS_MINING_RECALL[1:]}, median over classes (quartiles). Single and aux use one view alone, {_fused()} both at "
        "once; random is the floor. "
        f"Videos cut from the query's own source were {percent(siblings)} of the mined (they are excluded).",
    )
