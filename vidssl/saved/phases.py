"""Which training comes next? A recipe with `phases:` as a state machine whose state is what lies in the run's folder.

A phase is a complete run of its own in RUN/PHASE. It starts only from finished phases: the trained stream from `start`,
the frozen second stream from `second`; their checkpoints' hashes are recorded in RUN/phases.json when it is finished.

| state | meaning |
|---|---|
| `waiting` | nothing of it exists |
| `begun` | it has a folder and is not finished: it is resumed where it stands |
| `done` | finished, from the phases as they are now |
| `stale` | finished, but a phase that it came from was trained again since |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from vidssl.errors import CheckpointError, StorageError
from vidssl.files import storage_error, write_json
from vidssl.recipe import Recipe, reached
from vidssl.saved.checkpoint import latest_step, step_of_epoch, weights_hash
from vidssl.saved.run_folder import RunFolder
from vidssl.sections import Phase, Source

__all__ = [
    "PhaseRecord",
    "PhaseState",
    "check_sources",
    "early_ends",
    "finish_phase",
    "forget_phase",
    "phase_folder",
    "read_records",
    "state_of",
]

PhaseState = Literal["waiting", "begun", "done", "stale"]


@dataclass(frozen=True)
class PhaseRecord:
    """What a finished phase was made of.

    Attributes:
        steps: Optimizer steps.
        weights: sha256 of its last checkpoint's weights.
        recipe: Fingerprint of its recipe.
        inputs: role (`start`, `second`) → sha256 of the weights it began with.
    """

    steps: int
    weights: str
    recipe: str
    inputs: Mapping[str, str]


def phase_folder(root: Path, name: str) -> RunFolder:
    """The run folder of a phase."""
    return RunFolder(root / name)


def read_records(root: Path) -> dict[str, PhaseRecord]:
    """Finished phases by name, in the order they were finished.

    Raises:
        CheckpointError: phases.json is damaged.
    """
    path = root / "phases.json"
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, PhaseRecord]).validate_json(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is damaged ({error.errors(include_url=False)[0]['msg']}); remove it, finished phases are then trained again"
        ) from error


def state_of(phase: Phase, root: Path) -> PhaseState:
    """Where a phase stands; see the table of this module."""
    record = read_records(root).get(phase.name)
    folder = phase_folder(root, phase.name)
    if record is None:
        return "begun" if folder.recipe.is_file() else "waiting"
    if _weights(folder, latest_step(folder)) != record.weights:  # it was begun again, or its checkpoints are gone
        return "begun" if folder.recipe.is_file() else "waiting"
    now = {role: _weights_of(source, root) for role, source in phase.sources.items()}
    return "done" if now == dict(record.inputs) else "stale"


def early_ends(recipe: Recipe) -> list[str]:
    """A sentence for each phase that was to start from an epoch that its source, shortened by words, never ends."""
    return [
        f"phase {phase.name} takes its {role} stream from the end of {source.phase}, which never ends epoch {source.epoch}"
        for phase in recipe.phases
        for role, source in phase.sources.items()
        if source.epoch is not None and reached(recipe, source).epoch is None
    ]


def check_sources(phase: Phase, recipe: Recipe, root: Path) -> None:
    """Refuse to start a phase whose sources are not finished.

    Raises:
        CheckpointError: naming the first that is missing.
    """
    by_name = {other.name: other for other in recipe.phases}
    for role, (name, _) in phase.sources.items():
        state = state_of(by_name[name], root)
        if state in ("waiting", "begun"):
            raise CheckpointError(
                f"phase '{phase.name}' takes its {role} stream from '{name}', which is not finished; "
                f"type vidssl train --resume {root}"
            )


def finish_phase(phase: Phase, recipe: Recipe, root: Path) -> None:
    """Record that a phase is finished, with the hashes of what it came from; written aside and renamed."""
    folder = phase_folder(root, phase.name)
    inputs = {role: _weights_of(source, root) for role, source in phase.sources.items()}
    step = latest_step(folder)
    record = PhaseRecord(step or 0, _weights(folder, step), recipe.fingerprint(), inputs)
    records = {name: old for name, old in read_records(root).items() if name != phase.name} | {phase.name: record}
    _write(root, records)


def forget_phase(name: str, root: Path) -> None:
    """A phase is going to be trained again: its record is dropped first, so that a kill leaves it unfinished."""
    _write(root, {other: record for other, record in read_records(root).items() if other != name})


def _write(root: Path, records: Mapping[str, PhaseRecord]) -> None:
    path = root / "phases.json"
    try:
        write_json(path, {name: asdict(record) for name, record in records.items()})
    except OSError as error:
        raise storage_error(error, path) from error


def _weights_of(source: Source, root: Path) -> str:
    folder = phase_folder(root, source.phase)
    kept = None if source.epoch is None else step_of_epoch(folder, source.epoch)
    return _weights(
        folder, latest_step(folder) if kept is None else kept
    )  # one that never ended that epoch gave its end


def _weights(folder: RunFolder, step: int | None) -> str:
    if step is None:
        return ""
    try:
        return weights_hash(folder, step)
    except CheckpointError:  # a phase whose checkpoint is damaged is not finished: it goes on from the one before
        return "damaged"
