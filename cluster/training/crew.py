"""Who trains now? The workers that there is room for, which share the videos of a step whatever their number.

A step takes G = `trainer.batch` · `trainer.workers` videos. Where only w workers have room (`trainer.min_workers` ≤ w), each
takes G / w of them, in so many parts that a pass holds no more than before, for methods that can do their rows in parts.
Only numbers that divide G are taken.
"""

from __future__ import annotations

from vidssl.errors import RecipeError
from vidssl.methods import method_class
from vidssl.recipe import Recipe

__all__ = ["crew_of"]


def crew_of(recipe: Recipe, workers: int) -> Recipe:
    """The recipe as this number of workers trains it: of the same G.

    Args:
        recipe: Of the run.
        workers: One of `cluster.capacity.sizes_of`.
    """
    trainer = recipe.trainer
    if workers == trainer.workers:
        return recipe
    batch = trainer.batch * trainer.workers // workers
    least = -(-trainer.accumulate * trainer.workers // workers)
    parts = next(parts for parts in range(least, batch + 1) if batch % parts == 0)
    split = _with(recipe, workers, batch, parts)
    try:
        method_class(recipe.method.name).check(split)
    except RecipeError:  # a method that needs all rows of a worker at once
        return _with(recipe, workers, batch, 1)
    return split


def _with(recipe: Recipe, workers: int, batch: int, parts: int) -> Recipe:
    told = {"workers": workers, "min_workers": None, "batch": batch, "accumulate": parts}
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=told)})
