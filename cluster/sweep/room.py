"""How many trainings fit at once? What each books, held against what the cluster has free now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.launch import check_resources, refuse_gpus_without_cuda, resolve_device
from vidssl.errors import DeviceError
from vidssl.recipe import Recipe

__all__ = ["Room", "room_for"]


@dataclass(frozen=True)
class Room:
    """What one training takes and how many there is room for.

    Attributes:
        at_once: Trainings.
        cpus: Cores of the task that scores.
        gpus: Its GPUs.
        words: What one training books.
    """

    at_once: int
    cpus: int
    gpus: int
    words: str


def room_for(recipes: Sequence[Recipe], most: int | None = None) -> Room:
    """Room for the largest of some trainings.

    Raises:
        DeviceError: one of them is more than the cluster has, or has free.
    """
    import ray

    devices = [resolve_device(recipe.trainer) for recipe in recipes]
    refuse_gpus_without_cuda(any(devices))
    for recipe, use_gpu in zip(recipes, devices, strict=True):
        check_resources(recipe.trainer, use_gpu, recipe.mining if recipe.mines else None)
    cores = max(_cores(recipe) for recipe in recipes)
    gpus = max((_gpus(recipe, use_gpu) for recipe, use_gpu in zip(recipes, devices, strict=True)), default=0.0)
    free = ray.available_resources()
    fits = [int(free.get("CPU", 0) // cores)] + ([int(free.get("GPU", 0) // gpus)] if gpus else [])
    words = f"{cores} core(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
    if min(fits) < 1:
        raise DeviceError(
            f"one training takes {words}, and of this cluster {int(free.get('CPU', 0))} core(s) and {int(free.get('GPU', 0))} GPU(s) "
            "are free now; wait for the others, or type trainer.workers=1"
        )
    scoring = max(recipe.trainer.cpus_per_worker for recipe in recipes)
    return Room(min([*fits, len(recipes), most or len(recipes)]), scoring, int(any(devices)), words)


def _cores(recipe: Recipe) -> int:
    trainer, mining = recipe.trainer, recipe.mining
    booked = trainer.workers * trainer.cpus_per_worker
    if recipe.mines:
        booked += mining.miners * mining.cpus_per_miner
        booked += mining.shards * mining.cpus_per_shard if mining.shards > 1 else 0
    return booked


def _gpus(recipe: Recipe, use_gpu: bool) -> float:
    mined = recipe.mining.miners * recipe.mining.gpus_per_miner if recipe.mines else 0.0
    return (recipe.trainer.workers if use_gpu else 0) + mined
