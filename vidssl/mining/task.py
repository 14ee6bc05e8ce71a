"""What an engine is asked to do: one batch of queries, checked, and the bank that they mine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan

__all__ = ["Array", "Ids", "Scores", "Selection", "Task"]

Array: TypeAlias = NDArray | Tensor
Scores: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Selection: TypeAlias = tuple[Ids, Scores, list[Ids]]
"""ids [B, k] best first (-1 where forbidden), their scores, and the columns after each stage when traced."""


@dataclass(frozen=True)
class Task:
    """Queries of one call of `mine`, or a part of them.

    Attributes:
        queries: [B, D] rows of each view that the plan reads.
        bank: [N, D] rows of the same views.
        plan: Stages and views.
        sizes: What each stage keeps of this bank.
        exclude: Of these queries.
        valid: bool [N], filled slots; None: all.
        filled: How many are filled.
        threads: Of everything but the libraries' own.
        budget: Bytes that scores may take.
        trace: Keep the survivors of every stage.
    """

    queries: Sequence[Array]
    bank: Sequence[Array]
    plan: CascadePlan
    sizes: tuple[int, ...]
    exclude: Exclusions
    valid: NDArray[np.bool_] | None
    filled: int
    threads: int
    budget: int
    trace: bool = False

    @property
    def rows(self) -> int:
        """B."""
        return len(self.queries[0])

    @property
    def n_slots(self) -> int:
        """N."""
        return len(self.bank[0])

    @property
    def wide(self) -> Sequence[Scores]:
        """The queries, where they are float32 arrays already: on every engine but torch's."""
        return cast(Sequence[Scores], self.queries)

    @cached_property
    def allowed(self) -> NDArray[np.int64]:
        """int64 [B]: filled slots that each query may mine."""
        pair = np.unique(self.exclude.row_of_slot() * self.n_slots + self.exclude.slots)
        if self.valid is not None:
            pair = pair[self.valid[pair % self.n_slots]]
        return self.filled - np.bincount(pair // self.n_slots, minlength=self.rows)

    def of(self, made: Callable[[Array], Array]) -> Task:
        """The same with every table as `made` makes it."""
        return replace(self, queries=[made(rows) for rows in self.queries], bank=[made(rows) for rows in self.bank])

    def part(self, start: int, stop: int) -> Task:
        """Queries start..stop-1."""
        if (start, stop) == (0, self.rows):
            return self
        queries = [query[start:stop] for query in self.queries]
        return replace(self, queries=queries, exclude=self.exclude.part(start, stop))

    def only(self, rows: NDArray[np.int64]) -> Task:
        """Some of the queries."""
        return replace(self, queries=[query[rows] for query in self.queries], exclude=self.exclude.only(rows))
