"""What has been measured? The evaluations of the table as objects, and the files that hold their results."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from cluster.evaluation.evaluator import Evaluator, Result
from cluster.evaluators import EVALUATORS
from vidssl.records import read_record, write_record
from vidssl.tables.lookup import at

__all__ = ["JOINT_END", "evaluators", "keep_results", "read_results"]

JOINT_END: Final = "-joint"
"""Behind the name of a result of two streams together."""


@cache
def evaluators() -> Mapping[str, Evaluator[Any]]:
    """All evaluations by name, in the order of the table."""
    return {name: at(traits.place)() for name, traits in EVALUATORS.items()}


def keep_results(folder: Path, results: Mapping[str, Result]) -> None:
    """One file for each result, by its name.

    Raises:
        OSError: a file cannot be written.
    """
    for name, result in results.items():
        write_record(folder / f"{name}.json", result)


def read_results(folder: Path, run: str) -> dict[str, Result]:
    """What is kept in `folder`, by name; two streams together end in `-joint`.

    Args:
        folder: The `eval` folder of a run or card.
        run: As the user typed it, for the sentence about a damaged file.

    Raises:
        CheckpointError: a file of ours that cannot be read as a result.
    """
    found: dict[str, Result] = {}
    for name, one in evaluators().items():
        for end, words in (("", ""), (JOINT_END, " view=joint")):
            path = folder / f"{name}{end}.json"
            if path.exists() and (not end or one.needs == "features"):
                mend = f"type vidssl evaluate {run} what={name}{words}"
                found[f"{name}{end}"] = read_record(one.result, path, mend)
    return found
