"""What does a YAML text, or the value of a `key=value` word, say in plain values?

OmegaConf reads and resolves; its trees are made only where there is something to resolve, because building one costs ten
times as much as validating a recipe, and a sweep reads thousands.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

__all__ = ["UNREADABLE", "of_text", "of_word", "put", "resolved"]

UNREADABLE = (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError)
"""What reading raises: beside the libraries' own, a date that is none, thousands of digits, lists in lists in lists."""


def _remembered(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same text says the same: read once, and everyone gets a tree of his own."""
    once = lru_cache(maxsize=256)(read)

    def reader(text: str) -> Any:
        return deepcopy(once(text))

    reader.__doc__ = read.__doc__
    return reader


@_remembered
def of_text(text: str) -> Any:
    """A YAML text as plain values, its `${…}` as they stand.

    Raises:
        UNREADABLE: it is no YAML, or names a key twice.
    """
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


@_remembered
def of_word(given: str) -> Any:
    """What stands after the `=` of a word, as plain values: a number, a text, a list, a mapping, None.

    Raises:
        UNREADABLE: it is no YAML.
    """
    tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={given}"]), resolve=False)
    assert isinstance(tree, dict)
    return tree["v"]


def put(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key; sections that are not there are made, and a mapping is laid over the one that is there."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    _lay(tree, last, value)


def _lay(tree: dict[Any, Any], name: Any, value: object) -> None:
    here = tree.get(name)
    if isinstance(value, dict) and isinstance(here, dict):
        for inner, of_inner in value.items():
            _lay(here, inner, of_inner)
    else:
        tree[name] = value


def resolved(tree: Any) -> Any:
    """The tree with every `${…}` in it replaced by what it names; as it is where there is none.

    Raises:
        UNREADABLE: one of them names nothing.
    """
    return OmegaConf.to_container(OmegaConf.create(tree), resolve=True) if _refers(tree) else tree


def _refers(value: object) -> bool:
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(_refers(key) or _refers(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_refers, value))
