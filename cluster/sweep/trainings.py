"""`vidssl sweep RECIPE level=train`: whole trainings on Ray Tune, each a run of its own with its own bank.

Tune chooses who is next and how many train at once; a trial books nothing, and what it starts books what a training books, so
trials and trainings never wait for each other. `sweep.csv` grows rung by rung: the same words again do only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.copies.place import refuse_copy
from cluster.launch import ray_session
from cluster.sweep.chooser import Choice, refuse_without_optuna
from cluster.sweep.held_out import HeldOut, held_out_recall, held_out_rows
from cluster.sweep.ledger import RowFile, held_results
from cluster.sweep.room import Room, room_for
from cluster.sweep.search import Sweep, open_sweep
from cluster.sweep.space import Training, trainings_of
from cluster.sweep.trained import TrainedRow, rung_row, train_to
from cluster.sweep.trials import quiet_tune, to_stderr
from cluster.sweep.written import write_outcome
from cluster.training.plan import plan_run, run_folder_of
from vidssl.errors import OurFault, RecipeError, StorageError
from vidssl.files import storage_error

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from vidssl.recipe import Evaluation

__all__ = ["goes_on", "run_trainings"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class SweptOn:
    """What the rows of a sweep of trainings were scored on: the content of sweep.json.

    Attributes:
        id: Of data, queries and protocol: rows of another id cannot be compared.
        data_hash: Of the data.
        queries: Held-out videos.
        gallery: Videos that are searched.
        protocol: p1_strict | p1_ref | p2 | centre.
    """

    id: str
    data_hash: str
    queries: int
    gallery: int
    protocol: str


def run_trainings(name: str, words: Sequence[str], out: str | None = None, say: Say | None = None) -> str:
    """Train every point that is missing, and return what to print.

    Writes sweep.csv, sweep.json, sweep.png, best.yaml, tensorboard/ and a run folder per training below trials/.

    Args:
        name: A recipe, an ablation, or a YAML file of either.
        words: Keys of `TrainSearch`, axes, and keys of the recipe.
        out: Folder for all that; none: `sweep-NAME` in the recipe's trainer.storage.
        say: Takes one line per training and rung; none: standard error.

    Raises:
        RecipeError: an unknown word, or no point that can be trained.
        DataError: no held-out groups to rank by; the folder holds other things than a sweep.
        DeviceError: one training is more than this cluster has, or has free.
        BusyError: another sweep writes there.
        StorageError: the disk is full, or trainings failed; what is finished is kept.
    """
    say = say or to_stderr
    sweep = open_sweep(name, words)
    refuse_without_optuna(sweep.search)
    refuse_copy(sweep.base, "sweep")
    manifest = _data_of(sweep)
    results = _folder(sweep, out)
    found, left_out = trainings_of(sweep, manifest, str(results / "trials"))
    trainings = [dataclasses.replace(one, recipe=plan_run(one.recipe).recipe) for one in found]
    about = _swept_on(sweep, manifest)
    with held_results(results, say):
        for line in left_out:
            say(line)
        return _swept(sweep, trainings, RowFile(results, TrainedRow, about), say)


def _swept(sweep: Sweep, trainings: Sequence[Training], rows: RowFile[TrainedRow], say: Say) -> str:
    if rows.set_aside:
        say(f"sweep.csv held rows of other data or another protocol; they are in {rows.set_aside} now")
    choice = Choice(trainings, sweep.search, rows.rows)
    say(_announced(choice, len(trainings), rows))
    missing = choice.missing
    failed = _run(choice, sweep, rows, say) if missing else []
    wanted = {one.key for one in trainings}
    here = [row for row in rows.rows if row.key in wanted]
    try:
        text = write_outcome(rows.folder, here, trainings, sweep, rows.about.id)
    except OSError as error:
        raise storage_error(error, rows.folder, instead="make room and type the same words again") from error
    if failed:
        say(text)
        raise StorageError(
            f"{len(failed)} of {missing} trainings failed, the others are in {rows.path}; the first: {failed[0]}; "
            "type the same words again to go on with them"
        )
    if choice.missing:
        raise KeyboardInterrupt  # Tune caught the signal; what is trained is kept
    return text


def _announced(choice: Choice, possible: int, rows: RowFile[TrainedRow]) -> str:
    chosen = "" if choice.wanted == possible else f" of {possible}, chosen by {choice.search.sampler}"
    return f"{choice.wanted} trainings{chosen}, {choice.wanted - choice.missing} are done already → {rows.folder}"


def _data_of(sweep: Sweep) -> Manifest:
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    if sweep.base.data is None:
        raise RecipeError("no data given; type data=FOLDER, a folder that `vidssl pack` wrote")
    return load_manifest(place_of(sweep.base.data))


def _folder(sweep: Sweep, out: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser().resolve()
    stem, base = Path(sweep.name).stem, sweep.base.name
    named = f"sweep-{stem}" if base == stem else f"sweep-{stem}-{base}"
    return run_folder_of(sweep.base.model_copy(update={"name": named})).path


def _swept_on(sweep: Sweep, manifest: Manifest) -> SweptOn:
    chosen = sweep.base.evaluation
    asking, searched = held_out_rows(manifest, chosen.held_out)
    told = (manifest.hash, chosen.protocol, chosen.windows, chosen.crop, chosen.held_out, asking.tolist())
    sign = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
    return SweptOn(sign, manifest.hash, len(asking), len(searched), chosen.protocol)


def _run(choice: Choice, sweep: Sweep, rows: RowFile[TrainedRow], say: Say) -> list[str]:
    """Train; returns what became of those that failed, in words."""
    trainings = choice.trainings
    with quiet_tune(), ray_session(max(os.cpu_count() or 1, 1)):
        from ray import tune

        room = room_for([one.recipe for one in trainings], sweep.search.at_once)
        say(f"{room.at_once} at once, each with {room.words}")
        files = rows.folder / ".tune"
        shutil.rmtree(files, ignore_errors=True)  # of a sweep that was killed: its rows are in sweep.csv
        keeper = _keeper(rows, sweep, say)
        left = [_rungs_left(one, sweep, rows) for one in trainings]
        trial = tune.with_parameters(_trial, trainings=list(trainings), rungs=left, room=room, asked=rows.about.id)
        # Not a core: with one booked by each trial, the last training would wait for cores that trials hold.
        booked = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
        results = tune.Tuner(
            tune.with_resources(trial, booked),
            tune_config=tune.TuneConfig(
                max_concurrent_trials=room.at_once,
                num_samples=choice.missing,
                search_alg=_chooser(choice),
                scheduler=keeper,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name="sweep", storage_path=str(files), verbose=0),
        ).fit()
        shutil.rmtree(files, ignore_errors=True)
    if results.errors:
        raise OurFault(f"a trial of the sweep broke: {str(results.errors[0]).strip().splitlines()[-1]}")
    return keeper.failed


def _chooser(choice: Choice) -> Any:
    from ray.tune.search import Searcher

    class Chooser(Searcher):
        """Names the training that is next; it remembers nothing that sweep.csv does not say."""

        def __init__(self) -> None:
            super().__init__(metric="r1", mode="max")
            self.begun: dict[str, Training] = {}
            self.numbers = {one.key: number for number, one in enumerate(choice.trainings)}

        def suggest(self, trial_id: str) -> Any:
            training = choice.next()
            if training is None:
                return Searcher.FINISHED
            self.begun[trial_id] = training
            return {"number": self.numbers[training.key]}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if error or "failed" in (result or {}):
                choice.failed(self.begun[trial_id])

        def save(self, checkpoint_path: str) -> None:
            """Nothing: Tune's own files are never read again."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Chooser()


def _rungs_left(training: Training, sweep: Sweep, rows: RowFile[TrainedRow]) -> tuple[int, ...]:
    """Rungs without a row; phases are trained one after the other, to their end."""
    reached = {row.percent for row in rows.rows if row.key == training.key}
    rungs = sweep.search.rungs[-1:] if training.recipe.phases else sweep.search.rungs
    return tuple(percent for percent in rungs if percent not in reached)


def _trial(
    config: dict[str, Any], trainings: Sequence[Training], rungs: Sequence[Sequence[int]], room: Room, asked: str
) -> None:
    """One Tune trial: it waits for tasks of its own, outside of the trial's reservation, and reports at each rung."""
    import ray
    from ray import tune
    from ray.exceptions import RayError

    training = trainings[config["number"]]
    # A named strategy keeps the tasks, and what they start, out of the trial's placement group.
    freely = {"scheduling_strategy": "SPREAD", "max_retries": 2}
    step = ray.remote(num_cpus=0, **freely)(train_to)
    score = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, **freely)(_scored)
    for percent in rungs[config["number"]]:
        try:
            row = rung_row(
                training,
                percent,
                lambda percent=percent: ray.get(step.remote(training.recipe, percent)),
                lambda path: ray.get(score.remote(path, training.recipe.evaluation, asked, room.cpus)),
                asked,
            )
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            tune.report({"failed": str(cause).strip().splitlines()[-1], "run": training.recipe.name})
            return
        tune.report(dataclasses.asdict(row))


def _scored(path: Path, evaluation: Evaluation, asked: str, threads: int) -> HeldOut:
    import torch

    torch.set_num_threads(threads)
    return held_out_recall(path, evaluation, asked)


def goes_on(value: float, others: Sequence[float], reduction: int) -> bool:
    """Asynchronous successive halving: whether a training is among the best 1/`reduction` of those that were here before."""
    return not others or value >= float(np.percentile(others, 100 * (1 - 1 / reduction)))


def _keeper(rows: RowFile[TrainedRow], sweep: Sweep, say: Say) -> Any:
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    halving = sweep.search.schedule == "asha"

    class Keeper(FIFOScheduler):
        """Writes and says each row in the driver, and stops a training at a rung: out of sweep.csv alone, so a kill changes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.failed: list[str] = []

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "failed" in result:
                self.failed.append(f"{result['run']}: {result['failed']}")
                say(f"failed: {self.failed[-1]}")
                return TrialScheduler.CONTINUE
            row = TrainedRow(**{field.name: result[field.name] for field in dataclasses.fields(TrainedRow)})
            others = [one.r1 for one in rows.rows if one.percent == row.percent and one.key != row.key]
            if halving and not row.ended and not goes_on(row.r1, others, sweep.search.reduction):
                row = dataclasses.replace(row, state="stopped")
            rows.add(row)
            say(_live(row))
            return TrialScheduler.STOP if row.state == "stopped" else TrialScheduler.CONTINUE

    return Keeper()


def _live(row: TrainedRow) -> str:
    name = f"{row.arm} seed {row.seed}"
    return (
        f"{name:<32} {row.percent:>3} % step {row.step:>6}  R@1 {100 * row.r1:5.1f}  {row.seconds:.0f} s  {row.state}"
    )
