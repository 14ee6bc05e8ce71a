"""What limits this training: the step, or which stage of its loader? One sentence when it ends."""

from __future__ import annotations

from pipelines.loading.stages import limit_in_words
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder

__all__ = ["limit_of_run", "mean_of"]

ROWS = 20
"""Log rows at the end of the log that are averaged; the first row, in which everything starts, never is."""


def limit_of_run(folder: RunFolder, recipe: Recipe) -> str:
    """In words; empty where the log says too little.

    Args:
        folder: The run.
        recipe: Its recipe.
    """
    steady = folder.read_log()[1:][-ROWS:]
    return limit_in_words(mean_of(steady), recipe.loader.threads) if steady else ""


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each column over the rows that have it."""
    names = {name for row in rows for name in row}
    return {name: sum(had := [row[name] for row in rows if name in row]) / len(had) for name in names}
