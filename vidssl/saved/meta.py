"""What does a checkpoint belong to? Its meta.json: step, recipe, data, ranks, and the length and hash of every file beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vidssl.errors import CheckpointError, StorageError
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder
from vidssl.saved.tensors import FileSum, sum_of

__all__ = [
    "ANYWHERE",
    "FREE",
    "META",
    "MODEL",
    "Meta",
    "as_json",
    "check_same_recipe",
    "checkpoint_path",
    "checkpoint_steps",
    "latest_step",
    "rank_file",
    "read_meta",
    "stays",
    "step_of_epoch",
    "weights_hash",
]

MODEL = "model.pt"
META = "meta.json"
_NAME = re.compile(r"step-(\d+)$")
ANYWHERE = ("data", "mining.shards", "mining.cpus_per_shard", "mining.shard_node", "mining.bank_node")
"""Settings that change no result: data may be moved (what it holds is compared by its hash), and so may the bank's rows."""
FREE = (*ANYWHERE, "trainer.workers", "trainer.batch", "trainer.accumulate")
"""Settings that may differ on resume: those, and who takes how much of a step, because workers may come and go."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint belongs to.

    Attributes:
        step: Optimizer steps done.
        recipe: Fingerprint of the recipe.
        data: Hash of the packed data.
        world: Ranks that wrote it.
        epoch: Of the last step.
        instances: Videos of the packed data.
        settings: `Recipe.settings()`, so that a resumed run can name what was changed.
        files: Length and hash of each file beside this one; filled in by `save_checkpoint`.
        seen: Samples taken since the beginning, of all ranks; None: not told, by an older version.
        passed: Epochs that ended with this step and for whose sake this checkpoint stays (`trainer.keep_epochs`).
    """

    step: int
    recipe: str
    data: str | None
    world: int
    epoch: int
    instances: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileSum] = field(default_factory=dict)
    seen: int | None = None
    passed: tuple[int, ...] = ()


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """Folder of the checkpoint taken after `step` optimizer steps."""
    return folder.checkpoints / f"step-{step:08d}"


def latest_step(folder: RunFolder) -> int | None:
    """Steps done at the newest checkpoint, which may be damaged (see `choose_checkpoint`); None when there is none."""
    return max(checkpoint_steps(folder), default=None)


def stays(path: Path) -> bool:
    """Whether a checkpoint is one that is never removed for a newer one."""
    try:
        return bool(json.loads((path / META).read_bytes()).get("passed"))
    except (OSError, ValueError, AttributeError):
        return False


def step_of_epoch(folder: RunFolder, epoch: int) -> int | None:
    """Steps done at the checkpoint that was kept for the end of an epoch; None: there is none."""
    for step in sorted(checkpoint_steps(folder)):
        with suppress(CheckpointError):
            if epoch in read_meta(folder, step).passed:
                return step
    return None


def read_meta(folder: RunFolder, step: int) -> Meta:
    """What the checkpoint at `step` belongs to.

    Raises:
        CheckpointError: meta.json is missing or damaged.
    """
    path = checkpoint_path(folder, step) / META
    try:
        tree = json.loads(path.read_bytes())
        seal = tree.pop("seal", None)
        if seal is not None and seal != _seal(tree):
            raise ValueError("its bytes are not those that were written")
        meta = TypeAdapter(Meta).validate_python(tree)
    except FileNotFoundError as error:
        raise CheckpointError(f"{META} is missing") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValidationError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{META} is damaged: it has other fields than those of a checkpoint") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{META} is damaged: {error}") from error
    if meta.step != step:
        raise CheckpointError(f"{META} is of step {meta.step}")
    return meta


def weights_hash(folder: RunFolder, step: int) -> str:
    """sha256 of `model.pt`, as it was written.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    known = read_meta(folder, step).files.get(MODEL)
    return (known or sum_of(checkpoint_path(folder, step) / MODEL)).sha256


def check_same_recipe(folder: RunFolder, meta: Meta, recipe: Recipe) -> None:
    """Refuse to go on from a checkpoint with another recipe than it was trained with.

    Keys that only one of both versions of vidssl knows are no difference.

    Raises:
        CheckpointError: naming what differs, as it was and as it is.
    """
    if meta.recipe == recipe.fingerprint():
        return
    then, now = meta.settings, recipe.settings()
    changed = [key for key in now if key in then and key not in FREE and then[key] != now[key]]
    if then and not changed:
        return
    said = ", ".join(f"{key}={now[key]} was {then[key]}" for key in changed[:3]) or "its fingerprint is another"
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise CheckpointError(
        f"{folder.recipe} was changed since the checkpoint of step {meta.step} ({said}{more}); "
        "put it back to go on, or train what you want now under another name=NAME"
    )


def checkpoint_steps(folder: RunFolder) -> list[int]:
    """Steps of all checkpoints that have a meta.json, damaged ones too, in no order."""
    found = ((_NAME.match(path.name), path) for path in folder.checkpoints.glob("step-*"))
    return [int(match[1]) for match, path in found if match and (path / META).is_file()]


def rank_file(path: Path, meta: Meta, rank: int) -> Path:
    """The file of one rank.

    Raises:
        CheckpointError: no such rank wrote this checkpoint, or its file is not here.
    """
    name = path / f"rank-{rank}.pt"
    if rank >= meta.world or (meta.files and name.name not in meta.files):
        raise CheckpointError(
            f"checkpoint {path} was written by {meta.world} worker(s) and holds nothing for rank {rank}; "
            f"go on with it by vidssl train --resume RUN trainer.workers=N, or with trainer.workers={meta.world}"
        )
    if not name.is_file():
        raise CheckpointError(
            f"checkpoint {path} lacks {name.name}, the file of rank {rank}, which was written on another machine; copy it "
            "here from there, and let trainer.storage be one folder that all machines share"
        )
    return name


def as_json(meta: Meta) -> str:
    """The content of meta.json, sealed with the hash of itself."""
    tree = json.loads(json.dumps(asdict(meta)))
    return json.dumps(tree | {"seal": _seal(tree)})


def _seal(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
