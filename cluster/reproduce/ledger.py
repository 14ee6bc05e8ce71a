"""Which steps are done? A file that says of each what it was made from and what it left; both are hashes.

A step is done while its inputs are the same and what it left is still there. A step that comes from another one takes its
output for an input, so whatever is made again makes again what hangs on it, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from vidssl.errors import StorageError
from vidssl.files import storage_error
from vidssl.records import read_record, write_record

__all__ = ["LEDGER", "Entry", "Ledger", "Part", "State", "Step", "digest", "files_hash"]

LEDGER: Final = "ledger.json"

Say = Callable[[str], None]
State = Literal["done", "to do", "begun", "again"]
"""`again`: it was done, and what it was made from, or what it left, is not the same any more."""


@dataclass(frozen=True)
class Part:
    """A part of a step that the plan shows on a line of its own: a phase of the training."""

    name: str
    seconds: float
    state: str = ""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        name: In the ledger, and of what it leaves in `results`.
        sentence: What it is.
        after: Steps that it comes from.
        facts: What else decides its outcome: words, fingerprints.
        make: Does it; goes on where it was killed.
        output: Hash of what it left; None where that is not there or not whole.
        seconds: By estimate.
        bytes: On the disk, by estimate.
        parts: Of its seconds.
    """

    name: str
    sentence: str
    after: tuple[str, ...]
    facts: Mapping[str, str]
    make: Callable[[Say], None]
    output: Callable[[], str | None]
    seconds: float = 0.0
    bytes: float = 0.0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is written of a step.

    Attributes:
        inputs: Hash of what it was made from; empty while it is under way.
        output: Hash of what it left; empty while it is under way.
        seconds: That it took, the last time that it was begun.
    """

    inputs: str
    output: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class _Content:
    steps: dict[str, Entry] = field(default_factory=dict)


class Ledger:
    """The ledger of one reproduction.

    Args:
        home: Its folder.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / LEDGER
        mend = "type the same words again: what is finished is found again by each step"
        self.entries = read_record(_Content, self._path, mend).steps if self._path.is_file() else {}

    def inputs(self, step: Step) -> str | None:
        """Hash of what a step would be made from now; None while a step before it is not done."""
        before = {name: self.entries[name].output for name in step.after if name in self.entries}
        if len(before) < len(step.after) or not all(before.values()):
            return None
        return digest({**step.facts, **{f"after {name}": output for name, output in before.items()}})

    def state(self, step: Step) -> State:
        """Where a step stands."""
        entry = self.entries.get(step.name)
        if entry is None:
            return "to do"
        if not entry.output:
            return "begun"
        return "done" if entry.inputs == self.inputs(step) and entry.output == step.output() else "again"

    def begin(self, step: Step) -> None:
        """Write that a step is under way; what hangs on it is not done from now on."""
        self._put(step.name, Entry(self.inputs(step) or ""))

    def end(self, step: Step, seconds: float) -> None:
        """Write that a step is done.

        Raises:
            StorageError: it left nothing whole, or the ledger cannot be written.
        """
        output = step.output()
        if output is None:
            raise StorageError(
                f"{step.name} ended and what it wrote is not there; look after the disk of {self._path.parent}"
            )
        self._put(step.name, Entry(self.inputs(step) or "", output, round(seconds, 1)))

    def _put(self, name: str, entry: Entry) -> None:
        self.entries = {**self.entries, name: entry}
        try:
            write_record(self._path, _Content(dict(self.entries)))
        except OSError as error:
            raise storage_error(error, self._path) from error


def digest(facts: Mapping[str, str]) -> str:
    """16 hexadecimal digits of some facts."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:16]


def files_hash(folder: Path, names: tuple[str, ...]) -> str | None:
    """Hash of files in a folder; None where one is missing."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError:
            return None
    return digest(found)
