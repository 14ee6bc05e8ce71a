"""What is there to train? The recipes with their purpose, hardware and expected score, from the comments that open each file."""

from __future__ import annotations

import shutil
import textwrap

from cluster.sweep.search import ablation_names
from vidssl.headers import header_of
from vidssl.recipe import RECIPES, recipe_names

__all__ = ["recipes_table"]


def recipes_table() -> str:
    """Every recipe: name and purpose, hardware, expected score."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    lines: list[str] = []
    for name in recipe_names():
        header = header_of(RECIPES / f"{name}.yaml")
        lines.append(name)
        packed = [f"packed with: {header.pack}"] if header.pack else []
        for text in (header.purpose, f"hardware: {header.hardware}", f"expected: {header.expected}", *packed):
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
