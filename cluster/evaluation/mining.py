"""How good is what a run's bank hands out? Measured on its last snapshot, with labels that mining never saw."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cluster.subject import Subject
from vidssl.errors import RecipeError
from vidssl.methods import bank_views_of, mining_of
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.metrics import MiningQuality, rivals
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.snapshots import latest_snapshot, load_snapshot, read_info

__all__ = ["mining_quality", "quality_of_bank"]

MOST_QUERIES: Final = 10_000  # a larger bank answers a sample of its own rows


def mining_quality(subject: Subject) -> dict[str, Any]:
    """Quality of the cascade and of its rivals on the last bank snapshot of a run (plain JSON values).

    Where nothing can be measured, `results` is None and `reason` says why.
    """
    label = subject.manifest.samples.label.astype(np.int64)
    if subject.folder is None:
        return _nothing(subject, "a model card holds an encoder and no bank")
    path, method = latest_snapshot(subject.folder.bank), subject.recipe.method
    if method.traits.mines != "always" and not method.cascade:
        return _nothing(subject, f"{method.name} does not mine")
    if path is None:
        return _nothing(subject, "the run has no bank snapshot (mining.where=actor writes one with each checkpoint)")
    if not subject.own_data:
        return _nothing(subject, "the bank belongs to the data of the training run, not to this data")
    if not (label >= 0).any():
        return _nothing(subject, "the labels are unknown")
    bank, info = load_snapshot(path, data_hash=subject.manifest.hash), read_info(path)
    mining = mining_of(subject.recipe)
    try:
        plan = plan_from(mining.model_copy(update={"strategy": "cascade"}), bank.filled)
    except RecipeError as error:
        return _nothing(
            subject, f"the bank of step {info.step} holds {bank.filled} videos, too few for the plan: {error}"
        )
    views = bank_views_of(subject.recipe)
    measured = quality_of_bank(bank, plan, label, *views)
    about = {
        "bank_step": info.step,
        "slots": bank.n_slots,
        "filled": bank.filled,
        "strategy_of_run": mining.strategy,
        "main_view": views[0],
        "aux_view": views[1],
        "aggregate": "mean over the queries of a class, then median and quartiles over classes",
    }
    return {"protocol": subject.protocol() | about | measured.pop("protocol"), "reason": None} | measured


def quality_of_bank(bank: EmbeddingBank, plan: CascadePlan, label: np.ndarray, main: str, aux: str) -> dict[str, Any]:
    """The cascade of `plan` and its rivals on one bank.

    Args:
        bank: A bank or snapshot.
        plan: Made for its filled slots.
        label: int64 [N], -1 unknown.
        main: Name of the main view.
        aux: Name of the auxiliary view.

    Returns:
        `protocol` (plan, k, last pool, queries), `stages` (survivors and purity, the whole bank first) and `results`
        by strategy.
    """
    query = np.flatnonzero((bank.version >= 0) & (label >= 0))
    if len(query) > MOST_QUERIES:
        query = np.sort(np.random.default_rng(0).choice(query, MOST_QUERIES, replace=False))
    table = rivals(bank, plan, label, main=main, aux=aux, query=query)
    protocol = {"plan": plan.describe(), "k": plan.k, "last_pool": plan.last_pool, "queries": len(query)}
    stages = _stages(bank, plan, label, query, table["cascade"], (main, aux))
    return {"protocol": protocol, "stages": stages, "results": {name: _numbers(one) for name, one in table.items()}}


def _stages(
    bank: EmbeddingBank,
    plan: CascadePlan,
    label: np.ndarray,
    query: np.ndarray,
    cascade: MiningQuality,
    views: tuple[str, str],
) -> list[dict[str, Any]]:
    """The bank a query may mine from, then what each stage leaves of it."""
    filled, exclude = bank.version >= 0, bank.exclusions(query)
    owner, there = exclude.row_of_slot(), filled[exclude.slots]
    of_class = there & (label[exclude.slots] == label[query[owner]])
    allowed = bank.filled - np.bincount(owner, there, len(query))
    mates = np.bincount(label[filled & (label >= 0)])[label[query]] - np.bincount(owner, of_class, len(query))
    purity = float(np.mean(mates / np.maximum(allowed, 1)))
    stages: list[dict[str, Any]] = [{"name": "the bank", "left": float(allowed.mean()), "purity": round(purity, 6)}]
    sizes = plan.sizes(bank.filled)
    for number, (view, size, share) in enumerate(zip(plan.views, sizes, cascade.purity, strict=True), 1):
        name = f"stage {number}: {views[view]}"
        stages.append({"name": name, "left": float(np.minimum(size, allowed).mean()), "purity": round(share, 6)})
    return stages


def _numbers(one: MiningQuality) -> dict[str, float | int | None]:
    return {
        "precision": round(one.precision.micro, 6),
        "precision_median": round(one.precision.median, 6),
        "hit": round(one.hit.micro, 6),
        "hit_median": round(one.hit.median, 6),
        "coverage_median": round(one.coverage.median, 6),
        "coverage_q1": round(one.coverage.lower, 6),
        "coverage_q3": round(one.coverage.upper, 6),
        "coverage_least": round(one.coverage.least, 6),
        "sibling_rate": round(one.sibling_rate, 6),
        "distinct": round(one.distinct, 6),
        "last_pool": one.last_pool,
    }


def _nothing(subject: Subject, reason: str) -> dict[str, Any]:
    return {"protocol": subject.protocol(), "reason": reason, "stages": [], "results": None}
