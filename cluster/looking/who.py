"""Who looks: this process with its own device, or tasks of a cluster with theirs, so that the driver needs no GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.launch import cores_and_gpus, ray_session, refuse_gpus_without_cuda
from cluster.looking.look import Look
from cluster.looking.parts import Kept, joined, parts_of
from cluster.nodes import refuse_blind_nodes
from pipelines.dataset.place import place_of
from vidssl.errors import DeviceError, VidsslError
from vidssl.evaluation.encode import Described

if TYPE_CHECKING:
    from vidssl.recipe import Recipe

__all__ = ["Lookers", "on_tasks", "tasks_of"]

_RETRIES: Final = 3
_SAY_S: Final = 10.0

Say = Callable[[str], None]
Part = tuple[int, NDArray[np.int64]]


def on_tasks(recipe: Recipe) -> bool:
    """Whether tasks of a cluster look: as asked for, else where a cluster is named."""
    asked = recipe.evaluation.workers
    return asked > 0 if asked is not None else "RAY_ADDRESS" in os.environ


@dataclass(frozen=True)
class Lookers:
    """Whoever looks at videos.

    Attributes:
        device: Where this process looks, or what kind of device a task has.
        tasks: How many look at once; 0: this process.
        cpus: Cores, and threads, of a task.
        say: Told how far it is, and what could not be kept.
    """

    device: torch.device
    tasks: int = 0
    cpus: int = 1
    say: Say = field(default=lambda line: None)

    def describe(self, look: Look, rows: NDArray[np.int64], keep: Path) -> Described:
        """Everything that `look` shows of `rows`.

        Args:
            look: What is shown to whom.
            rows: int64 [N], the videos.
            keep: Where finished parts are kept until somebody removes it, where there are several.

        Raises:
            DataError: no video could be read.
            VidsslError: the data cannot be read, or the tasks died again and again.
        """
        parts = parts_of(rows)
        if len(parts) == 1 and not self.tasks:
            return joined([look.at(rows, self.device)])
        kept = Kept(keep / look.digest(rows, self.device.type), self.say)
        found = {number: part for number in range(len(parts)) if (part := kept.read(number)) is not None}
        todo = [(number, part) for number, part in enumerate(parts) if number not in found]
        if found:
            self.say(f"{sum(len(parts[number]) for number in found)} of {len(rows)} videos were looked at before")
        progress = _Progress(sum(len(part) for _, part in todo), self.say)
        for number, part in self._found(look, todo):
            found[number] = part
            if len(parts) > 1:
                kept.write(number, part)
            progress.note(len(parts[number]))
        return joined([found[number] for number in range(len(parts))])

    def _found(self, look: Look, todo: Sequence[Part]) -> Iterator[tuple[int, Described]]:
        if not self.tasks:
            for number, part in todo:
                yield number, look.at(part, self.device)
            return
        yield from _by_tasks(look, todo, self.tasks, self.cpus, self.device.type == "cuda")


class _Progress:
    """Says now and then how far it is and how long the rest takes at the same rate."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say, self._done = total, say, 0
        self._began = self._said = time.monotonic()

    def note(self, videos: int) -> None:
        self._done += videos
        now = time.monotonic()
        if now - self._said < _SAY_S or self._done == self._total:
            return
        self._said = now
        rate = self._done / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate
        self._say(f"looked at {self._done} of {self._total} videos, {rate:.1f} videos/s, about {left:.0f} s left")


@contextmanager
def tasks_of(recipe: Recipe, say: Say) -> Iterator[Lookers]:
    """Tasks of the cluster of RAY_ADDRESS, or of a Ray of this machine's own for the length of the block.

    Args:
        recipe: Whose `evaluation.workers`, `trainer.device` and `trainer.cpus_per_worker` count.
        say: Told how far it is.

    Raises:
        DeviceError: more tasks, cores or GPUs than there are.
    """
    cpus, asked = recipe.trainer.cpus_per_worker, recipe.evaluation.workers
    with ray_session(max(os.cpu_count() or 1, cpus * (asked or 1))):
        cores, gpus = cores_and_gpus(recipe.trainer.device)
        use_gpu = gpus > 0
        most = min(gpus, cores // cpus) if use_gpu else cores // cpus
        wanted = asked or max(most, 1)
        if wanted > most:
            kind = f"a GPU and {cpus} core(s)" if use_gpu else f"{cpus} core(s)"
            raise DeviceError(
                f"evaluation.workers={wanted} with {kind} each is more than this cluster has ({gpus} GPUs, {cores} cores); "
                f"type evaluation.workers={most}, or 0 for this process"
            )
        refuse_gpus_without_cuda(use_gpu)
        if recipe.data is not None:
            refuse_blind_nodes(None, place_of(recipe.data), say)
        yield Lookers(torch.device("cuda" if use_gpu else "cpu"), wanted, cpus, say)


def _by_tasks(
    look: Look, todo: Sequence[Part], at_once: int, cpus: int, use_gpu: bool
) -> Iterator[tuple[int, Described]]:
    """Parts as they come; a task whose process dies is begun again by Ray, elsewhere if need be."""
    import ray

    # A process that looked keeps its CUDA context for the next part.
    task = ray.remote(num_cpus=cpus, num_gpus=int(use_gpu), max_retries=_RETRIES, max_calls=0)(_look)
    shared, waiting, under_way = ray.put(look), list(reversed(todo)), {}
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            number, part = waiting.pop()
            under_way[task.remote(shared, part, cpus)] = number
        ready, _ = ray.wait(list(under_way), num_returns=1)
        yield under_way.pop(ready[0]), _result(ready[0])


def _result(reference: Any) -> Described:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:  # Ray's own holds the whole trace of the task, and a sentence is wanted
        if isinstance(error.cause, VidsslError | OSError):
            raise error.cause from None
        raise
    except RayError as error:
        why = " ".join(str(error).split())[:300]
        raise VidsslError(
            f"tasks that look at videos died {_RETRIES + 1} times ({why}); type the same words again to go on with the "
            "videos that are left, with a smaller evaluation.batch where memory was short"
        ) from error


def _look(look: Look, rows: NDArray[np.int64], cpus: int) -> Described:
    import ray

    torch.set_num_threads(cpus)
    return look.at(rows, torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
