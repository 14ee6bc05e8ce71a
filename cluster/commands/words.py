"""What was typed? The words behind a verb, told apart: those that have a place, options, and `key=value` settings.

A word whose part before the first `=` holds no `/` is a setting, wherever it stands; a path that looks like one is
written `./a=b`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vidssl.errors import RecipeError
from vidssl.tables.lookup import did_you_mean

__all__ = ["Option", "Place", "Words", "read_words", "refuse_unreadable"]

_SHOWN = 120
"""Characters of a word that a sentence repeats."""

_COPY = re.compile("(s3|gs)://.")
_DIGITS = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Place:
    """A word that is known by where it stands.

    Attributes:
        name: In capitals, as the help shows it.
        sentence: What it is.
        needed: Whether the verb means nothing without it.
    """

    name: str
    sentence: str
    needed: bool = True


@dataclass(frozen=True)
class Option:
    """A word that begins with `--`.

    Attributes:
        name: With the dashes.
        sentence: What it does.
        value: Name of its value, in capitals; empty for a switch.
        default: Its value when it is not typed.
        least: Smallest whole number it takes; none: it takes text.
    """

    name: str
    sentence: str
    value: str = ""
    default: str | None = None
    least: int | None = None


@dataclass(frozen=True)
class Words:
    """What was typed behind a verb.

    Attributes:
        places: Name of a place → word.
        options: Name of an option → its value; a switch that is on has an empty one.
        settings: `key=value` words in their order.
        argv: Everything, with the verb, as it was typed.
    """

    places: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()

    def __getitem__(self, place: str) -> str:
        """The word in a place that is needed."""
        return self.places[place]

    def place(self, name: str) -> str | None:
        """The word in a place that may be empty."""
        return self.places.get(name)

    def option(self, name: str) -> str | None:
        """The value of an option, or its default."""
        return self.options.get(name)

    def number(self, name: str) -> int | None:
        """The value of an option that takes a whole number."""
        value = self.options.get(name)
        return None if value is None else int(value)

    def on(self, name: str) -> bool:
        """Whether a switch was typed."""
        return name in self.options


def read_words(verb: str, places: Sequence[Place], options: Sequence[Option], words: Sequence[str]) -> Words:
    """Tell the words behind a verb apart.

    Args:
        verb: Its name, for the sentences.
        places: Words that it knows by where they stand, in order.
        options: What may begin with `--`.
        words: As typed, without the verb.

    Raises:
        RecipeError: a word that fits nowhere, is missing, is there twice or cannot be read.
    """
    refuse_unreadable(words)
    free, taken = _options(verb, options, words)
    settings = [word for word in free if _is_setting(word)]
    placed = [word for word in free if not _is_setting(word)]
    usage = " ".join(["vidssl", verb, *(place.name for place in places), "key=value …"])
    if len(placed) > len(places):
        raise RecipeError(f"'{_short(placed[len(places)])}' is one word too many; type {usage}")
    missing = [place for place in places[len(placed) :] if place.needed]
    if missing:
        raise RecipeError(f"no {missing[0].name} given ({missing[0].sentence}); type {usage}")
    _check_settings(settings)
    found = {place.name: word for place, word in zip(places, placed, strict=False)}
    for name, word in found.items():
        _refuse_copy(verb, name, word)
    return Words(found, taken, tuple(settings), (verb, *words))


def refuse_unreadable(words: Iterable[str]) -> None:
    """Refuse words that no sentence could repeat and no file system should see.

    Raises:
        RecipeError: an empty word, control characters, or bytes that are not UTF-8.
    """
    for number, word in enumerate(words, start=1):
        if not word.strip():
            raise RecipeError(f"word {number} is empty (a variable that is not set?); leave it out")
        if any("\ud800" <= sign <= "\udfff" for sign in word):
            raise RecipeError(f"{_short(word)!a} {_why_unreadable()}")
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in word):
            raise RecipeError(f"{_short(word)!a} holds a control character; type it without")


def _refuse_copy(verb: str, name: str, word: str) -> None:
    """A run's copy in a store is no folder: said here, where its address is still whole."""
    names = name.split("|")
    if "RUN" in names and "PACKED" not in names and _COPY.match(word):
        raise RecipeError(
            f"{_short(word)} is in a store, and `vidssl {verb}` takes a folder; to bring a run here from its copy type: "
            f"vidssl train --resume {_short(word)} trainer.storage=FOLDER"
        )


def _why_unreadable() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        return f"cannot be read in this locale ({encoding}); type export LC_ALL=C.UTF-8 first"
    return "holds bytes that are not UTF-8; rename the file, or give a link to it"


def _is_setting(word: str) -> bool:
    key, sign, _ = word.partition("=")
    return bool(sign) and "/" not in key


def _options(verb: str, options: Sequence[Option], words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    known = {option.name: option for option in options}
    free: list[str] = []
    taken: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            free += rest
        elif not word.startswith("-") or word == "-":
            free.append(word)
        else:
            name, value = _option(verb, known, word, rest)
            if name in taken:
                raise RecipeError(f"{name} is given twice; type it once")
            taken[name] = value
    return free, {o.name: o.default for o in options if o.default is not None} | taken


def _option(verb: str, known: dict[str, Option], word: str, rest: Iterator[str]) -> tuple[str, str]:
    name, sign, value = word.partition("=")
    option = known.get(name)
    if option is None:
        raise RecipeError(
            f"unknown option '{_short(name)}'; see: vidssl {verb} --help{did_you_mean(name.lower(), known)}"
        )
    if not option.value:
        if sign:
            raise RecipeError(f"{name} takes no value; type only {name}")
        return name, ""
    if not sign:
        value = next(rest, "")
    if not value or value.startswith("--"):
        raise RecipeError(f"{name} wants a value; type {name} {option.value}")
    if option.least is not None and not (_DIGITS.fullmatch(value) and int(value) >= option.least):
        raise RecipeError(f"{name} {_short(value)}: give a whole number ≥ {option.least} (at most nine digits)")
    return name, value


def _check_settings(settings: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word in settings:
        key, _, value = word.partition("=")
        if not key:
            raise RecipeError(f"'{_short(word)}' is no setting; type key=value, e.g. trainer.workers=2")
        if not value:
            raise RecipeError(f"'{key}=' has no value; type {key}=VALUE, or leave it out for its default")
        if key in seen:
            raise RecipeError(f"{key} is given twice, {_short(seen[key])} and {_short(value)}; type it once")
        seen[key] = value


def _short(word: str) -> str:
    return word if len(word) <= _SHOWN else f"{word[:_SHOWN]}…"
