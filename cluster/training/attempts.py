"""With how many workers does a training begin, and when does it begin again? Ray Train runs one attempt, this goes from one to the next.

| what happens | what is done |
|---|---|
| a process dies | Ray Train begins again by itself from the last checkpoint, `trainer.max_failures` times |
| that often, but the run got further since | as often again: only failures without progress count |
| a node is gone, fewer workers fit | on with those (`trainer.min_workers`), else wait for a node, in words every half minute |
| nodes came (back), more workers fit | a checkpoint, then on with more |
| a node that came does not see data or storage | said; no worker begins there |
| no room for `trainer.wait_for_nodes` seconds | one sentence; the run can be resumed |
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cluster.capacity import Demand, Resources, free_by_node, missing_words, most_workers, sizes_of
from cluster.nodes import Newcomers
from cluster.training.crew import crew_of
from cluster.training.failure import read_failure
from cluster.training.job import Summary
from cluster.training.runlog import note_event
from vidssl.errors import DeviceError
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.run_folder import RunFolder

__all__ = ["Crew", "train_through"]

LOST_S, TAKEN_S = 1800.0, 60.0
"""Seconds to wait for what a run lost, and for what others hold when it begins, where the recipe does not say."""
SAY_S = 30.0
ANSWER_S = 15.0
LOOK_S = 15.0
_LOOKS = 3
_SETTLED = 3  # readings a second apart: what a killed process held comes back one piece after the other


@dataclass
class Crew:
    """Those that train now.

    Attributes:
        recipe: Of the run, with all its workers.
        demand: What each takes.
        workers: How many of them there are now.
        newcomers: Asks nodes that join.
    """

    recipe: Recipe
    demand: Demand
    workers: int = 0
    newcomers: Newcomers | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many there may be, most first."""
        return sizes_of(self.recipe.trainer)


def train_through(crew: Crew, folder: RunFolder, fit: Callable[[Recipe], Summary]) -> Summary:
    """Attempt after attempt, until the run ends, is asked to stop, or cannot go on.

    Args:
        crew: Told who trains in each attempt.
        folder: Of the run.
        fit: One attempt of a recipe, as `crew_of` says it.

    Raises:
        DeviceError: no room for as long as was to be waited.
        Exception: what `fit` raised, where beginning again cannot help.
    """
    asked, lost_at = crew.recipe.trainer.wait_for_nodes, 0
    while True:
        patience = asked if asked is not None else LOST_S if crew.workers else TAKEN_S
        workers = _room(crew, folder, patience)
        if workers is None:
            return Summary(latest_step(folder) or 0, stopped=True)
        if crew.workers:
            _say_who(crew, folder, workers)
        crew.workers = workers
        before, alive = latest_step(folder) or 0, _alive()
        folder.resize_flag.unlink(missing_ok=True)
        try:
            with _growth(crew, folder):
                summary = fit(crew_of(crew.recipe, workers))
        except Exception as error:
            progressed = (latest_step(folder) or 0) > before
            lost_at = 0 if progressed else lost_at + 1
            _refuse_without_cluster(error, folder)
            if read_failure(folder) is not None or not _again(error, progressed, lost_at, crew.recipe):
                raise
            note_event(folder, _loss(alive), restart=True)
            continue
        if folder.stop_flag.exists() or not (summary.stopped and folder.resize_flag.exists()):
            return summary


def _again(error: Exception, progressed: bool, tries: int, recipe: Recipe) -> bool:
    """Whether another attempt may do better: Ray Train did `max_failures` of its own within this one."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if recipe.trainer.max_failures == 0:
        return False
    if isinstance(error, ControllerError | RayActorError):  # no room for its workers, or Ray Train's own process died
        return tries <= recipe.trainer.max_failures
    return isinstance(error, WorkerGroupError) and progressed


def _refuse_without_cluster(error: Exception, folder: RunFolder) -> None:
    """A head that is gone answers nobody, and what Ray raises then says nothing of it."""
    from ray.exceptions import RayError

    if not isinstance(error, RayError | OSError):
        return
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(_alive()), name="cluster-there", daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if not answers:
        at = latest_step(folder)
        stands = f"the run stands at step {at} and" if at else "there is no checkpoint yet;"
        address = os.environ.get("RAY_ADDRESS", "on this machine")
        raise DeviceError(
            f"the Ray cluster {address} does not answer any more, its head is gone; {stands} workers that are left end by themselves; "
            f"start the cluster again and type: vidssl train --resume {folder.path}"
        ) from error


def _room(crew: Crew, folder: RunFolder, patience: float) -> int | None:
    """How many workers can begin, as soon as some can; None: the run is asked to stop meanwhile."""
    began, said, readings = time.monotonic(), 0.0, [0]
    while not folder.stop_flag.exists():
        nodes = _free(crew, folder)
        most = most_workers(crew.demand, nodes)
        fit = _largest(crew.sizes, most)
        readings = [*readings, fit][-_SETTLED:]
        if fit == crew.sizes[0] or (fit and set(readings) == {fit} and len(readings) == _SETTLED):
            if said:  # it was asked, and need not bring more
                _ask_autoscaler(crew, 0)
            return fit
        waited = time.monotonic() - began
        short = missing_words(crew.demand, crew.sizes[-1], nodes)
        if not fit and waited > max(patience, _SETTLED + 1):
            _ask_autoscaler(crew, 0)
            raise DeviceError(_refusal(crew, folder, short, waited))
        if not fit and waited - said > (SAY_S if said else _SETTLED):
            _ask_autoscaler(crew, crew.sizes[0])
            left = f"for {max(patience - waited, 0):.0f} s more (trainer.wait_for_nodes)"
            note_event(folder, f"waiting for nodes since {waited:.0f} s, {left}: {short}", restart=bool(crew.workers))
            said = waited
        time.sleep(1.0)
    return None


def _free(crew: Crew, folder: RunFolder) -> dict[str, Resources]:
    """What is free now, of nodes that a worker may go to."""
    nodes = free_by_node()
    if crew.newcomers is None:
        return nodes
    crew.newcomers.look(nodes, lambda line: note_event(folder, line, restart=True))
    return {node: free for node, free in nodes.items() if node not in crew.newcomers.blind}


def _refusal(crew: Crew, folder: RunFolder, short: str, waited: float) -> str:
    fewer = "" if crew.recipe.trainer.min_workers else " or trainer.workers=[MIN,MAX] to begin with fewer,"
    at = latest_step(folder)
    again = f"; the run stands at step {at}, to go on: vidssl train --resume {folder.path}" if at else ""
    return (
        f"no room for the workers after {waited:.0f} s: {short}; type trainer.wait_for_nodes=SECONDS to wait longer,{fewer} "
        f"or wait for the others{again}"
    )


def _ask_autoscaler(crew: Crew, workers: int) -> None:
    """Tell an autoscaler, where there is one, what is wanted; none of them: nothing any more."""
    from ray.autoscaler.sdk import request_resources

    bundles = [*([crew.demand.worker] * workers), *(crew.demand.beside if workers else ())]
    with suppress(Exception):  # a cluster without one
        request_resources(bundles=[{name: int(-(-much // 1)) for name, much in one.items()} for one in bundles])


def _say_who(crew: Crew, folder: RunFolder, workers: int) -> None:
    step, each = latest_step(folder) or 0, crew_of(crew.recipe, workers).trainer
    parts = f" in {each.accumulate} parts" if each.accumulate > 1 else ""
    change = "" if workers == crew.workers else f" instead of {crew.workers}"
    note_event(
        folder,
        f"going on from step {step} with {workers} worker(s){change}, {each.batch} videos{parts} each: a step still takes "
        f"{each.batch * workers}",
        restart=True,
    )


def _alive() -> dict[str, str]:
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _loss(before: dict[str, str]) -> str:
    gone = [before[node] for node in before.keys() - _alive().keys()]
    if gone:
        return f"{len(gone)} node(s) left the cluster ({', '.join(sorted(gone))})"
    return "the workers could not begin again, or failed as often as trainer.max_failures allows, but the run had got further"


@contextmanager
def _growth(crew: Crew, folder: RunFolder) -> Iterator[None]:
    """Meanwhile, look whether more workers would fit; seen three times, the run is asked for a checkpoint and ends this attempt."""
    ended = threading.Event()
    looking = (crew, folder, ended, _stamp(folder))
    thread = threading.Thread(target=_look_for_more, args=looking, name="room", daemon=True)
    if crew.workers < crew.sizes[0]:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _look_for_more(crew: Crew, folder: RunFolder, ended: threading.Event, before: int) -> None:
    looks: list[int] = []
    nodes: set[str] = set()
    with suppress(Exception):
        nodes = set(_alive())
    while not ended.wait(LOOK_S):
        if _stamp(folder) == before:  # the workers are not there yet: what they are going to take looks free
            continue
        with suppress(Exception):  # a cluster that does not answer now
            if nodes - set(_alive()):  # these workers are fewer than they were, and the attempt ends
                return
            more = crew.workers + most_workers(Demand(crew.demand.worker), _free(crew, folder))
            fit = _largest(crew.sizes, more)
            looks = [*looks, fit][-_LOOKS:]  # a group that begins again lets go of everything for some seconds
            if fit > crew.workers and looks == [fit] * _LOOKS:
                note_event(
                    folder, f"there is room for {fit} workers now: a checkpoint, then on with them", restart=True
                )
                folder.resize_flag.touch()
                return


def _stamp(folder: RunFolder) -> int:
    """Changes when the ranks of an attempt have begun."""
    try:
        return folder.ranks.stat().st_mtime_ns
    except OSError:
        return 0


def _largest(sizes: Sequence[int], most: int) -> int:
    return next((size for size in sizes if size <= most), 0)
