"""The cascade of a large bank, which is read once per batch: scores are made, looked at and forgotten block by block.

Of every block only what may matter is kept: candidates inside a bracket (see `vidssl.mining.brackets`) and those above
all brackets; of what is surely kept by a stage and surely dropped by a later one the number is enough. From numbers and
candidates each stage's cut follows exactly, ties included, or it is found to lie outside its bracket: then that query
is mined again from its whole rows of scores. Memory is a few percent of the score matrices, whatever N is.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.brackets import Brackets, guess
from vidssl.mining.scores import check_finite, forbid, gathered, is_half, product, raised
from vidssl.mining.select import counted, top
from vidssl.mining.strategy import strategy_of
from vidssl.mining.task import Ids, Scores, Task
from vidssl.mining.whole import in_threads, parts

__all__ = ["Piece", "mine_streaming", "scan", "settled"]

CELLS = 1 << 20
"""Scores of one view and block: 4 MB, which stay in the cache that the cores share."""
FEW = 1 << 16
"""Scores of one view that pass all stages together: 256 kB, which stay in the cache of one core meanwhile."""
LEAST = 4096
"""Fewest bank rows of a block."""


@dataclass(frozen=True)
class Piece:
    """What one block leaves.

    Attributes:
        certain: int64 [C, B], candidates above the brackets of stages 0..c.
        bounds: int64 [B+1]; those of row b are slots[bounds[b]:bounds[b+1]].
        slots: int32 or int64, ascending in each row.
        scores: Of each view that was read, in step with `slots`.
    """

    certain: Ids
    bounds: Ids
    slots: NDArray[np.integer]
    scores: Sequence[Scores]


def mine_streaming(task: Task) -> tuple[Ids, Scores, NDArray[np.bool_]]:
    """Best first [B, k], their scores, and bool [B]: the queries whose brackets missed, for which both say nothing.

    Raises:
        BankError: a bank row is not finite.
    """
    brackets = guess(task)
    ids = np.full((task.rows, task.sizes[-1]), -1, np.int64)
    scores, missed = np.full(ids.shape, -np.inf, np.float32), np.zeros(task.rows, bool)
    per_query = brackets.share * task.n_slots * (4 + 4 * len(task.bank)) * 1.5
    for start, part in parts(task, per_query):
        here = brackets.part(start, start + part.rows)
        rows = slice(start, start + part.rows)
        ids[rows], scores[rows], missed[rows] = settled(part, here, scan(part, here))
    return ids, scores, missed


def scan(task: Task, brackets: Brackets) -> list[Piece]:
    """What may matter of the task's bank, in the order of its slots.

    Each thread takes the next block until none is left. Brackets of no stage keep every allowed slot.

    Raises:
        BankError: a bank row is not finite.
    """
    scan = _Scan(task, brackets)
    starts, lock = iter(range(0, scan.task.n_slots, scan.width)), threading.Lock()

    def take() -> Iterator[int]:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            yield start

    def work(_: int) -> list[tuple[int, Piece]]:
        buffers = _Buffers(scan)
        return [(start, scan.block(start, buffers)) for start in take()]

    done = itertools.chain.from_iterable(in_threads(scan.task.threads, work, range(scan.task.threads)))
    return [piece for _, piece in sorted(done, key=lambda one: one[0])]


def settled(
    task: Task, brackets: Brackets, pieces: Sequence[Piece], views: Sequence[int] | None = None
) -> tuple[Ids, Scores, NDArray[np.bool_]]:
    """As `mine_streaming`, from what all blocks left.

    Args:
        task: The queries; its bank is read where a view's scores are in no piece.
        brackets: With which the pieces were made.
        pieces: In the order of their slots.
        views: Whose scores the pieces hold; None: those of the brackets' stages.
    """
    settle = _Settle(task, brackets, pieces, views)
    ids = np.full((task.rows, task.sizes[-1]), -1, np.int64)
    scores, missed = np.full(ids.shape, -np.inf, np.float32), np.zeros(task.rows, bool)
    for row, answer in enumerate(in_threads(task.threads, settle.row, range(task.rows))):
        missed[row] = answer is None
        if answer is not None:
            ids[row, : len(answer[0])], scores[row, : len(answer[1])] = answer
    return ids, scores, missed


class _Scan:
    """Blocks of the bank against all queries."""

    def __init__(self, task: Task, brackets: Brackets) -> None:
        self.task, self.brackets = task, brackets
        self.views = range(len(task.bank)) if task.plan.traits.fuses else brackets.views(task.plan)
        self.width = min(task.n_slots, max(LEAST, CELLS // task.rows // 1024 * 1024))
        by_slot = np.argsort(task.exclude.slots, kind="stable")
        self._slots, self._rows = task.exclude.slots[by_slot], task.exclude.row_of_slot()[by_slot]

    def block(self, start: int, buffers: _Buffers) -> Piece:
        """Score bank rows start..start+width-1 and keep what may matter."""
        stop = min(start + self.width, self.task.n_slots)
        scores = [self._score(view, start, stop, buffers) for view in self.views]
        scores = list(strategy_of(self.task.plan.strategy).fuse(scores))
        of_view = {0: scores[0]} if self.task.plan.traits.fuses else dict(zip(self.views, scores, strict=True))
        certain, kept = self._stages(of_view, buffers)
        rows, width = kept.shape
        flat = np.flatnonzero(kept)
        bounds = np.searchsorted(flat, np.arange(rows + 1) * width)
        picked = [score.reshape(-1).take(flat) for score in of_view.values()]
        flat -= np.repeat(np.arange(rows) * width - start, np.diff(bounds))
        return Piece(certain, bounds, flat.astype(np.int32), picked)

    def _score(self, view: int, start: int, stop: int, buffers: _Buffers) -> Scores:
        out = buffers.scores(view, stop - start)
        rows = raised(self.task.bank[view], start, stop, buffers.wide)
        product(self.task.wide[view], rows, out)
        valid = None if self.task.valid is None else self.task.valid[start:stop]
        check_finite(out[:1], valid)
        a, b = np.searchsorted(self._slots, [start, stop])
        unfilled = None if valid is None else np.flatnonzero(~valid)
        forbid(out, unfilled, self._rows[a:b], self._slots[a:b] - start)
        return out

    def _stages(self, of_view: dict[int, Scores], buffers: _Buffers) -> tuple[Ids, NDArray[np.bool_]]:
        rows, width = next(iter(of_view.values())).shape
        counts, kept = np.zeros((self.brackets.depth, rows), np.int64), buffers.kept(width)
        height = max(1, FEW // width)
        for start in range(0, rows, height):
            some = slice(start, start + height)
            self._stages_of(some, {view: score[some] for view, score in of_view.items()}, buffers, counts, kept[some])
        return counts, kept

    def _stages_of(
        self, some: slice, of_view: dict[int, Scores], buffers: _Buffers, counts: Ids, kept: NDArray[np.bool_]
    ) -> None:
        dropped, *above = buffers.masks(*kept.shape)
        if not self.brackets.depth:
            np.greater(of_view[0], -np.inf, out=kept)
        for stage in range(self.brackets.depth):
            score, sure, before = of_view[self.task.plan.views[stage]], above[stage % 2], above[1 - stage % 2]
            low, high = self.brackets.low[stage, some, None], self.brackets.high[stage, some, None]
            np.greater(score, high, out=sure)
            if stage == 0:
                np.greater_equal(score, low, out=kept)
            else:
                np.less(score, low, out=dropped)
                dropped &= before
                kept ^= dropped  # they passed every bracket so far, so they are among the kept
                sure &= before
            counts[stage, some] = counted(sure)


class _Buffers:
    """Memory of one thread, used again for every block: fresh pages would cost as much as the work on them."""

    def __init__(self, scan: _Scan) -> None:
        self._rows, cells = scan.task.rows, scan.task.rows * scan.width
        self._scores = {view: np.empty(cells, np.float32) for view in scan.views}
        self._kept, self._masks = np.empty(cells, bool), np.empty((3, max(FEW, scan.width)), bool)
        dim, half = scan.task.bank[0].shape[1], any(is_half(view) for view in scan.task.bank)
        self.wide = np.empty((scan.width, dim), np.float32) if half else None

    def scores(self, view: int, width: int) -> Scores:
        """float32 [B, width]."""
        return self._scores[view][: self._rows * width].reshape(self._rows, width)

    def kept(self, width: int) -> NDArray[np.bool_]:
        """Of bool [B, width]."""
        return self._kept[: self._rows * width].reshape(self._rows, width)

    def masks(self, rows: int, width: int) -> NDArray[np.bool_]:
        """Three of bool [rows, width]."""
        return self._masks[:, : rows * width].reshape(3, rows, width)


class _Settle:
    """The exact cascade of each query, from what all blocks left."""

    def __init__(
        self, task: Task, brackets: Brackets, pieces: Sequence[Piece], views: Sequence[int] | None = None
    ) -> None:
        self.task, self.brackets, self.pieces = task, brackets, pieces
        self.certain = np.sum([piece.certain for piece in pieces], axis=0)
        self.bounds = [piece.bounds.tolist() for piece in pieces]
        fuses = task.plan.traits.fuses
        self.views = views if views is not None else [0] if fuses else brackets.views(task.plan)

    def row(self, row: int) -> tuple[Ids, Scores] | None:
        """Best first and their scores; None where a cut lies outside its bracket."""
        parts = [(piece, slice(*bounds[row : row + 2])) for piece, bounds in zip(self.pieces, self.bounds, strict=True)]
        slots = _joined([piece.slots[part] for piece, part in parts])
        scores = {
            view: _joined([piece.scores[number][part] for piece, part in parts])
            for number, view in enumerate(self.views)
        }
        alive = self._through_brackets(row, scores)
        if alive is None:
            return None
        left = np.flatnonzero(alive)
        return self._rest(
            row, slots.take(left).astype(np.int64), {view: score.take(left) for view, score in scores.items()}
        )

    def _through_brackets(self, row: int, scores: dict[int, Scores]) -> NDArray[np.bool_] | None:
        alive = sure = np.ones(len(scores[0]), bool)  # masks: cheaper than positions while there are so many
        for stage in range(self.brackets.depth):
            score = scores[self.task.plan.views[stage]]
            above = score > self.brackets.high[stage, row]
            sure = sure & above
            gone = self.certain[stage, row] - np.count_nonzero(sure)  # they live now, and die at a later stage
            reach = alive & (score >= self.brackets.low[stage, row])
            above &= reach
            inside = np.flatnonzero(reach ^ above)
            need = self.task.sizes[stage] - gone - np.count_nonzero(above)
            if not 0 <= need <= len(inside):
                return None
            above[inside.take(top(score.take(inside), need))] = True
            alive = above
        return alive

    def _rest(self, row: int, slots: Ids, scores: dict[int, Scores]) -> tuple[Ids, Scores]:
        stages = list(zip(self.task.plan.views, self.task.sizes, strict=True))
        for view, size in stages[self.brackets.depth :]:
            if view not in scores:  # what is left is so little that gathering its rows beats a product with all
                scores[view] = gathered(self.task.bank[view], slots) @ self.task.wide[view][row]
            kept = top(scores[view], size)
            slots, scores = slots.take(kept), {other: score.take(kept) for other, score in scores.items()}
        last = scores[stages[-1][0]]
        order = np.argsort(-last, kind="stable")
        return slots[order], last[order]


def _joined(parts: Sequence[NDArray]) -> NDArray:
    """One array of many small ones. `concatenate` lets another thread in, and waits for it, at each of them."""
    return np.frombuffer(b"".join([part.data for part in parts]), parts[0].dtype)
