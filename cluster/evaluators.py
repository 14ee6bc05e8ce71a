"""Which evaluations are there? name → class. A new one is its file, its line here and its test.

`what=`, its help, what is printed, the files and the page all follow this order. Nothing is loaded to read the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from vidssl.errors import RecipeError
from vidssl.tables.lookup import did_you_mean

__all__ = ["EVALUATORS", "USUAL", "EvaluatorTraits", "asked_for"]


@dataclass(frozen=True)
class EvaluatorTraits:
    """What is asked of an evaluation before it is loaded.

    Attributes:
        place: `module:Class`, a `cluster.evaluation.evaluator.Evaluator`.
        usual: Whether it is measured without being asked for.
    """

    place: str
    usual: bool = False


EVALUATORS: Final[Mapping[str, EvaluatorTraits]] = MappingProxyType(
    {
        "retrieval": EvaluatorTraits("cluster.evaluation.retrieval:Retrieval", usual=True),
        "mining": EvaluatorTraits("cluster.evaluation.mining:Mining", usual=True),
        "knn": EvaluatorTraits("cluster.evaluation.knn:Knn"),
        "linear": EvaluatorTraits("cluster.evaluation.linear:Linear"),
        "fewshot": EvaluatorTraits("cluster.evaluation.fewshot:FewShot"),
    }
)
"""By the word that `what=` takes."""

USUAL: Final = ",".join(name for name, traits in EVALUATORS.items() if traits.usual)


def asked_for(word: str) -> tuple[str, ...]:
    """Names of the evaluations that `what=` lists, in the order of the table.

    Raises:
        RecipeError: an unknown name, or none.
    """
    names = tuple(EVALUATORS) if word == "all" else tuple(word.strip("[]").replace(" ", "").split(","))
    unknown = [name for name in names if name not in EVALUATORS]
    if unknown:
        near = did_you_mean(unknown[0], EVALUATORS)
        raise RecipeError(f"what={word} is unknown; type what= some of {','.join(EVALUATORS)}, or what=all{near}")
    return tuple(name for name in EVALUATORS if name in names)
