"""How is a name found in a table? With the nearest known one where it is unknown, and its class when it is needed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from vidssl.errors import RecipeError

__all__ = ["at", "did_you_mean", "named"]

T = TypeVar("T")


def named(table: Mapping[str, T], name: str, key: str) -> T:
    """The entry of `name`.

    Args:
        table: One of the tables.
        name: What was given.
        key: The recipe's key, for the sentence.

    Raises:
        RecipeError: an unknown name.
    """
    if name not in table:
        near = did_you_mean(name, table, key=key)
        raise RecipeError(f"{key}={name} is unknown; use one of {', '.join(table)}{near}")
    return table[name]


def at(place: str) -> Any:
    """What stands at `module:Name`; the module is imported now and not when a recipe is read."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def did_you_mean(word: str, known: Iterable[str], key: str = "") -> str:
    """`; did you mean '…'?` with the nearest known word (as `key=word` where a key is given), or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    sign = "=" if key else ""
    return f"; did you mean '{key}{sign}{near[0]}'?" if near else ""
