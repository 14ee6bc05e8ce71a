"""`vidssl sweep`: the points of `vidssl mine` on the bank of a run, spread over a cluster by Ray Tune.

Every trial mines offline and reports once, so nothing is scheduled, stopped or checkpointed: Tune spreads the trials over
the cluster's cores. `sweep.csv` grows as they end; the same command run again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.launch import ray_session
from cluster.mine.measure import Row, measure
from cluster.mine.study import Study, carried, study_of_bank
from cluster.mine.table import live_line
from cluster.mine.words import Point, SweepWords, read_search, reference_points, search_points
from cluster.sweep.ledger import Ledger, held_results
from cluster.sweep.result import write_results
from vidssl.errors import BankError, RecipeError
from vidssl.files import storage_error
from vidssl.recipe import Recipe, load_recipe, recipe_from_file
from vidssl.saved.run_folder import RunFolder, open_run

__all__ = ["quiet_tune", "run_sweep", "to_stderr"]

Say = Callable[[str], None]


def run_sweep(recipe_or_run: str, words: Sequence[str], out: str | None = None, say: Say | None = None) -> str:
    """Search a run's mining and return what to print.

    Writes sweep.csv, sweep.json (what the rows were measured on), sweep.png and best.yaml.

    Args:
        recipe_or_run: A run folder, or a recipe together with `run=RUN`.
        words: The keys of `SweepWords`, and `mining.KEY=…`.
        out: Folder for the results; none: RUN/sweep.
        say: Takes one line per finished point; none: they go to standard error.

    Raises:
        RecipeError: an unknown word, no run, or no point that could be tried.
        BankError: no snapshot that fits.
        DataError: labels or results cannot be read or written, or the folder holds other things than a sweep.
        BusyError: another sweep writes there.
        StorageError: the disk is full.
    """
    say = say or to_stderr
    folder, recipe, search = _target(recipe_or_run, words)
    study = study_of_bank(folder, recipe, search)
    search, left_out = carried(study, search)
    points = search_points(search, study.n_filled, recipe.mining)
    points += reference_points(search, study.n_filled, recipe.mining, 2, study.labelled)
    results = (Path(out).expanduser() if out else folder.path / "sweep").resolve()
    with held_results(results, say):
        for line in left_out:
            say(line)
        return _searched(points, study, Ledger(results, study), search, recipe, say)


def _searched(
    points: Sequence[Point], study: Study, ledger: Ledger, search: SweepWords, recipe: Recipe, say: Say
) -> str:
    if ledger.set_aside:
        say(f"sweep.csv held rows of another bank or other queries; they are in {ledger.set_aside} now")
    missing, of = ledger.missing(points), f"{len(points)} points on {study.n_filled} rows of {study.source}"
    say(f"{of}; {len(points) - len(missing)} are done already")
    if missing:
        _run_points(missing, study, ledger, say)
    try:
        return write_results(ledger, study, search, recipe)
    except OSError as error:
        raise storage_error(error, ledger.folder, instead="make room and type the same words again") from error


def _target(recipe_or_run: str, words: Sequence[str]) -> tuple[RunFolder, Recipe, SweepWords]:
    if "=" in recipe_or_run:  # `vidssl sweep run=RUN`
        recipe_or_run, words = "", [recipe_or_run, *words]
    search, of_recipe = read_search(SweepWords, words, "sweep")
    if recipe_or_run and Path(recipe_or_run).is_dir():
        folder = open_run(recipe_or_run)
        if search.run is not None and open_run(search.run) != folder:
            raise RecipeError(f"two runs were given, {recipe_or_run} and run={search.run}; a sweep searches one")
        return folder, recipe_from_file(folder.recipe, of_recipe), search
    if search.run is None:
        if recipe_or_run:
            load_recipe(recipe_or_run, of_recipe)  # a misspelt name is said first
        raise RecipeError(
            f"a sweep mines on the bank of a trained run; type vidssl sweep {recipe_or_run or 'RECIPE'} run=RUN"
        )
    folder = open_run(search.run)
    recipe = load_recipe(recipe_or_run, of_recipe) if recipe_or_run else recipe_from_file(folder.recipe, of_recipe)
    return folder, recipe if recipe.data else recipe.model_copy(update={"data": folder.read_recipe().data}), search


def _run_points(points: Sequence[Point], study: Study, ledger: Ledger, say: Say) -> None:
    with quiet_tune(), ray_session(max(os.cpu_count() or 1, 1)):
        import ray
        from ray import tune

        cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        files = ledger.folder / ".tune"
        shutil.rmtree(files, ignore_errors=True)  # of a sweep that was killed: its finished rows are in the ledger
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, study=study), {"CPU": 1}),
            param_space={"point": tune.grid_search([dataclasses.asdict(point) for point in points])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=cores, reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(files), verbose=0, callbacks=[_row_keeper(ledger, say, len(points))]
            ),
        ).fit()
        shutil.rmtree(files, ignore_errors=True)
    if results.errors:
        last = str(results.errors[0]).strip().splitlines()[-1]
        said = f"{len(results.errors)} of {len(points)} points failed, the others are in {ledger.path}"
        raise BankError(f"{said}; the first said: {last}")
    if ledger.missing(points):
        raise KeyboardInterrupt  # Tune caught the signal; what is finished is kept


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Our line per point is the progress; Tune's own tables, per-trial logs and the complaint about their absence are not.

    Nor does Ctrl-C stay Tune's when it has ended: it leaves its handlers behind, and the next Ctrl-C would do nothing.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.ERROR)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        logger.setLevel(before)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # one that was not set from Python cannot be set again from here
                    signal.signal(number, handler)


def _trial(config: dict[str, Any], study: Study) -> None:
    """One Tune trial: a function that reports its row and ends."""
    from ray import tune

    tune.report(dataclasses.asdict(measure(study, Point(**config["point"])).row))


def _row_keeper(ledger: Ledger, say: Say, number: int) -> Any:
    from ray import tune

    class RowKeeper(tune.Callback):
        """Writes and says each row in the driver, as soon as its trial has reported it."""

        def __init__(self) -> None:
            self.done = 0

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self.done += 1
            row = Row(**{field.name: result[field.name] for field in dataclasses.fields(Row)})
            ledger.add(row)
            say(live_line(self.done, number, row))

    return RowKeeper()


def to_stderr(line: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
