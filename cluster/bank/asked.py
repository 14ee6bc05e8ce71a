"""What did a rank ask for, and what is here of it? Rows of the next steps, filled in as answers arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.bank.spec import Answer, BankSpec, Wanted
from vidssl.batch import Positives

__all__ = ["Asked", "AskedStep", "shared_out"]


@dataclass(frozen=True)
class AskedStep:
    """Rows of one step.

    Attributes:
        ids: int64 [B], which videos.
        found: What is here for them.
        here: bool [B], for which the bank has given an answer.
    """

    ids: NDArray[np.int64]
    found: Positives
    here: NDArray[np.bool_]

    def enter(self, places: NDArray[np.int64], positives: Positives, rows: NDArray[np.int64]) -> None:
        """Take `rows` of `positives` as those of our `places`, where they are not older than what is here."""
        newer = positives.mined_at[rows] >= self.found.mined_at[places]
        places, rows = places[newer], rows[newer]
        for field in fields(Positives):
            getattr(self.found, field.name)[places] = getattr(positives, field.name)[rows]
        self.here[places] = True


class Asked:
    """Steps that were asked for and not taken yet. Not safe for several threads: its owner holds a lock."""

    def __init__(self, spec: BankSpec) -> None:
        self._spec = spec
        self._steps: dict[int, AskedStep] = {}

    def add(self, step: int, ids: NDArray[np.int64]) -> None:
        """These rows will be needed at `step`."""
        self._steps[step] = AskedStep(ids, self.nothing(len(ids)), np.zeros(len(ids), bool))

    def get(self, step: int) -> AskedStep | None:
        """What was asked for one step; None where nothing was."""
        return self._steps.get(step)

    def pop(self, step: int) -> AskedStep | None:
        """The same, for good: it and all earlier steps are forgotten."""
        asked = self._steps.get(step)
        self._steps = {later: one for later, one in self._steps.items() if later > step}
        return asked

    def wanted(self) -> Wanted:
        """All of it as a message, by step."""
        steps = sorted(self._steps.items())
        none = np.zeros(0, np.int64)
        return Wanted(
            np.concatenate([none, *(one.ids for _, one in steps)]),
            np.concatenate([none, *(np.full(len(one.ids), step, np.int64) for step, one in steps)]),
            np.concatenate([none, *(one.found.mined_at for _, one in steps)]),
        )

    def enter(self, wanted: Wanted, answer: Answer) -> None:
        """What the bank answered to `wanted`, a message of before; rows of steps that were taken since are left out."""
        at = wanted.at[answer.place]
        for step in np.unique(at).tolist():
            asked, rows = self._steps.get(step), np.flatnonzero(at == step)
            if asked is not None:
                asked.enter(answer.place[rows] - int(np.searchsorted(wanted.at, step)), answer.positives, rows)

    def complete(self) -> bool:
        """Whether the bank has given an answer for every row."""
        return all(one.here.all() for one in self._steps.values())

    def nothing(self, rows: int) -> Positives:
        """Positives of a batch for which nothing was mined."""
        return Positives.none(rows, self._spec.plan.k, self._spec.dim, self._spec.plan.depth)

    def state_dict(self) -> dict[str, Any]:
        """What is here, as plain tensors, for a checkpoint."""
        return {
            "asked": {step: torch.from_numpy(one.ids.copy()) for step, one in self._steps.items()},
            "found": {step: _as_tensors(one.found) for step, one in self._steps.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint has."""
        self._steps = {
            int(step): AskedStep(ids.numpy().copy(), _as_positives(state["found"][step]), np.ones(len(ids), bool))
            for step, ids in state["asked"].items()
            if step in state["found"]
        }


def shared_out(
    states: Sequence[Mapping[str, Any]], needed: Mapping[int, NDArray[np.int64]], spec: BankSpec
) -> dict[str, Any]:
    """What one rank goes on with where other ranks asked before: positives belong to a video, whoever asked for them.

    Args:
        states: `Asked.state_dict` of all ranks of before.
        needed: Step → the videos that this rank needs now; what nobody had asked for has nothing.
        spec: The run's bank.

    Returns:
        A state for `Asked.load_state_dict`.
    """
    parts = [
        (ids, state["found"][at]) for state in states for at, ids in state["asked"].items() if at in state["found"]
    ]
    asked = Asked(spec)
    for step, ids in needed.items():
        asked.add(step, ids)
        one = asked.get(step)
        assert one is not None  # for the type checker: it was added just now
        for theirs, found in parts:
            _, places, rows = np.intersect1d(ids, theirs.numpy(), return_indices=True)
            one.enter(places, _as_positives(found), rows)
    return asked.state_dict()


def _as_tensors(found: Positives) -> dict[str, Tensor]:
    return {field.name: torch.from_numpy(getattr(found, field.name).copy()) for field in fields(found)}


def _as_positives(state: Mapping[str, Tensor]) -> Positives:
    return Positives(**{name: values.numpy().copy() for name, values in state.items()})
