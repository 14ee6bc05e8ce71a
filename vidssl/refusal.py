"""How does a wrong value become one sentence? What was given, what is allowed, and the nearest known word."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from vidssl.tables.lookup import did_you_mean

__all__ = ["cut", "near_key", "one_line", "refusal", "shown"]

LONGEST = 80
"""Characters of a value that a sentence repeats."""


def refusal(error: ValidationError, keys: Sequence[str]) -> str:
    """The first finding of pydantic as a sentence.

    Args:
        error: What `model_validate` raised.
        keys: All keys that are known, for the nearest one to an unknown.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key {shown(key)}{near_key(key, keys)}"
    given = first["input"]
    if first["type"] == "literal_error" and isinstance(given, str):
        message += did_you_mean(given, _choices(first.get("ctx", {}).get("expected", "")), key)
    what = "" if isinstance(given, dict | BaseModel) else f"={shown(given)}"
    return f"{key}{what}: {message[0].lower() + message[1:]}" if key else message


def near_key(word: str, known: Sequence[str]) -> str:
    """`; did you mean '…'?` with the nearest key, or the one whose last part it is: `workers` for `trainer.workers`."""
    if hint := did_you_mean(word, known):
        return hint
    last = [key for key in known if key.rsplit(".", 1)[-1] == word]
    return f"; did you mean '{last[0]}'?" if last else ""


def shown(value: object) -> str:
    """A value as a sentence can repeat it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists in lists in lists
        return f"a {type(value).__name__} too long to print"
    return cut(text)


def one_line(error: BaseException) -> str:
    """What another library says, in one line that is not too long."""
    said = str(error).partition("\n    full_key:")[0]  # OmegaConf's own view of the tree is nobody's
    return cut(" ".join(said.split()) or type(error).__name__, 4 * LONGEST)


def cut(text: str, longest: int = LONGEST) -> str:
    """Text without characters that cannot be printed, and cut where it is long."""
    plain = "".join(letter if letter.isprintable() else "�" for letter in text[: longest + 1])
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def _choices(expected: str) -> list[str]:
    """The words of pydantic's `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", expected)
