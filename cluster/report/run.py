"""What does a run say of itself? Recipe, facts and log as the report takes them; what is no logged step is counted and said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidssl.errors import CheckpointError
from vidssl.recipe import Recipe, recipe_from_tree
from vidssl.records import read_record
from vidssl.saved.card import is_card, read_card
from vidssl.saved.run_folder import RunFolder, logged_row, open_run
from vidssl.saved.trained import without_checkpoint

__all__ = ["Facts", "Log", "open_reported", "read_log"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was run, on what, with which data, as run.json says; None: it does not.

    Attributes:
        data_hash: Of the packed data.
        command: As it was typed.
        started: When.
        machine: Where.
        python: Version.
        versions: Of packages.
    """

    data_hash: str | None = None
    command: str | None = None
    started: str | None = None
    machine: str | None = None
    python: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for the page."""
        own = ("started", "machine", "python", "data_hash")
        known = [(key, str(value)) for key in own if (value := getattr(self, key)) is not None]
        return known + [(name, str(version)) for name, version in self.versions.items()]


@dataclass(frozen=True)
class Log:
    """The logged steps of a run, oldest first, and a sentence about lines that are none."""

    rows: tuple[Mapping[str, float], ...] = ()
    lost: str = ""


def open_reported(path: str | Path) -> tuple[RunFolder, Recipe, Facts]:
    """The folder of a run or a card, what it says of itself as a recipe, and the facts of its making.

    Raises:
        CheckpointError: neither, a run of phases, or a damaged run.json.
    """
    if not is_card(path):
        folder = open_run(path)
        recipe = folder.read_recipe()
        if recipe.phases:
            raise CheckpointError(without_checkpoint(folder, recipe))
        return folder, recipe, _facts(folder)
    card = read_card(path)
    folder = RunFolder(Path(path).expanduser().resolve())
    facts = Facts(data_hash=card.protocol.data_hash or "unknown", command=f"taken from {card.protocol.source}")
    return folder, recipe_from_tree({"name": folder.path.name} | card.recipe()), facts


def read_log(path: Path) -> Log:
    """The rows of a log.jsonl; a line torn by a kill is left out, other lines are counted.

    A number that is not finite is left out of its row: there is nothing to draw.
    """
    rows: list[Mapping[str, float]] = []
    other = 0
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines):
        row = logged_row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines) - 1:  # the last one may have been cut by a kill
            other += 1
    verb = (
        "line of log.jsonl is no logged step and was"
        if other == 1
        else "lines of log.jsonl are no logged steps and were"
    )
    return Log(tuple(rows), f"{other} {verb} left out." if other else "")


def _facts(folder: RunFolder) -> Facts:
    if not folder.facts.is_file():
        return Facts()
    return read_record(Facts, folder.facts, "write the report again; it tells when and where the run was made")
