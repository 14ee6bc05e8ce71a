"""The pages of `vidssl --help` and `vidssl VERB --help`, as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cluster.commands.keys import Group, Key, values_of
from cluster.commands.table import VERBS, Verb
from cluster.commands.words import Option
from vidssl.recipe import Recipe

__all__ = ["front_page", "recipe_page", "verb_page"]

_WALK: Final = (
    ("vidssl demo", "everything below, on a small set that it makes itself"),
    ("vidssl pack folder VIDEOS PACKED", "VIDEOS/CLASS/file → verified shards"),
    ("vidssl train cpr-tiny data=PACKED trainer.workers=2", ""),
    ("vidssl evaluate runs/cpr-tiny", "retrieval and mining quality, with their protocol"),
    ("vidssl report runs/cpr-tiny", "one page to look at"),
)
_LEFT: Final = 36
"""Columns of the words; their sentences stand to the right."""


def front_page(version: str) -> str:
    """All verbs and a first walk."""
    lines = [f"vidssl {version}: self-supervised video learning at cluster scale.", ""]
    lines += ["vidssl VERB … key=value …       vidssl VERB --help       vidssl --version", ""]
    for name, verb in VERBS.items():
        lines += _row(name, verb.sentence, 11)
    lines += ["", "a first walk:"]
    for command, what in _WALK:
        lines += _row(command, what, 54)
    job = "ray job submit --working-dir . -- python -m cluster train cpr-tiny data=/shared/PACKED"
    return "\n".join([*lines, "", f"on a cluster: {job}"])


def verb_page(name: str, verb: Verb) -> str:
    """One verb: its places, options and every key, with sentence, default and range."""
    lines = _head(name, verb)
    groups = verb.groups()
    if groups:
        lines += ["", "key=default"]
        lines += _key_lines(groups, {})
    return "\n".join(lines)


def recipe_page(name: str, verb: Verb, chosen: str, recipe: Recipe) -> str:
    """One verb with the values of a recipe; where they are not the default, the default stands beside them.

    Args:
        name: Of the verb.
        verb: The verb.
        chosen: Name of the recipe as it was typed.
        recipe: With the words that were typed behind it.
    """
    lines = [*_head(name, verb), "", f"key=value in {chosen}, and the default where it is another"]
    values = dict(values_of(recipe.model_dump(mode="json", exclude={"phases"})))
    lines += _key_lines([_without_phases(group) for group in verb.groups()], values)
    if recipe.phases:
        lines += ["", "its phases, each with what it changes; PHASE:key=value sets a key of one, *:key=value of all"]
        for phase in recipe.phases:
            words = " ".join(f"{key}={value}" for key, value in values_of(phase.words))
            source = [f"{role} {came}" for role, came in (("start", phase.start), ("second", phase.second)) if came]
            lines += _row(
                phase.name, "; ".join([", ".join(source) or "fresh weights", *([words] if words else [])]), 16
            )
    return "\n".join(lines)


def _without_phases(group: Group) -> Group:
    return replace(group, keys=tuple(key for key in group.keys if key.name != "phases"))


def _head(name: str, verb: Verb) -> list[str]:
    places = [place.name if place.needed else f"[{place.name}]" for place in verb.places]
    more = ["[--option …]"] * bool(verb.options) + ["key=value …"] * bool(verb.groups())
    usage = " ".join(["vidssl", name, *places, *more])
    lines = [usage, *_wrapped(verb.sentence, ""), ""]
    for place in verb.places:
        lines += _row(place.name, place.sentence, _LEFT)
    for option in verb.options:
        lines += _row(f"{option.name} {option.value}".strip(), _option_sentence(option), _LEFT)
    return lines + _row(
        "--help", "this page; behind a recipe's name: with its values" if name == "train" else "this page", _LEFT
    )


def _option_sentence(option: Option) -> str:
    notes = [f"whole number ≥ {option.least}"] if option.least is not None else []
    notes += [f"default {option.default}"] if option.default is not None else []
    return option.sentence + (f" [{'; '.join(notes)}]" if notes else "")


def _key_lines(groups: Sequence[Group], values: Mapping[str, str]) -> Iterator[str]:
    for group in groups:
        yield ""
        yield from _wrapped(group.title, "")
        for key in group.keys:
            value = values.get(key.name, key.default)
            yield from _row(f"{key.name}={value}", _key_sentence(key, value), _LEFT)


def _key_sentence(key: Key, value: str) -> str:
    notes = [key.allowed] if key.allowed else []
    notes += [f"default {key.default}"] if value != key.default else []
    return key.sentence + (f" [{'; '.join(notes)}]" if notes else "")


def _row(left: str, right: str, column: int) -> list[str]:
    """A word, and its sentence from a column on; below it where the word is too long."""
    if not right:
        return [f"  {left}"]
    lines = _wrapped(right, " " * (column + 2))
    if len(left) + 1 < column:
        return [f"  {left:{column}}{lines[0].lstrip()}", *lines[1:]]
    return [f"  {left}", *lines]


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]
