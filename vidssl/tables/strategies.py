"""Which ways of mining are there? name → class: the cascade and its rivals.

A new strategy is its file, a line here and its test; the sweep, the report and the picture take it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["RIVALS", "STRATEGIES", "StrategyTraits"]


@dataclass(frozen=True)
class StrategyTraits:
    """What is asked of a strategy by name.

    Attributes:
        place: `module:Class`, a `vidssl.mining.strategy.Strategy`.
        says: What it is, in a few words.
        staged: Whether it narrows the bank stage by stage; the others select once.
        fuses: Whether it makes one score of both views'; then the aux view is read, and every score of it.
        joins: Whether that score is the product of both rows laid side by side: a bank then keeps and searches one table
            of them, and any engine that finds neighbours will do.
        ranks: Whether the score of a slot depends on the other slots', so that parts of a bank cannot be scored apart.
        reads_labels: Whether it needs to know classes: an upper bound, which the bank never runs.
    """

    place: str
    says: str
    staged: bool = False
    fuses: bool = False
    joins: bool = False
    ranks: bool = False
    reads_labels: bool = False


STRATEGIES: Final[Mapping[str, StrategyTraits]] = MappingProxyType(
    {
        "cascade": StrategyTraits("vidssl.mining.strategy:Strategy", "view by view, stage by stage", staged=True),
        "single": StrategyTraits("vidssl.mining.strategy:Strategy", "main view"),
        "sum": StrategyTraits("vidssl.mining.score_sum:ScoreSum", "of both scores", fuses=True),
        "joint": StrategyTraits(
            "vidssl.mining.score_sum:ScoreSum", "the sum, by one table of both rows", fuses=True, joins=True
        ),
        "minrank": StrategyTraits(
            "vidssl.mining.minrank:MinRank", "the worse of the two ranks", fuses=True, ranks=True
        ),
        "oracle": StrategyTraits(
            "vidssl.mining.strategy:Strategy", "labels: an upper bound, never a result", reads_labels=True
        ),
    }
)
"""By the word that `mining.strategy` takes."""

RIVALS: Final[tuple[str, ...]] = tuple(
    name for name, traits in STRATEGIES.items() if not (traits.staged or traits.reads_labels or traits.joins)
)
"""What the cascade is measured beside: whatever mines in one step, needs no labels and is not another one done faster."""
