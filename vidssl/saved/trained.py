"""What was trained? The method of a run's last checkpoint, or the encoder that another training can start from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidssl.errors import CheckpointError
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import choose_checkpoint, latest_step, read_checkpoint, step_of_epoch
from vidssl.saved.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from vidssl.methods import Method

__all__ = ["artifact", "encoder_state", "load_method", "without_checkpoint"]


def load_method(
    folder: RunFolder, step: int | None = None, say: Callable[[str], None] | None = None
) -> tuple[Method, Recipe, int]:
    """The trained method of a run in evaluation mode, with its recipe and the step of the checkpoint.

    Args:
        folder: The run.
        step: Of the checkpoint; None: the newest.
        say: Where the newest one is damaged, told so, and the next older whole one is taken; None: that is an error.

    Raises:
        CheckpointError: there is no checkpoint, a damaged one, or one of another network.
    """
    from vidssl.methods import build_method

    recipe = folder.read_recipe()
    found = (latest_step(folder) if say is None else choose_checkpoint(folder, say)) if step is None else step
    if found is None:
        raise CheckpointError(without_checkpoint(folder, recipe))
    meta, shared, _ = read_checkpoint(folder, found)
    method = build_method(recipe, recipe.seed, meta.instances)
    try:
        method.load_state_dict(shared["method"])
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        lines = str(error).split("\n")
        first = lines[1].strip() if len(lines) > 1 else f"it holds {', '.join(map(str, shared)) or 'nothing'}"
        raise CheckpointError(
            f"the checkpoint of step {found} in {folder.path} is of another network than its recipe.yaml says "
            f"({first[:120]}); put back the recipe it was trained with, or train it again with --fresh"
        ) from error
    return method.eval(), recipe, found


def without_checkpoint(folder: RunFolder, recipe: Recipe) -> str:
    """Why a run has no checkpoint of its own, and what to give or type instead: a run of phases has one for each."""
    if not recipe.phases:
        return f"{folder.path} has no checkpoint yet; train it first: vidssl train --resume {folder.path}"
    trained = [phase.name for phase in recipe.phases if latest_step(RunFolder(folder.path / phase.name)) is not None]
    if not trained:
        return f"no phase of {folder.path} has a checkpoint yet; train it first: vidssl train --resume {folder.path}"
    return f"{folder.path} was trained in phases and each is a run of its own; give one of them: " + ", ".join(
        str(folder.path / name) for name in reversed(trained)
    )


def encoder_state(source: str | Path, view: str) -> dict[str, torch.Tensor]:
    """The `Encoder` state dict in an `artifact`.

    Raises:
        CheckpointError: as `artifact`.
    """
    return {key: rows for key, rows in artifact(source, view).items() if not key.startswith("extra.")}


def artifact(source: str | Path, view: str) -> dict[str, torch.Tensor]:
    """What a run can start from: `view` of a run folder or a card folder, or the encoder in a published file.

    RUN@EPOCH is the run as it was then, where it kept that (`trainer.keep_epochs`).

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
    path, epoch = _run_and_epoch(path)
    folder = open_run(path)
    method, recipe, _ = load_method(folder, None if epoch is None else _kept_at(folder, epoch))
    _check_view(source, view, recipe.views)
    return method.artifact(view)


def _run_and_epoch(path: Path) -> tuple[Path, int | None]:
    match = None if path.exists() else re.fullmatch(r"(.+)@(\d+)", path.name)
    return (path, None) if match is None else (path.with_name(match[1]), int(match[2]))


def _kept_at(folder: RunFolder, epoch: int) -> int:
    step = step_of_epoch(folder, epoch)
    if step is None:
        raise CheckpointError(
            f"{folder.path} kept no checkpoint of epoch {epoch}; give the run without @{epoch} for its end, or train it again "
            f"with trainer.keep_epochs=[{epoch}]"
        )
    return step


def _check_view(source: str | Path, view: str, trained: Sequence[str]) -> None:
    if view not in trained:
        raise CheckpointError(
            f"{source} trained {' and '.join(trained)}, not {view}; give a run or card that trained {view}"
        )
