"""Which files of a run are copied, in which order, and how far a run has come by their names alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vidssl.marks import MARK
from vidssl.saved.meta import META
from vidssl.saved.run_folder import INSIDE, TOP, RunFolder

__all__ = ["FACTS", "RECIPE", "begun", "group_of", "is_ours", "last_of_each", "newest", "on_disk", "ordered"]

RECIPE, FACTS = RunFolder(Path()).recipe.name, RunFolder(Path()).facts.name
_PASSING = {"STOP", "RESIZE", "ranks.json", "failure.json", "attempt", "attempt.tmp", "log.tmp"}
"""What belongs to one attempt on one machine."""
_GROUP = re.compile(r"(.*/)?(checkpoints/step-\d+|bank/snap-\d+)(?=/)")
_STEP = re.compile(rf"(.*/)?checkpoints/step-(\d+)/{re.escape(META)}")


def on_disk(folder: Path) -> dict[str, os.stat_result]:
    """The files of a run that are copied: name below its folder → what the disk says of it.

    Left out: what is being written, what belongs to one attempt, locks, Ray's own files. A file that goes away while it is
    looked for is not there.
    """
    found: dict[str, os.stat_result] = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if (name.startswith(".") and name != MARK) or name in _PASSING:
                continue
            path = Path(here) / name
            try:
                found[path.relative_to(folder).as_posix()] = path.stat()
            except FileNotFoundError:
                continue
    return found


def group_of(name: str) -> str | None:
    """The checkpoint or snapshot that a file is a part of, which is whole or of no use; None: it stands alone."""
    found = _GROUP.match(name)
    return None if found is None else found[0]


def newest(names: Iterable[str]) -> dict[str, int]:
    """Steps done at the newest checkpoint: of the run under "", of each phase under its name and a slash."""
    steps: dict[str, int] = {}
    for found in filter(None, map(_STEP.fullmatch, names)):
        phase = found[1] or ""
        steps[phase] = max(steps.get(phase, 0), int(found[2]))
    return steps


def last_of_each(names: Iterable[str]) -> set[str]:
    """Of each kind of group, of the run and of each phase: the newest that is whole, as far as names tell."""
    there = set(names)
    last: dict[str, str] = {}
    for group in {group for group in map(group_of, there) if group is not None}:
        kind = group.rpartition("-")[0]
        whole = kind.endswith("snap") or f"{group}/{META}" in there
        if whole and (kind not in last or _age(group) > _age(last[kind])):
            last[kind] = group
    return set(last.values())


def is_ours(name: str, names: Container[str]) -> bool:
    """Whether a run writes files of this name, itself or as one of its phases, which carry a mark of their own in `names`."""
    phase, *inner = name.split("/")
    return _is_made((phase, *inner)) or (f"{phase}/{MARK}" in names and _is_made(inner))


def _is_made(parts: Sequence[str]) -> bool:
    """Whether a path below a run's folder begins with what we put there."""
    if any(fnmatchcase(parts[0], pattern) for pattern in (MARK, *TOP)):
        return True
    inside = [pattern for folder, patterns in INSIDE.items() if fnmatchcase(parts[0], folder) for pattern in patterns]
    return len(parts) > 1 and any(fnmatchcase(parts[1], pattern) for pattern in inside)


def begun(facts: bytes) -> tuple[str, ...]:
    """What tells a run from another of the same name, of its facts: when it was begun, on which data, with which words."""
    try:
        tree = json.loads(facts)
        return tuple(str(tree.get(key)) for key in ("started", "data_hash", "command"))
    except (ValueError, AttributeError, RecursionError):
        return ()


def ordered(names: Iterable[str]) -> Iterator[list[str]]:
    """Names in the order in which they are sent: what stands alone, then groups, the newest first, each with its list last."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(group_of(name) or "", []).append(name)
    yield groups.pop("", [])
    for group in sorted(groups, key=_age, reverse=True):
        yield sorted(groups[group], key=lambda name: name.endswith(f"/{META}"))


def _age(group: str) -> tuple[int, bool]:
    """By step; of one step the bank before the checkpoint, which makes a run go on from there."""
    return int(group.rpartition("-")[2]), "bank/" in group
