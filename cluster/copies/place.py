"""Where is the copy of a run? Below the address of `trainer.copy_to`, under the name of the run's folder."""

from __future__ import annotations

from pathlib import Path

from pipelines.dataset.place import Address, address_of
from vidssl.errors import RecipeError
from vidssl.recipe import Recipe

__all__ = ["copy_place", "refuse_copy", "run_address"]


def copy_place(copy_to: str, name: str) -> Address:
    """The place of the copy of the run called `name`.

    Raises:
        RecipeError: no address of a store that can be written.
        DataError: as `pipelines.dataset.place.address_of`.
    """
    address = address_of(copy_to)
    if address is None or not address.written:
        raise RecipeError(
            f"trainer.copy_to={copy_to} is no store that can be written; type trainer.copy_to=s3://BUCKET/RUNS, or gs://…"
        )
    return address / name


def run_address(word: str | Path) -> Address | None:
    """The place of a copy, where a run was named by it; None: a folder was named.

    Raises:
        RecipeError: a web server, or a bucket alone.
        DataError: as `pipelines.dataset.place.address_of`.
    """
    address = address_of(word)
    if address is not None and not (address.written and address.path):
        raise RecipeError(f"{word} is no copy of a run; type s3://BUCKET/RUNS/NAME, or gs://…")
    return address


def refuse_copy(recipe: Recipe, verb: str) -> None:
    """Refuse `trainer.copy_to` where nobody would keep the copy.

    Raises:
        RecipeError: it is set.
    """
    if recipe.trainer.copy_to is not None:
        raise RecipeError(
            f"trainer.copy_to={recipe.trainer.copy_to} keeps the copy of one training, and `vidssl {verb}` is more than that; "
            "type it without"
        )
