"""What can a way of mining do to the scores before candidates are selected? Nothing, or make one score of two.

A strategy that fuses does it in three places, which must agree: slowly (the oracle, one query at a time), in numpy and
on a torch device. Candidates that are forbidden hold -inf in every view, and must hold it in what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidssl.tables.lookup import at, named
from vidssl.tables.strategies import STRATEGIES

__all__ = ["Score", "Strategy", "strategy_of"]

Score: TypeAlias = dict[int, float]
"""Slot → score of one query; only allowed slots are in it."""


class Strategy:
    """Scores as they are: the cascade, the main view alone, and the upper bound."""

    def slowly(self, scores: Sequence[Score]) -> Sequence[Score]:
        """Scores of one query, a dict for each view: the same, or one dict."""
        return scores

    def fuse(self, scores_VBN: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """float32 [B, N] of each view: the same, or one matrix."""
        return scores_VBN

    def fuse_on_device(self, scores_VBN: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `fuse`, on the device of the scores."""
        return scores_VBN


@lru_cache
def strategy_of(name: str) -> Strategy:
    """The strategy of a name.

    Raises:
        RecipeError: an unknown name.
    """
    strategy = at(named(STRATEGIES, name, "mining.strategy").place)()
    assert isinstance(strategy, Strategy)  # for the type checker: a place is only a word
    return strategy
