"""The one door to mining: queries and bank of both views in, positives out, by whichever backend fits.

Features are never gathered: one matrix product per view, then selection on scores. Excluded and unfilled slots are
removed before the first stage and cannot come back. Ties: higher score, then lower slot; every backend equals
`oracle.mine_slowly` wherever the scores themselves are equal (rounding of products is the backend's own).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vidssl.errors import BankError
from vidssl.mining import select
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.oracle import mine_slowly
from vidssl.mining.plan import CascadePlan
from vidssl.mining.scores import check_finite, score
from vidssl.mining.strategy import strategy_of

__all__ = ["Backend", "MineResult", "choose_backend", "mine"]

Backend = Literal["auto", "numpy", "torch", "faiss", "oracle"]
Array: TypeAlias = NDArray | Tensor

FAISS_FROM = 262_144
"""N below which FAISS has no advantage: above, it is level in time and never holds the main view's scores."""
FAISS_UP_TO = 0.01
"""Share of N that a first stage may keep for FAISS to be the faster tool (it sorts what it returns)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MineResult:
    """Mined slots of B queries.

    Attributes:
        ids: int64 [B, k], best first, -1 where there are fewer than k allowed slots.
        scores: float32 [B, k] by which the last stage ordered them; -inf where -1.
        count: int64 [B], how many were mined.
        survivors: int64 [B, S], candidates left after each stage.
        stages: With `trace`, int64 [B, size] of every stage, best first by that stage's view, padded with -1.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    count: NDArray[np.int64]
    survivors: NDArray[np.int64]
    stages: tuple[NDArray[np.int64], ...] = field(default=())


def mine(
    queries: Sequence[Array],
    bank: Sequence[Array],
    plan: CascadePlan,
    *,
    exclude: Exclusions | Sequence[ArrayLike] | None = None,
    valid: Array | None = None,
    backend: Backend = "auto",
    budget_bytes: int | None = None,
    threads: int = 1,
    trace: bool = False,
) -> MineResult:
    """Positives of a batch of queries.

    Args:
        queries: [B, D] rows of the main view, then of the aux one; arrays or tensors. A plan that never reads the
            aux view may come with the main one only.
        bank: [N, D] rows of the same views, float32 or half precision, on one device.
        plan: Stages, sizes and views; its sizes follow the filled slots of this bank.
        exclude: Slots each query may not mine (itself, its siblings).
        valid: bool [N], filled slots; None: all.
        backend: "auto" takes torch for tensors on a GPU, FAISS for short first stages of large banks, else numpy.
            A strategy that fuses both views needs every score, so FAISS leaves it to numpy.
        budget_bytes: About how much memory scores and keys may take; larger batches are cut (the results are the
            same). None: 256 MB, on a GPU 4 GB.
        threads: Threads of the selection; matrix products follow their library's own setting.
        trace: Keep the survivors of every stage, for purity by stage.

    Raises:
        BankError: shapes or devices that do not fit, exclusions outside the bank, rows that are not finite.
    """
    with torch.no_grad():
        rows, n_slots = _check(queries, bank, plan)
        excluded = exclude if isinstance(exclude, Exclusions) else Exclusions.from_lists(exclude or [()] * rows)
        excluded.check(rows, n_slots)
        valid_N = None if valid is None else _as_array(valid).astype(bool)
        if valid_N is not None and valid_N.shape != (n_slots,):
            raise BankError(f"valid has shape {valid_N.shape}, the bank has {n_slots} slots")
        used = 2 if plan.needs_aux else 1
        n_filled = n_slots if valid_N is None else int(valid_N.sum())
        sizes = plan.sizes(n_filled)
        if backend == "auto":
            half = bank[0].itemsize < 4
            backend = choose_backend(n_slots, sizes[0] + excluded.widest, _on_gpu(bank), half)
        job = _Job(queries[:used], bank[:used], plan, sizes, valid_N, backend, threads, trace)
        budget = budget_bytes or ((4 << 30) if _on_gpu(bank) else (256 << 20))
        parts = [job.run(a, b, excluded.part(a, b)) for a, b in _blocks(rows, n_slots, used, budget)]
    return _result(parts, _allowed(excluded, valid_N, n_filled), sizes, rows)


def choose_backend(n_slots: int, first_stage: int, on_gpu: bool, half: bool = False) -> Backend:
    """The backend that `auto` takes; each choice is logged once.

    Args:
        n_slots: N.
        first_stage: Candidates the first stage keeps, with the widest exclusion on top.
        on_gpu: Whether the bank lies on a CUDA device.
        half: Whether its rows are in half precision.
    """
    backend: Backend = "numpy"
    if on_gpu:
        backend = "torch"
    elif half:
        backend = "numpy"  # FAISS would copy the whole bank to float32
    elif n_slots >= FAISS_FROM and first_stage <= FAISS_UP_TO * n_slots and _has_faiss():
        backend = "faiss"
    _log_choice(backend, n_slots.bit_length(), on_gpu)
    return backend


@dataclass(frozen=True)
class _Job:
    """One call of `mine`, run block by block of its queries."""

    queries: Sequence[Array]
    bank: Sequence[Array]
    plan: CascadePlan
    sizes: tuple[int, ...]
    valid: NDArray[np.bool_] | None
    backend: Backend
    threads: int
    trace: bool

    def run(self, start: int, stop: int, exclude: Exclusions) -> select.Selection:
        queries = [query[start:stop] for query in self.queries]
        if self.backend == "torch":
            return self._on_device(queries, exclude)
        arrays = [_as_array(query).astype(np.float32) for query in queries]
        bank = [_as_array(view) for view in self.bank]
        if self.backend == "oracle":
            return self._slowly(arrays, bank, exclude)
        if self.backend == "faiss" and not (self.plan.traits.fuses or self.plan.traits.reads_labels):
            from vidssl.mining.select_faiss import select_faiss

            return select_faiss(
                arrays, bank, self.plan.views, self.sizes, exclude, self.valid, self.threads, self.trace
            )
        scores = [score(query, view, exclude, self.valid) for query, view in zip(arrays, bank, strict=True)]
        scores = strategy_of(self.plan.strategy).fuse(scores)
        if scores[0].shape[1] <= select.KEYS_UP_TO:
            return select.select_keys(scores, self.plan.views, self.sizes, self.trace)
        return select.select_rows(scores, self.plan.views, self.sizes, self.trace, self.threads)

    def _on_device(self, queries: Sequence[Array], exclude: Exclusions) -> select.Selection:
        from vidssl.mining.select_torch import score_on_device, select_on_device

        bank = [torch.as_tensor(view) for view in self.bank]
        valid = None if self.valid is None else torch.from_numpy(self.valid).to(bank[0].device)
        here = [_as_tensor(query).to(bank[0].device) for query in queries]
        scores = [score_on_device(query, view, exclude, valid) for query, view in zip(here, bank, strict=True)]
        check_finite(max(float(view.max()) for view in scores))
        return select_on_device(scores, self.plan, self.sizes, self.trace)

    def _slowly(self, queries: list[NDArray], bank: list[NDArray], exclude: Exclusions) -> select.Selection:
        valid = np.ones(len(bank[0]), bool) if self.valid is None else self.valid
        stages_B, scores_B = mine_slowly(queries, bank, self.plan, exclude, valid)
        padded = []
        for stage, size in enumerate(self.sizes):
            padded.append(np.full((len(stages_B), size), -1, np.int64))
            for row, stages in enumerate(stages_B):
                padded[-1][row, : len(stages[stage])] = stages[stage]
        scores = np.full(padded[-1].shape, -np.inf, np.float32)
        for row, known in enumerate(scores_B):
            scores[row] = [known.get(slot, -np.inf) for slot in padded[-1][row].tolist()]
        return padded[-1], scores, padded if self.trace else []


def _check(queries: Sequence[Array], bank: Sequence[Array], plan: CascadePlan) -> tuple[int, int]:
    needed = 2 if plan.needs_aux else 1
    if len(queries) != len(bank) or len(bank) < needed:
        given = f"{len(queries)} query views and {len(bank)} bank views were given"
        raise BankError(f"{given}; this plan ({plan.strategy}) reads {needed} of each")
    rows, n_slots = len(queries[0]), len(bank[0])
    for query, view in zip(queries, bank, strict=True):
        if query.ndim != 2 or view.ndim != 2 or query.shape[1] != view.shape[1]:
            raise BankError(f"queries {tuple(query.shape)} and bank {tuple(view.shape)} must be [B, D] and [N, D]")
        if len(query) != rows or len(view) != n_slots:
            raise BankError("the views must have the same number of queries and of bank rows")
        if not np.isfinite(_as_array(query)).all():
            raise BankError("a query is not finite; mine with finite unit rows only")
    if n_slots < 1 or len({isinstance(view, Tensor) and view.device for view in bank}) > 1:
        raise BankError("the bank is empty or its views lie on different devices")
    return rows, n_slots


def _as_array(values: Array) -> NDArray:
    if isinstance(values, Tensor):
        values = values.detach()
        return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return values


def _as_tensor(values: Array) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))  # may be read-only


def _on_gpu(bank: Sequence[Array]) -> bool:
    return isinstance(bank[0], Tensor) and bank[0].is_cuda


def _blocks(rows: int, n_slots: int, views: int, budget_bytes: int) -> list[tuple[int, int]]:
    block = max(1, budget_bytes // (n_slots * (4 * views + 12)))  # scores of each view, then one copy or its keys
    return [(a, min(a + block, rows)) for a in range(0, rows, block)]


def _allowed(exclude: Exclusions, valid: NDArray[np.bool_] | None, n_filled: int) -> NDArray[np.int64]:
    lost = []
    for row in range(exclude.rows):
        slots = np.unique(exclude.row(row))
        lost.append(len(slots) if valid is None else int(valid[slots].sum()))
    return n_filled - np.array(lost, np.int64)


def _result(
    parts: Sequence[select.Selection], allowed_B: NDArray[np.int64], sizes: tuple[int, ...], rows: int
) -> MineResult:
    ids, scores = np.full((rows, sizes[-1]), -1, np.int64), np.full((rows, sizes[-1]), -np.inf, np.float32)
    start = 0
    for part_ids, part_scores, _ in parts:
        ids[start : start + len(part_ids), : part_ids.shape[1]] = part_ids
        scores[start : start + len(part_ids), : part_ids.shape[1]] = part_scores
        start += len(part_ids)
    survivors = np.minimum(np.array(sizes, np.int64)[None], allowed_B[:, None])
    traced = tuple(np.concatenate(stage) for stage in zip(*(part[2] for part in parts), strict=True))
    return MineResult(ids, scores, (ids >= 0).sum(1).astype(np.int64), survivors, traced)


@lru_cache
def _has_faiss() -> bool:
    from importlib.util import find_spec

    return find_spec("faiss") is not None


@lru_cache
def _log_choice(backend: str, bits: int, on_gpu: bool) -> None:
    device = "gpu" if on_gpu else "cpu"
    _log.info("mining backend: %s (bank of up to %d slots, %s)", backend, 1 << bits, device)
