"""What do the comments say that open a recipe file? Its command, purpose, hardware, data, expected score and source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vidssl.errors import RecipeError

__all__ = ["Header", "header_of"]

_FIELDS: Final = ("Purpose", "Hardware", "Expected", "Source")
_FIELD = re.compile(r"# (Purpose|Hardware|Pack|Expected|Source|Notes): (.*)")


@dataclass(frozen=True)
class Header:
    """How a recipe file opens.

    Attributes:
        command: What to type.
        purpose: What it trains, in one line.
        hardware: What it needs, and for how long.
        expected: The score to expect.
        source: Where that score comes from.
        pack: Words of `vidssl pack` that make its data as the paper had it; empty: none in particular.
        notes: What else there is to know; may be empty.
    """

    command: str
    purpose: str
    hardware: str
    expected: str
    source: str
    pack: str = ""
    notes: str = ""


def header_of(path: Path) -> Header:
    """The comments that open a recipe file.

    Raises:
        RecipeError: the command or a field is missing.
    """
    first, *comments = _comments(path)
    if not first.startswith("# vidssl "):
        raise RecipeError(f"{path.name} does not open with its command, e.g. # vidssl train {path.stem} data=PACKED")
    found: dict[str, str] = {}
    name = ""
    for line in comments:
        field = _FIELD.match(line)
        if field:
            name, found[field[1]] = field[1], field[2].strip()
        elif name:
            found[name] += " " + line.removeprefix("#").strip()
    missing = [field for field in _FIELDS if not found.get(field)]
    if missing:
        raise RecipeError(f"{path.name} opens without its {missing[0]}; add a line '# {missing[0]}: …'")
    told = {field.lower(): text for field, text in found.items()}
    return Header(command=first.removeprefix("# "), **told)


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() or [""]
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end] or [""]
