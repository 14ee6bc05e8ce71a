"""Which point of a sweep is trained next? In order, by lot, or by what Optuna makes of the trainings before it.

Nothing is remembered beside sweep.csv: whenever there is room for another training, the choice is made anew from its rows.
So a sweep that was killed chooses as one that was not, and `points=` may be raised later. What has begun is ended first; one
point with S=1 and one of `sum` come before all others, and further ones like any other point.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cluster.sweep.search import TrainSearch
from cluster.sweep.space import ARM, Training, are_numbers, axes_of
from cluster.sweep.trained import TrainedRow
from vidssl.errors import RecipeError

if TYPE_CHECKING:
    import optuna

__all__ = ["Choice", "refuse_without_optuna"]

_ASKED: Final = 32  # times Optuna is asked before lots are drawn: it may name points that cannot be, or were tried


def refuse_without_optuna(search: TrainSearch) -> None:
    """Raises RecipeError where Optuna is asked for and is not installed."""
    if search.sampler != "optuna":
        return
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            "sampler=optuna needs Optuna, which is not installed; type pip install 'vidssl[optuna]', or sampler=random"
        ) from error


class Choice:
    """The trainings of a sweep, and who of them is next.

    Args:
        trainings: All that could be trained, of the first seed first.
        search: Sampler, points, seeds.
        rows: Of sweep.csv; they may grow meanwhile.
    """

    def __init__(self, trainings: Sequence[Training], search: TrainSearch, rows: Sequence[TrainedRow]) -> None:
        self.search, self.rows = search, rows
        points = {one.arm: one for one in trainings}
        lots = np.random.default_rng(search.seeds[0]).permutation(len(points))
        drawn = [list(points)[lot] for lot in lots]
        rivals = [arm for arm in drawn if points[arm].rival]
        self._first = list({points[arm].at[ARM]: arm for arm in reversed(rivals)}.values())
        self._budget = min(max(search.points or len(points), len(self._first) + 1), len(points))
        if search.sampler == "random":
            taken = set(list(dict.fromkeys([*self._first, *drawn]))[: self._budget])
            trainings = sorted(
                (one for one in trainings if one.arm in taken), key=lambda one: one.arm not in self._first
            )
        self.trainings: Final = trainings
        self._given: dict[str, str] = {}  # key → arm of trainings that were handed out here, in order
        self._failed: set[str] = set()  # arms

    @property
    def wanted(self) -> int:
        """Trainings there will be."""
        if self.search.sampler != "optuna":
            return len(self.trainings)
        return self._budget * len(self.search.seeds)

    @property
    def missing(self) -> int:
        """Trainings that have not ended yet; those that failed are among them."""
        ended = {row.key for row in self.rows if row.ended}
        done = sum(1 for one in self._chosen() if one.key in ended)
        return max(self.wanted - done, 0)

    def next(self) -> Training | None:
        """Who is next; None: nobody is left."""
        over = {row.key for row in self.rows if row.ended} | self._given.keys()
        found = next((one for one in self._chosen() if one.key not in over), None)
        if found is None and self.search.sampler == "optuna" and len(self._points_begun()) < self._budget:
            arm = self._ask()
            found = next(one for one in self.trainings if one.arm == arm)
        if found is not None:
            self._given[found.key] = found.arm
        return found

    def failed(self, training: Training) -> None:
        """Nothing is learnt from a training that failed."""
        self._failed.add(training.arm)

    def _chosen(self) -> list[Training]:
        if self.search.sampler != "optuna":
            return list(self.trainings)
        begun = self._points_begun()
        return [one for one in self.trainings if one.arm in begun]

    def _points_begun(self) -> dict[str, None]:
        """Arms of the points that have a row, or were chosen here; in order."""
        known = {one.arm for one in self.trainings}
        return dict.fromkeys(row.arm for row in self.rows if row.arm in known) | dict.fromkeys(self._given.values())

    def _ask(self) -> str:
        """Optuna's next point that is none of those before."""
        begun = self._points_begun()
        if still := [arm for arm in self._first if arm not in begun]:
            return still[0]
        import optuna

        axes = axes_of(one.at for one in self.trainings)
        at = {one.arm: _indices(one.at, axes) for one in self.trainings}
        rivals = {_indices({ARM: one.at[ARM]}, axes)[:1]: set(one.at) for one in self.trainings if one.rival}
        left = {indices: arm for arm, indices in at.items() if arm not in begun}
        seed = int(np.random.default_rng([self.search.seeds[0], len(begun)]).integers(2**31))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=min(10, 2 * len(axes) + 2), constant_liar=True
            )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        dists = _distributions(axes)
        study.add_trials(self._told(arm, dict(zip(axes, at[arm], strict=True)), dists) for arm in begun)
        for _ in range(_ASKED):
            trial = study.ask(dists)
            asked = tuple(int(trial.params[axis]) for axis in axes)
            known = rivals.get(asked[:1])  # on what axes a rival has a value; of the others nothing is asked
            if known is not None:
                asked = tuple(index if axis in known else 0 for axis, index in zip(axes, asked, strict=True))
            if asked in left:
                return left[asked]
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return list(left.values())[seed % len(left)]

    def _told(
        self, arm: str, params: dict[str, int], dists: dict[str, optuna.distributions.BaseDistribution]
    ) -> optuna.trial.FrozenTrial:
        """What became of a point: the mean over its seeds, at the rung that all of them reached."""
        from optuna.trial import TrialState, create_trial

        last: dict[str, TrainedRow] = {}
        for row in sorted((row for row in self.rows if row.arm == arm), key=lambda row: row.percent):
            last[row.key] = row
        of_it = [one for one in self.trainings if one.arm == arm]
        state, value, rungs = TrialState.RUNNING, None, None
        if arm in self._failed:
            state = TrialState.FAIL
        elif all(one.key in last and last[one.key].ended for one in of_it):
            mean = float(np.mean([row.r1 for row in last.values()]))
            if all(row.state == "finished" for row in last.values()):
                state, value = TrialState.COMPLETE, mean
            else:
                state, rungs = TrialState.PRUNED, {min(row.percent for row in last.values()): mean}
        return create_trial(state=state, value=value, params=params, distributions=dists, intermediate_values=rungs)


def _indices(at: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> tuple[int, ...]:
    return tuple(values.index(at[axis]) if axis in at else 0 for axis, values in axes.items())


def _distributions(axes: Mapping[str, list[Any]]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Numbers have an order, other values have none; of both, their place in the list is what Optuna knows."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    return {
        axis: IntDistribution(0, len(values) - 1)
        if are_numbers(values)
        else CategoricalDistribution(list(range(len(values))))
        for axis, values in axes.items()
    }
