"""How well does one way of mining do on one bank? Offline: a snapshot, its labels, seconds per point, no training.

Precision is of the positives themselves, not of an encoder trained with them. Only filled rows take part, so the pool of
a point is the pool it really has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.sweep.space import Point, Space
from vidssl.errors import BankError
from vidssl.methods import bank_views_of
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.metrics import measure as measure_quality
from vidssl.mining.plan import LastView
from vidssl.mining.snapshots import latest_snapshot, load_snapshot
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder

__all__ = ["Row", "Study", "load_study", "measure"]


@dataclass(frozen=True, eq=False)
class Study:
    """A bank as the trials see it: its n filled rows, in the order of their slots.

    Attributes:
        main: [n, D] rows of the view that mines first.
        aux: [n, D] rows of the trained view.
        group: int64 [n]; a query never mines its own group.
        label: int64 [n], -1 unknown.
        queries: int64 [Q], rows that mine, ascending.
        last_view: View of the last stage.
        snapshot: Folder of the snapshot, for people.
        n_slots: N, filled or not.
        data: Hash of the data set, empty when it is unknown.
    """

    main: NDArray[np.floating]
    aux: NDArray[np.floating]
    group: NDArray[np.int64]
    label: NDArray[np.int64]
    queries: NDArray[np.int64]
    last_view: LastView
    snapshot: str
    n_slots: int
    data: str

    @property
    def n_filled(self) -> int:
        """n, the rows that can be mined."""
        return len(self.group)

    @property
    def labelled(self) -> bool:
        """Whether precision can be measured at all."""
        return bool((self.label[self.queries] >= 0).any())

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Filled rows of every class that has any."""
        return np.unique(self.label[self.label >= 0], return_counts=True)[1]

    def chance(self) -> float:
        """Expected precision of positives drawn at random from what each query may mine."""
        label, group = self.label[self.queries], self.group[self.queries]
        known = label >= 0
        same_class = _sizes(self.label, label) - _together(self.label, self.group, label, group)
        allowed = self.n_filled - _sizes(self.group, group)
        return float((same_class[known] / np.maximum(allowed[known], 1)).mean()) if known.any() else float("nan")


@dataclass(frozen=True)
class Row:
    """What one point gave; measures that need labels are NaN without them.

    Attributes:
        strategy: As in the point, and so are stages, pool and topk.
        stages: S.
        ratio: Share that each stage but the last keeps.
        pool: p, candidates of the last stage.
        topk: k.
        precision_at_k: Share of mined positives that have the query's class, mean over the queries.
        precision_se: Standard error of that mean.
        hit_at_k: Share of queries with at least one right positive.
        coverage_median: Median over classes of the share of a class's rows that some query of the class mined.
        distinct_ratio: Different rows among the mined ones, of their number: low where a few hubs serve everybody.
        agreement: Mean over mined positives of the lower of the two views' cosines.
        ms_per_query: Mining alone, beside whatever else ran.
        seconds: Whole trial.
    """

    strategy: str
    stages: int
    ratio: float
    pool: int
    topk: int
    precision_at_k: float
    precision_se: float
    hit_at_k: float
    coverage_median: float
    distinct_ratio: float
    agreement: float
    ms_per_query: float
    seconds: float

    @property
    def point(self) -> tuple[str, int, int, int]:
        """What makes two rows the same point."""
        return self.strategy, self.stages, self.pool, self.topk


def load_study(folder: RunFolder, recipe: Recipe, space: Space) -> Study:
    """The newest bank snapshot of a run with the labels of its data.

    Raises:
        BankError: the run has no snapshot, or not of the recipe's two views.
    """
    path = latest_snapshot(folder.bank)
    if path is None:
        raise BankError(
            f"{folder.path} has no bank snapshot; train it with mining.where=actor for at least one checkpoint"
        )
    bank = load_snapshot(path)
    main, aux = bank_views_of(recipe)
    if missing := {main, aux} - set(bank.views):
        raise BankError(
            f"{path} holds {', '.join(bank.views)} and not {', '.join(sorted(missing))}; set method.name, method.view and method.second_view as in the run"
        )
    warm = recipe.method.warmup_steps
    # Rows of the warm-up come from a much younger encoder; training overwrites them as it goes.
    oldest = warm if bank.step >= warm else 0
    filled = np.flatnonzero(bank.version >= oldest)
    if len(filled) < 3:
        raise BankError(f"{path} holds {len(filled)} filled rows since the warm-up ended at step {warm}; train on")
    label, data = _labels(space.data or recipe.data, bank.n_slots)
    queries = np.arange(len(filled))
    if len(queries) > space.queries:
        queries = np.sort(np.random.default_rng(space.seed).choice(queries, space.queries, replace=False))
    return Study(
        main=bank.vectors(filled, main),
        aux=bank.vectors(filled, aux),
        group=bank.group[filled],
        label=label[filled],
        queries=queries,
        last_view=recipe.mining.last_view,
        snapshot=str(path),
        n_slots=bank.n_slots,
        data=data,
    )


def measure(study: Study, point: Point) -> Row:
    """Mine every query as the point says and compare with the labels."""
    began = time.perf_counter()
    plan = point.plan(study.n_filled, study.last_view)
    exclude = GroupIndex(study.group).exclusions(study.group[study.queries])
    queries = [view[study.queries] for view in (study.main, study.aux)]
    mining = time.perf_counter()
    ids = mine(queries, [study.main, study.aux], plan, exclude=exclude).ids
    mined = time.perf_counter()
    return Row(
        strategy=point.strategy,
        stages=point.stages,
        ratio=plan.ratio if point.strategy == "cascade" and point.stages > 1 else 1.0,
        pool=plan.last_pool,
        topk=point.topk,
        **_quality(study, ids),
        distinct_ratio=_distinct_ratio(ids),
        agreement=_agreement(study, ids),
        ms_per_query=1e3 * (mined - mining) / len(study.queries),
        seconds=time.perf_counter() - began,
    )


def _quality(study: Study, ids_Qk: NDArray[np.int64]) -> dict[str, float]:
    if not study.labelled:
        return dict.fromkeys(("precision_at_k", "precision_se", "hit_at_k", "coverage_median"), float("nan"))
    quality = measure_quality(study.queries, ids_Qk, study.label, study.group)
    of_query, mined = study.label[study.queries], ids_Qk >= 0
    same = mined & (study.label[ids_Qk] == of_query[:, None])
    precision_Q = (same.sum(1) / np.maximum(mined.sum(1), 1))[of_query >= 0]
    return {
        "precision_at_k": quality.precision.micro,
        "precision_se": float(precision_Q.std() / np.sqrt(len(precision_Q))),
        "hit_at_k": quality.hit.micro,
        "coverage_median": quality.coverage.median,
    }


def _distinct_ratio(ids_Qk: NDArray[np.int64]) -> float:
    mined = ids_Qk[ids_Qk >= 0]
    return len(np.unique(mined)) / max(len(mined), 1)


def _agreement(study: Study, ids_Qk: NDArray[np.int64]) -> float:
    """Lower cosine of the two views, mean over positives; block by block, because features are gathered here."""
    total, number = 0.0, int((ids_Qk >= 0).sum())
    for start in range(0, len(ids_Qk), 1024):
        ids, rows = ids_Qk[start : start + 1024], study.queries[start : start + 1024]
        cosines = [
            np.einsum("qd,qkd->qk", view[rows], view[np.maximum(ids, 0)], dtype=np.float32)
            for view in (study.main, study.aux)
        ]
        total += float(np.minimum(*cosines)[ids >= 0].sum())
    return total / max(number, 1)


def _labels(data: str | None, n_slots: int) -> tuple[NDArray[np.int64], str]:
    """Labels by slot and the hash of the data; all unknown where the recipe names no data."""
    from pipelines.dataset.manifest import load_manifest

    nothing = np.full(n_slots, -1, np.int64), ""
    if data is None:
        return nothing
    manifest = load_manifest(Path(data).expanduser().resolve(), verify="nothing")  # labels alone are asked for
    if len(manifest) != n_slots:
        raise BankError(
            f"{data} holds {len(manifest)} videos and the bank {n_slots} slots; give the data of this run as data=FOLDER"
        )
    return manifest.samples.label.astype(np.int64), manifest.hash


def _sizes(of: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of `values` occurs in `of`."""
    known, counts = np.unique(of, return_counts=True)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, counts[at], 0)


def _together(
    label: NDArray[np.int64], group: NDArray[np.int64], of_label: NDArray[np.int64], of_group: NDArray[np.int64]
) -> NDArray[Any]:
    """Rows that share both the class and the group of each query."""
    width = int(group.max()) + 2
    return _sizes((label + 1) * width + group, (of_label + 1) * width + of_group)
