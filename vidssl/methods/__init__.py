"""Which pretext task is trained? `build_method` makes the one a recipe names; all are a `methods.base.Method`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.methods.base import Method, Phase, StepOutput
from vidssl.methods.coclr import CoCLR
from vidssl.methods.infonce import InfoNCE
from vidssl.methods.mined import mining_of
from vidssl.recipe import Recipe

__all__ = ["CoCLR", "InfoNCE", "Method", "Phase", "StepOutput", "bank_views_of", "build_method", "mining_of"]


def build_method(
    recipe: Recipe, seed: int | None = None, instances: int = 1, rows: NDArray[np.int64] | None = None
) -> Method:
    """The pretext task of a recipe with fresh weights and queues; torch's global generator is left as it was.

    Args:
        recipe: The run.
        seed: Of weights, queue filler and per-step draws; the recipe's when None. Give every rank the same.
        instances: N, videos of the data: the rows of IIC's memories. Other methods do not read it.
        rows: int64, the videos that are trained on; None: all. IIC draws its negatives from them: the memory rows of
            other videos are never visited and hold noise.

    Raises:
        RecipeError: unknown backbone, or a cascade that the queue is too small for (`mining.where=inline`).
    """
    chosen = recipe.seed if seed is None else seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen)
        return _method(recipe, chosen, instances, rows)


def _method(recipe: Recipe, seed: int, instances: int, rows: NDArray[np.int64] | None) -> Method:
    name = recipe.method.name
    if name == "infonce":
        return InfoNCE(recipe, seed)
    if name == "ubernce":
        from vidssl.methods.ubernce import UberNCE

        return UberNCE(recipe, seed)
    if name == "vicc":
        from vidssl.methods.vicc import ViCC

        return ViCC(recipe, seed)
    if name == "iic":
        from vidssl.methods.iic import IIC

        return IIC(recipe, seed, instances, rows)
    return CoCLR(recipe, seed)


def bank_views_of(recipe: Recipe) -> tuple[str, str]:
    """Views of the bank that mine: (main, auxiliary); the rows of the auxiliary one are handed out as positives.

    With one stream (infonce with `method.cascade`) the bank keeps two rows of each video: its key and its query.
    """
    view = recipe.method.view
    return (f"{view}.query", view) if recipe.method.name == "infonce" else (recipe.method.second_view, view)
