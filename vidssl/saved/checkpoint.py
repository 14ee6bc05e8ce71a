"""How does a run survive? Checkpoints written aside and renamed, so that a kill at any moment leaves the last whole one.

`model.pt` (rank 0) holds method and optimizer; `rank-R.pt` holds what differs between ranks: the loader's cursor, random
states and positives already mined but not yet used; `meta.json` says which recipe, data and bank snapshot belong to it.
Files are read with `weights_only=True`: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidssl.errors import CheckpointError
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from vidssl.methods import Method

__all__ = [
    "Meta",
    "artifact",
    "checkpoint_path",
    "encoder_state",
    "latest_step",
    "load_method",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "save_checkpoint",
]

_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Meta:
    """What a checkpoint belongs to."""

    step: int
    recipe: str
    data: str | None
    world: int
    epoch: int
    instances: int = 1


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """Folder of the checkpoint taken after `step` optimizer steps."""
    return folder.checkpoints / f"step-{step:08d}"


def latest_step(folder: RunFolder) -> int | None:
    """Steps done at the newest whole checkpoint; None when there is none."""
    steps = [
        int(m[1])
        for p in folder.checkpoints.glob("step-*")
        if (m := _NAME.match(p.name)) and (p / "meta.json").is_file()
    ]
    return max(steps, default=None)


def save_checkpoint(
    folder: RunFolder,
    meta: Meta,
    rank: int,
    rank_state: dict[str, Any],
    shared_state: dict[str, Any] | None,
    barrier: Callable[[], None],
    keep: int = 2,
) -> None:
    """Write one checkpoint together: every rank its own file, rank 0 the shared one and the final rename.

    Args:
        folder: The run.
        meta: What it belongs to.
        rank: Rank of the caller.
        rank_state: Tensors, arrays, numbers, strings, lists and dicts.
        shared_state: The same; given by rank 0 only.
        barrier: Waits for all ranks.
        keep: Whole checkpoints left in the folder afterwards.
    """
    final = checkpoint_path(folder, meta.step)
    aside = final.with_name(f".{final.name}.tmp")
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    torch.save(_to_tensors(rank_state), aside / f"rank-{rank}.pt")
    if shared_state is not None:
        torch.save(_to_tensors(shared_state), aside / "model.pt")
    barrier()
    if rank == 0:
        (aside / "meta.json").write_text(json.dumps(asdict(meta)))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _drop_old(folder, keep)
    barrier()


def read_checkpoint(
    folder: RunFolder, step: int, rank: int | None = None
) -> tuple[Meta, dict[str, Any], dict[str, Any]]:
    """Meta, shared state and the state of `rank` (empty when None) of the checkpoint at `step`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = checkpoint_path(folder, step)
    try:
        meta = Meta(**json.loads((path / "meta.json").read_text()))
        shared = torch.load(path / "model.pt", map_location="cpu", weights_only=True)
        own = {} if rank is None else torch.load(path / f"rank-{rank}.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or incomplete ({error}); remove that folder to go on from the one before"
        ) from error
    return meta, shared, own


def load_method(folder: RunFolder, step: int | None = None) -> tuple[Method, Recipe, int]:
    """The trained method of a run in evaluation mode, with its recipe and the step of the checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    from vidssl.methods import build_method

    found = latest_step(folder) if step is None else step
    if found is None:
        raise CheckpointError(
            f"{folder.path} has no checkpoint yet; train it first: vidssl train --resume {folder.path}"
        )
    recipe = folder.read_recipe()
    meta, shared, _ = read_checkpoint(folder, found)
    method = build_method(recipe, recipe.seed, meta.instances)
    try:
        method.load_state_dict(shared["method"])
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{folder.path} was trained by another version of this network ({first[:120]}); train it again with --fresh"
        ) from error
    return method.eval(), recipe, found


def encoder_state(source: str | Path, view: str) -> dict[str, torch.Tensor]:
    """The `Encoder` state dict in an `artifact`.

    Raises:
        CheckpointError: as `artifact`.
    """
    return {key: rows for key, rows in artifact(source, view).items() if not key.startswith("extra.")}


def artifact(source: str | Path, view: str) -> dict[str, torch.Tensor]:
    """What a run can start from: `view` of a run folder or a card folder, or the encoder in a published file.

    A published file does not say which stream it was trained on: it is taken to be `view`.

    Raises:
        CheckpointError: none of them, damaged, or a run or card that has no such view.
    """
    from vidssl.saved.card import is_card, read_card, read_weights
    from vidssl.saved.published import import_published

    path = Path(source).expanduser()
    if path.is_file():
        return import_published(path).artifact
    if is_card(path):
        _check_view(source, view, read_card(path).views)
        return read_weights(path)
    method, recipe, _ = load_method(open_run(path))
    _check_view(source, view, recipe.views)
    return method.artifact(view)


def _check_view(source: str | Path, view: str, trained: Sequence[str]) -> None:
    if view not in trained:
        raise CheckpointError(
            f"{source} trained {' and '.join(trained)}, not {view}; give a run or card that trained {view}"
        )


def random_state() -> dict[str, Any]:
    """State of torch's and Python's global generators (numpy's is not used: all our draws have an address)."""
    version, words, gauss = random.getstate()
    return {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo of `random_state`."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _drop_old(folder: RunFolder, keep: int) -> None:
    whole = sorted(p for p in folder.checkpoints.glob("step-*") if (p / "meta.json").is_file())
    for path in whole[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _to_tensors(value: Any) -> Any:
    # numpy arrays cannot be read back with weights_only=True
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_tensors(item) for item in value]
    return value
