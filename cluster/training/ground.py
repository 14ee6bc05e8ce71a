"""What does a training stand on? A Ray cluster that was looked at, or this process alone (`trainer.workers=0`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.launch import check_resources, ray_session, refuse_gpus_without_cuda, resolve_device
from cluster.nodes import refuse_blind_nodes
from vidssl.errors import DeviceError
from vidssl.recipe import Recipe, Trainer

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["stand_on"]

Say = Callable[[str], None]


def stand_on(
    recipes: Sequence[Recipe], folder: Path, manifest: Manifest, open_things: ExitStack, say: Say
) -> list[bool]:
    """Open what trainings run on, and refuse what it can never give.

    Args:
        recipes: Of one training each, one after the other.
        folder: Where the run is to lie.
        manifest: Of the packed data.
        open_things: Closes what is opened here.
        say: Told what the user has to know.

    Returns:
        Whether the workers of each take a GPU.

    Raises:
        DeviceError, DataError, StorageError: in one sentence; nothing was made or removed by then.
    """
    if all(recipe.trainer.in_process for recipe in recipes):
        devices = [_cuda_here(recipe.trainer) for recipe in recipes]
    else:
        open_things.enter_context(ray_session(max(os.cpu_count() or 1, 1)))
        devices = [resolve_device(recipe.trainer, say) for recipe in recipes]
        refuse_gpus_without_cuda(any(devices))
        refuse_blind_nodes(folder, manifest.root, say)
        for recipe, use_gpu in zip(recipes, devices, strict=True):
            check_resources(recipe.trainer, use_gpu, recipe.mining if recipe.mines else None)
    for recipe, use_gpu in zip(recipes, devices, strict=True):
        _refuse_decoder(recipe, manifest, use_gpu)
    return devices


def _refuse_decoder(recipe: Recipe, manifest: Manifest, use_gpu: bool) -> None:
    import torch

    from pipelines.loading.decode import resolve_decode

    resolve_decode(recipe.loader.decode, manifest.codec, torch.device("cuda" if use_gpu else "cpu"), training=True)


def _cuda_here(trainer: Trainer) -> bool:
    if trainer.device == "cpu":
        return False
    import torch

    if trainer.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("trainer.device=cuda was asked for and torch finds no GPU here; type trainer.device=cpu")
    return torch.cuda.is_available()
