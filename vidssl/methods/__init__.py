"""Which pretext task is trained? `build_method` makes the one a recipe names; all are a `methods.base.Method`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.methods.base import Method, Period, StepOutput
from vidssl.methods.mined import mining_of
from vidssl.recipe import Recipe
from vidssl.tables.lookup import at, named
from vidssl.tables.methods import METHODS

__all__ = ["Method", "Period", "StepOutput", "bank_views_of", "build_method", "method_class", "mining_of"]


def build_method(
    recipe: Recipe, seed: int | None = None, instances: int = 1, rows: NDArray[np.int64] | None = None
) -> Method:
    """The pretext task of a recipe with fresh weights and queues; torch's global generator is left as it was.

    Args:
        recipe: The run.
        seed: Of weights, queue filler and per-step draws; the recipe's when None. Give every rank the same.
        instances: N, videos of the data: the rows of a method's memories, where it has some (IIC).
        rows: int64, the videos that are trained on; None: all. IIC draws its negatives from them: the memory rows of
            other videos are never visited and hold noise.

    Raises:
        RecipeError: unknown method or backbone, or a cascade that the queue is too small for (`mining.where=inline`).
    """
    chosen = recipe.seed if seed is None else seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen)
        return method_class(recipe.method.name).of(recipe, chosen, instances, rows)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        RecipeError: an unknown name, with the nearest known one.
    """
    found = at(named(METHODS, name, "method.name").place)
    assert issubclass(found, Method)  # for the type checker: a place is only a word
    return found


def bank_views_of(recipe: Recipe) -> tuple[str, str]:
    """Views of the bank that mine: (main, aux); the rows of the aux one are handed out as positives.

    With one stream (infonce with `method.cascade`) the bank keeps two rows of each video: its key and its query.
    """
    view = recipe.method.view
    return (f"{view}.query", view) if recipe.method.streams == "one" else (recipe.method.second_view, view)
