"""The one door to mining: queries and bank of both views in, positives out, by whichever engine fits.

Two matrix products, then selection on scores; features are gathered only where a first stage keeps so little that its
rows cost less than a product with the whole bank. Excluded and unfilled slots are removed before the first stage and
cannot come back. Ties: higher score, then lower slot; every engine equals `oracle.mine_slowly` wherever the scores
themselves are equal (rounding of products is each library's own, and a gathered row's may differ in the last bit from
the same row's in a product with all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vidssl.errors import BankError
from vidssl.mining.budget import LEAST, host_budget
from vidssl.mining.choice import Backend, choose_backend
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.oracle import mine_slowly
from vidssl.mining.plan import CascadePlan
from vidssl.mining.scores import is_half, raised
from vidssl.mining.stream import mine_streaming
from vidssl.mining.task import Array, Selection, Task
from vidssl.mining.whole import mine_whole

__all__ = ["Array", "Backend", "MineResult", "choose_backend", "mine"]

WIDEST = 64
"""Bytes that a score takes at most in any engine with all that is made of it."""
STREAM_FROM = 65_536
"""Filled slots from which on the bank is streamed: below, whole rows of scores stay in the cache anyway."""


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
    threads: int | None = None,
    trace: bool = False,
) -> MineResult:
    """Positives of a batch of queries.

    Args:
        queries: [B, D] rows of the main view, then of the aux one; arrays or tensors. A plan that never reads the
            aux view may come with the main one only.
        bank: [N, D] rows of the same views, float32, float16 or (tensors) bfloat16, on one device.
        plan: Stages, sizes and views; its sizes follow the filled slots of this bank.
        exclude: Slots each query may not mine (itself, its siblings).
        valid: bool [N], filled slots; None: all. On a GPU give it as an array: a tensor costs one wait more.
        backend: "auto" takes torch for tensors on a GPU, else numpy, or FAISS where this machine's table says that it
            is faster (`vidssl.mining.choice`). A strategy that fuses both views needs every score, so FAISS leaves it to
            numpy.
        budget_bytes: About how much memory scores and keys may take; larger batches are cut (the results are the
            same). None: a quarter of what is free.
        threads: Of the engine, beside those of the matrix products' library; None: torch's number.
        trace: Keep the survivors of every stage, for purity by stage.

    Raises:
        BankError: shapes or devices that do not fit, exclusions outside the bank, rows that are not finite.
    """
    with torch.no_grad():
        rows, n_slots = _check(queries, bank, plan)
        excluded = exclude if isinstance(exclude, Exclusions) else Exclusions.from_lists(exclude or [()] * rows)
        excluded.check(rows, n_slots)
        used = 2 if plan.needs_aux else 1
        filled = None if valid is None else _as_array(valid).astype(bool)
        if filled is not None and filled.shape != (n_slots,):
            raise BankError(f"valid has shape {filled.shape}, the bank has {n_slots} slots")
        n_filled = n_slots if filled is None else int(np.count_nonzero(filled))
        task = Task(
            queries=queries[:used],
            bank=bank[:used],
            plan=plan,
            sizes=plan.sizes(n_filled),
            exclude=excluded,
            valid=None if n_filled == n_slots else filled,
            filled=n_filled,
            threads=threads or torch.get_num_threads(),
            budget=budget_bytes or _budget(rows * n_slots, _on_gpu(bank)),
            trace=trace,
        )
        if backend == "auto":
            first = task.sizes[0] + excluded.widest
            backend = choose_backend(n_slots, first, _on_gpu(bank), is_half(bank[0]), task.threads)
        return _result(_run(task, backend), task)


def _budget(cells: int, on_gpu: bool) -> int:
    if on_gpu:
        return 0
    return LEAST if cells * WIDEST <= LEAST else host_budget()  # what is always granted need not be asked for


def _run(task: Task, backend: Backend) -> Selection:
    if backend == "torch":
        from vidssl.mining.select_torch import mine_on_device

        return mine_on_device(task.of(_as_tensor))
    task = task.of(_as_rows)
    task = replace(task, queries=[raised(query, 0, task.rows) for query in task.queries])
    if backend == "oracle":
        return _slowly(task)
    if backend == "faiss" and not (task.plan.traits.fuses or task.plan.traits.reads_labels):
        from vidssl.mining.select_faiss import mine_by_faiss

        return mine_by_faiss(task)
    if task.filled < STREAM_FROM or task.trace or task.plan.traits.ranks:
        return mine_whole(task)
    return _streamed(task)


def _streamed(task: Task) -> Selection:
    """Whole rows of scores only for queries that may mine less than the first stage keeps, or whose brackets missed."""
    ids = np.full((task.rows, task.sizes[-1]), -1, np.int64)
    scores, left = np.full(ids.shape, -np.inf, np.float32), task.allowed < task.sizes[0]
    if not left.all():
        rich = np.flatnonzero(~left)
        ids[rich], scores[rich], left[rich] = mine_streaming(task if len(rich) == task.rows else task.only(rich))
    if left.any():
        rows = np.flatnonzero(left)
        ids[rows], scores[rows], _ = mine_whole(task.only(rows))
    return ids, scores, []


def _slowly(task: Task) -> Selection:
    valid = np.ones(task.n_slots, bool) if task.valid is None else task.valid
    bank = [raised(view, 0, task.n_slots) for view in task.bank]
    stages_B, scores_B = mine_slowly(task.wide, bank, task.plan, task.exclude, valid)
    padded = []
    for stage, size in enumerate(task.sizes):
        padded.append(np.full((len(stages_B), size), -1, np.int64))
        for row, stages in enumerate(stages_B):
            padded[-1][row, : len(stages[stage])] = stages[stage]
    scores = np.full(padded[-1].shape, -np.inf, np.float32)
    for row, known in enumerate(scores_B):
        scores[row] = [known.get(slot, -np.inf) for slot in padded[-1][row].tolist()]
    return padded[-1], scores, padded if task.trace else []


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
        if not (isinstance(query, Tensor) and query.is_cuda) and not np.isfinite(_as_array(query)).all():
            raise BankError("a query is not finite; mine with finite unit rows only")  # on a device it is found later
    if n_slots < 1 or len({isinstance(view, Tensor) and view.device for view in bank}) > 1:
        raise BankError("the bank is empty or its views lie on different devices")
    return rows, n_slots


def _as_array(values: Array) -> NDArray:
    rows = _as_rows(values)
    return rows.float().numpy() if isinstance(rows, Tensor) else rows


def _as_rows(values: Array) -> Array:
    """An array, or where numpy has no such dtype a tensor on the host."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values if values.dtype == torch.bfloat16 else values.numpy()
    return values


def _as_tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _on_gpu(bank: Sequence[Array]) -> bool:
    return isinstance(bank[0], Tensor) and bank[0].is_cuda


def _result(found: Selection, task: Task) -> MineResult:
    ids, scores, stages = found
    if missing := task.sizes[-1] - ids.shape[1]:  # a bank of fewer slots than k
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    survivors = np.minimum(np.array(task.sizes, np.int64)[None], task.allowed[:, None])
    return MineResult(ids, scores, (ids >= 0).sum(1).astype(np.int64), survivors, tuple(stages))
