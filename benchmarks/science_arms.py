"""How is one stream trained on with each way of mining, at the price of one? The arms take every step together.

What does not depend on the arm is made once for a step: its clips, and the frozen stream's rows of them. Everything
else is the product's method; only what it mines comes from here, so that spaces and strategies of no recipe can be tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.science_data import Clips
from benchmarks.science_training import Training, method_of, recipe_of, train_together
from vidssl.batch import ClipBatch, Positives
from vidssl.methods import Method
from vidssl.methods.coclr import CoCLR
from vidssl.methods.mined import MinedLoss, Rows
from vidssl.methods.stream import Stream
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.space import SpaceKind, fit_space, raw_space
from vidssl.queue import RingQueue
from vidssl.recipe import Recipe

__all__ = ["Arm", "Phase", "SoftArm", "run_phase", "soft_weights"]

REFIT_EVERY = 4
"""Steps for which one map is used."""


@dataclass(frozen=True)
class Arm:
    """One way to find positives in the queue.

    Attributes:
        strategy: Of `vidssl.tables.strategies`, or "none": the InfoNCE that the streams began with goes on.
        space: In which rows it mines.
        k: Positives of a row.
        far: Of so many mined the k that lie farthest in the trained view are taken; 0: the k best.
        quiet: So many are mined, and those after the k best are no negatives either; 0: only the k are mined.
    """

    strategy: str
    space: SpaceKind = "raw"
    k: int = 5
    far: int = 0
    quiet: int = 0

    @property
    def mined(self) -> int:
        """How many a row mines before k of them are chosen."""
        return max(self.k, self.far, self.quiet)


@dataclass(frozen=True)
class SoftArm(Arm):
    """An arm whose positives count by their score in the space that they were mined in.

    Attributes:
        heat: Temperature of the softmax over a row's positives.
        of: Whose score: "both" views' mean cosine (their agreement), or the "main" view's alone.
    """

    heat: float = 0.1
    of: Literal["both", "main"] = "both"


@dataclass(frozen=True)
class Phase:
    """One phase of a stream; the same for every arm.

    Attributes:
        words: Recipe of sizes, views and queue.
        training: How long.
        stages: S of the arms that narrow.
        pool: p of the arms that narrow.
    """

    words: Sequence[str]
    training: Training
    stages: int
    pool: int

    def method(self, arm: Arm, seed: int, videos: int) -> Method:
        """A method whose positives come from an arm."""
        words = [*self.words, f"mining.topk={arm.mined}", f"mining.stages={self.stages}", f"mining.pool={self.pool}"]
        if arm.strategy == "none":
            return method_of([*words, "method.name=infonce"], seed, videos)
        recipe_words = [*words, "method.name=cpr", "mining.where=inline", f"mining.strategy={arm.strategy}"]
        method = method_of(recipe_words, seed, videos)
        assert isinstance(method, CoCLR)  # for the type checker
        views = (method.main_view, method.aux_view)
        loss = SoftLoss if isinstance(arm, SoftArm) else ArmLoss
        method.mined = loss(recipe_of(recipe_words), seed, views, arm)
        return method


def run_phase(
    phase: Phase,
    arms: Mapping[str, Arm],
    weights: Mapping[str, Mapping[str, Mapping[str, Tensor]]],
    clips: Clips,
    seed: int,
) -> dict[str, Method]:
    """Train one stream on with every arm, all of them step by step together.

    Args:
        phase: Its words name the trained view (`method.view`) and the second one (`method.second_view`).
        arms: Name → arm.
        weights: Name → view → encoder to start from. Arms that are given one and the same frozen encoder share its rows.
        clips: Training videos.
        seed: Of clips and order.
    """
    methods = {name: phase.method(arm, seed, len(clips)) for name, arm in arms.items()}
    frozen: dict[int, FrozenRows] = {}
    views: dict[str, None] = {}
    for name, method in methods.items():
        method.start_from(weights[name][method.trained_view])
        views |= dict.fromkeys((method.trained_view, method.main_view))
        if isinstance(method, CoCLR):
            second = weights[name][method.main_view]
            method.load_second(second)
            stream = method.stream(method.main_view)
            stream.frozen_rows = frozen.setdefault(id(second), FrozenRows(stream))
    train_together(methods, clips, list(views), phase.training, seed)
    return methods


class FrozenRows:
    """The frozen stream's rows of one step's clips, made for the first arm that asks and handed to all."""

    def __init__(self, stream: Stream) -> None:
        self._make = stream.frozen_rows
        self._of: Tensor | None = None
        self._rows: Tensor | None = None

    def __call__(self, clips: Tensor) -> Tensor:
        """Unit rows [B, D]."""
        if self._rows is None or self._of is None or self._of.data_ptr() != clips.data_ptr():
            self._of, self._rows = clips, self._make(clips)  # held, so that no other clips can get its address
        return self._rows


class ArmLoss(MinedLoss):
    """The product's loss with the positives of an arm.

    Args:
        recipe: The run.
        seed: Of the run.
        views: Names of the main and of the trained view.
        arm: What is mined.
    """

    def __init__(self, recipe: Recipe, seed: int, views: tuple[str, str], arm: Arm) -> None:
        super().__init__(recipe, seed, main=views[0], keys=views[1])
        self.arm = arm
        self._space, self._used = raw_space(), 0
        self._quiet: Tensor | None = None

    def _table(
        self, rows: Rows, queue: RingQueue, batch: ClipBatch, given: Positives | None, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        logits, positive, valid, mined, weights = super()._table(rows, queue, batch, given, k)
        if self._quiet is not None:
            valid = valid & ~torch.cat([torch.zeros_like(valid[:, :1]), self._quiet], 1) | positive
        return logits, positive, valid, mined, weights

    def _mine_inline(self, rows: Rows, queue: RingQueue, batch: ClipBatch, siblings: Tensor, k: int) -> Tensor:
        """Bool [B, K], the slots that are positives; what is to be quiet is kept for `_table`."""
        self._quiet = None
        if self.plan is None or not queue.ready():
            return torch.zeros_like(siblings)
        forbidden = siblings | ~queue.same_label(batch.label) if self.reads_labels else siblings
        bank = [queue.rows(view).numpy() for view in self.views]
        queries = [rows.main.numpy(), rows.query.detach().numpy()]
        ids = self._ids(queries, bank, _exclusions(forbidden))
        if self.arm.quiet:
            self._quiet = _mask(ids, queue.size)
        return _mask(self._chosen(ids, queries[1], bank[1]), queue.size)

    def _ids(self, queries: list[NDArray], bank: list[NDArray], exclude: Exclusions) -> NDArray[np.int64]:
        if self._used % REFIT_EVERY == 0:
            self._space = fit_space(self.arm.space, dict(zip(self.views, bank, strict=True)), seed=self._used)
        self._used += 1
        assert self.plan is not None  # for the type checker
        queries, bank = ([self._space.apply(view, rows) for view, rows in enumerate(pair)] for pair in (queries, bank))
        return mine(queries, bank, self.plan, exclude=exclude).ids

    def _chosen(self, ids: NDArray[np.int64], query: NDArray, trained: NDArray) -> NDArray[np.int64]:
        """int64 [B, k] of what was mined, best first: the first k, or the k that the trained view finds farthest."""
        if not self.arm.far:
            return ids[:, : self.arm.k]
        near = np.einsum("bd,bmd->bm", query, trained[np.maximum(ids, 0)])
        order = np.argsort(np.where(ids >= 0, near, np.inf), axis=1, kind="stable")[:, : self.arm.k]
        return np.take_along_axis(ids, order, axis=1)


class SoftLoss(ArmLoss):
    """As `mining.weights=agreement`, with the arm's map, heat and views."""

    def _weights(self, rows: Rows, queue: RingQueue, mined: Tensor, step: int) -> Tensor | None:
        if not queue.ready():
            return None
        assert isinstance(self.arm, SoftArm)  # for the type checker
        queries = (rows.main.numpy(), rows.query.detach().numpy())
        scores = [
            self._space.apply(place, queries[place]) @ self._space.apply(place, queue.rows(view).numpy()).T
            for place, view in enumerate(self.views if self.arm.of == "both" else self.views[:1])
        ]
        weights = soft_weights(np.mean(scores, axis=0), mined.numpy(), self.arm.heat)
        return nn.functional.pad(torch.from_numpy(weights), (1, 0), value=1.0)


def soft_weights(scores: NDArray, mined: NDArray[np.bool_], heat: float) -> NDArray[np.float32]:
    """float32 [B, K], softmax of a row's mined slots over `heat` times how many there are; 1 in all other slots.

    Args:
        scores: [B, K].
        mined: Bool [B, K].
        heat: Temperature.
    """
    hot = np.where(mined, scores / heat, -np.inf)
    share = np.exp(hot - np.max(hot, axis=1, keepdims=True, initial=-1e30))
    total = np.maximum(share.sum(axis=1, keepdims=True), 1e-30)
    return np.where(mined, share / total * mined.sum(axis=1, keepdims=True), 1.0).astype(np.float32)


def _mask(ids: NDArray[np.int64], size: int) -> Tensor:
    mask = torch.zeros(len(ids), size + 1, dtype=torch.bool)
    mask.scatter_(1, torch.from_numpy(np.where(ids >= 0, ids, size)), True)  # -1 lands in a column that is cut off
    return mask[:, :size]


def _exclusions(forbidden: Tensor) -> Exclusions:
    counts, slots = forbidden.sum(1).numpy(), forbidden.nonzero()[:, 1].numpy()
    return Exclusions(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), slots.astype(np.int64))
