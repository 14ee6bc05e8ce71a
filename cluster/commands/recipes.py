"""What is there to train? The recipes with their purpose, hardware and expected score, from the comments that open each file."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.sweep.search import ablation_names
from vidssl.errors import RecipeError
from vidssl.recipe import RECIPES, recipe_names

__all__ = ["Header", "header_of", "recipes_table"]

_FIELDS: Final = ("Purpose", "Hardware", "Expected", "Source")
_FIELD = re.compile(r"# (Purpose|Hardware|Expected|Source|Notes): (.*)")


@dataclass(frozen=True)
class Header:
    """How a recipe file opens.

    Attributes:
        command: What to type.
        purpose: What it trains, in one line.
        hardware: What it needs, and for how long.
        expected: The score to expect.
        source: Where that score comes from.
        notes: What else there is to know; may be empty.
    """

    command: str
    purpose: str
    hardware: str
    expected: str
    source: str
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


def recipes_table() -> str:
    """Every recipe: name and purpose, hardware, expected score."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    lines: list[str] = []
    for name in recipe_names():
        header = header_of(RECIPES / f"{name}.yaml")
        lines.append(name)
        for text in (header.purpose, f"hardware: {header.hardware}", f"expected: {header.expected}"):
            lines += textwrap.wrap(
                text, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
    searched = [f"vidssl sweep {name} data=PACKED" for name in ablation_names()]
    lines += [
        "",
        "ablations, every arm trained anew (recipe=NAME: on another base):",
        *(f"    {line}" for line in searched),
    ]
    return "\n".join([*lines, "", "one with every value: vidssl recipes NAME; its keys: vidssl train NAME --help"])


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() or [""]
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end] or [""]
