"""(e) Which positives make the stream better that learns from them? A training phase for every space and strategy.

Two streams learn by InfoNCE. Their rows of many videos are a bank, on which precision is measured as in (d). Then each
stream is trained on with every arm for the same number of updates, positives mined inline in the queue, and asked R@1.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.science_arms import Phase, run_phase
from benchmarks.science_data import Clips, draw_sources
from benchmarks.science_precision import bank_precision
from benchmarks.science_training import describe, method_of, recall, train
from benchmarks.science_worlds import CASCADE, SETUPS, VIEWS, Gestures, Setup

__all__ = ["SETUPS", "Setup", "comparisons", "register", "run"]

WHOLE_POOL = True
"""`run` is given all training videos and draws the seed's own."""
OTHER = dict(zip(VIEWS, VIEWS[::-1], strict=True))
NAMES = {CASCADE: "cascade"}
IIC = (
    "method.name=iic",
    "method.iic.negatives=128",
    "method.iic.intra=repeat",
    "method.iic.intra_negative=live",
    "method.iic.normalize=true",
)
"""As `cpr-real-tiny` begins."""


def register(setup: Setup) -> dict[str, object]:
    """What is claimed, how it is measured and how long it takes, fixed before the run."""
    sizes = asdict(setup)
    del sizes["asked"]  # it stands in what is said, in direction and recipe
    return {
        **setup.asked.said,
        "metric": "R@1 of test videos among the seed's training videos, p1_strict; precision@k as in (d) on the streams before the phase",
        "phase": "positives mined inline in the queue, maps fitted on it every 4 steps; own sources never mined, siblings are positives "
        "in all arms but 'none'; equal updates, clips, order and weights at the start for all arms of a seed",
        "published cascade": f"S={setup.asked.stages}, last pool {setup.pool}{' (with 512 slots r=.5)' if setup.pool == 8 else ''}",
        "direction": "; ".join(f"train {view}: main = {OTHER[view]}" for view in setup.asked.trained)
        + "; the main view is frozen",
        "setup": sizes,
    }


def comparisons(setup: Setup) -> list[tuple[str, str, str]]:
    """(what, arm, rival): every arm against the published cascade, mean of both streams first; then other rivals."""
    return [
        (f"{panel}: {arm} - {NAMES.get(rival, rival)}", f"{panel}: R@1 | {arm}", f"{panel}: R@1 | {rival}")
        for rival in setup.asked.rivals
        for panel in ("both streams", *(f"train {view}" for view in setup.asked.trained))
        for arm in setup.arms
        if arm != rival
    ]


def run(setup: Setup, pool: Clips, test: Clips, seed: int) -> dict[str, float]:
    """All numbers of one seed: `panel | arm` → value."""
    clips = _drawn(pool, setup.world.sources, seed)
    weights = _one_network(setup, clips, seed) if isinstance(setup, Gestures) else _alone(setup, clips, seed)
    table = _before(setup, weights, pool, clips, test, seed)
    after = _cycles(setup, weights, clips, test, seed, table) if setup.cycles else {}
    for view in () if setup.cycles else setup.asked.trained:
        starts = dict.fromkeys(setup.arms, weights)
        for arm, method in run_phase(_phase(setup, view, OTHER[view]), setup.arms, starts, clips, seed + 1_000).items():
            after[view, arm] = recall(describe(method.encoder(view), view, clips, test), clips, test)
    table |= {f"train {view}: R@1 | {arm}": value for (view, arm), value in after.items()}
    for arm in ("before", *setup.arms):
        table[f"both streams: R@1 | {arm}"] = float(
            np.mean([table[f"train {view}: R@1 | {arm}"] for view in setup.asked.trained])
        )
    return table


def _cycles(
    setup: Setup, weights: dict[str, dict[str, Tensor]], clips: Clips, test: Clips, seed: int, table: dict[str, float]
) -> dict[tuple[str, str], float]:
    """R@1 of every view and arm after the last cycle, in which each stream learned from what the other had become."""
    streams = {arm: dict(weights) for arm in setup.arms}
    after: dict[tuple[str, str], float] = {}
    for number in range(1, setup.cycles + 1):
        for turn, (view, second) in enumerate((VIEWS, VIEWS[::-1])):
            at = seed + 1_000 * (2 * number + turn)
            for arm, method in run_phase(_phase(setup, view, second), setup.arms, streams, clips, at).items():
                streams[arm][view] = method.artifact(view)
                after[view, arm] = recall(describe(method.encoder(view), view, clips, test), clips, test)
                table[f"cycle {number}, {view}: R@1 | {arm}"] = after[view, arm]
    return after


def _phase(setup: Setup, view: str, second: str) -> Phase:
    return Phase([*_words(setup, view), f"method.second_view={second}"], setup.together, setup.asked.stages, setup.pool)


def _drawn(clips: Clips, sources: int, seed: int) -> Clips:
    return draw_sources(replace(clips, world=replace(clips.world, sources=sources)), seed)


def _words(setup: Setup, view: str) -> list[str]:
    sizes = [f"model.width={setup.width}", f"model.dim={setup.dim}", f"method.queue={setup.queue}"]
    return [*sizes, *setup.asked.words, f"method.view={view}", "method.warmup_steps=0", "method.exclude_siblings=true"]


def _alone(setup: Setup, clips: Clips, seed: int) -> dict[str, dict[str, Tensor]]:
    weights = {}
    for view in VIEWS:
        method = method_of([*_words(setup, view), "method.name=infonce"], seed, len(clips))
        train(method, clips, (view,), replace(setup.together, steps=setup.alone[view]), seed)
        weights[view] = method.artifact(view)
    return weights


def _one_network(setup: Gestures, clips: Clips, seed: int) -> dict[str, dict[str, Tensor]]:
    """What IIC makes of one network for both views, its own frozen frame among the negatives."""
    method = method_of([*_words(setup, VIEWS[0]), f"method.second_view={VIEWS[1]}", *IIC], seed, len(clips))
    train(method, clips, VIEWS, setup.first, seed)
    return {view: method.artifact(view) for view in VIEWS}


def _before(
    setup: Setup, weights: dict[str, dict[str, Tensor]], pool: Clips, clips: Clips, test: Clips, seed: int
) -> dict[str, float]:
    """R@1 of the streams as the phase finds them, and the precision of what can be mined with them."""
    table: dict[str, float] = {}
    whole = pool if max(setup.banks, default=0) > len(clips) else clips
    own, embeddings = _places(clips, whole), []
    for view in VIEWS:
        method = method_of([*_words(setup, view), "method.name=infonce"], seed, len(clips))
        method.start_from(weights[view])
        rows = describe(method.encoder(view), view, whole, test)
        embeddings.append(rows.embedding)
        table[f"train {view}: R@1 | before"] = recall(replace(rows, train=rows.train[own]), clips, test)
    for slots in setup.banks:
        inside = whole if slots == len(whole) else _drawn(clips, slots // setup.world.cuts, seed)
        places = _places(inside, whole)
        views = [rows[places] for rows in embeddings]
        found = bank_precision(views, inside.label, inside.group, setup.ks, setup.queries, seed)
        table |= {f"bank N={slots} {column}": value for column, value in found.items()}
    return table


def _places(some: Clips, whole: Clips) -> NDArray[np.int64]:
    """Rows of `some` in `whole`; both keep the order of the pack."""
    return np.flatnonzero(np.isin(whole.group, some.group))
