"""What is looked at? A run's last checkpoint, the data it is shown, the device: opened and checked once for embed and evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidssl.checkpoint import Meta, checkpoint_path, load_method, read_checkpoint
from vidssl.errors import DataError, DeviceError, RecipeError
from vidssl.recipe import Recipe, recipe_from_file
from vidssl.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from pipelines.manifest import Manifest
    from vidssl.methods import Method

__all__ = ["Subject", "open_subject", "take_word"]

_ALLOWED = ("evaluation.", "loader.", "trainer.device=", "data=")


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained method with everything needed to look at it.

    Attributes:
        folder: The run.
        recipe: Its recipe, with the words of this evaluation applied.
        method: In evaluation mode, on `device`.
        meta: Of the checkpoint.
        checkpoint_hash: sha256 of the checkpoint's weights, first 16 digits.
        manifest: The data it is shown.
        device: Where it runs.
    """

    folder: RunFolder
    recipe: Recipe
    method: Method
    meta: Meta
    checkpoint_hash: str
    manifest: Manifest
    device: torch.device

    @property
    def own_data(self) -> bool:
        """Whether it is shown the data it was trained on."""
        return self.meta.data == self.manifest.hash

    def protocol(self) -> dict[str, Any]:
        """What every number made from this subject has to carry (plain JSON values)."""
        from pipelines.decode import resolve_decode

        clips, trainer = self.recipe.clips, self.recipe.trainer
        train = len(self.manifest.rows("train" if "train" in self.manifest.splits else None))
        return {
            "run": self.folder.path.name,
            "method": self.recipe.method.name,
            "backbone": self.recipe.model.backbone,
            "recipe": self.meta.recipe,
            "seed": self.recipe.seed,
            "steps": self.meta.step,
            "epochs": round(self.meta.step * trainer.batch * self.meta.world / train, 2) if self.own_data else None,
            "checkpoint": "last",
            "checkpoint_sha256": self.checkpoint_hash,
            "data_hash": self.manifest.hash,
            "trained_on": self.meta.data,
            "T": clips.frames,
            "stride": clips.stride,
            "size": clips.size,
            "windows": self.windows,
            "window_rule": "every T*stride/2-1 frames, at most `windows`, spread evenly"
            if self.windows > 1
            else "centre",
            "crops": "centre",
            "augmentation": "none",
            "decode": resolve_decode(self.recipe.loader.decode, self.manifest.codec, self.device),
            "device": self.device.type,
        }

    @property
    def windows(self) -> int:
        """Most windows of one video."""
        return 1 if self.recipe.evaluation.protocol == "centre" else self.recipe.evaluation.windows


def open_subject(run_dir: str | Path, words: Sequence[str]) -> Subject:
    """Open the last checkpoint of a run and its data.

    Args:
        run_dir: The run folder.
        words: `evaluation.*`, `loader.*`, `trainer.device` and `data`, as key=value.

    Raises:
        CheckpointError: no run, or no checkpoint in it.
        RecipeError: a word that would change what was trained, or no key of a recipe.
        DataError: the data is gone, or is other data than was trained on and was not named with `data=`.
        DeviceError: cuda without a GPU.
    """
    folder = open_run(run_dir)
    for word in words:
        if not word.startswith(_ALLOWED):
            raise RecipeError(
                f"'{word}' cannot be set for a run that is trained; type evaluation.*, loader.*, trainer.device or data"
            )
    recipe = recipe_from_file(folder.recipe, words)
    method, _, step = load_method(folder)
    meta, _, _ = read_checkpoint(folder, step)
    manifest = _data_of(recipe, meta, named=any(word.startswith("data=") for word in words))
    device = _device(recipe.trainer.device)
    weights = checkpoint_path(folder, step) / "model.pt"
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    return Subject(folder, recipe, method.to(device), meta, digest, manifest, device)  # pyright: ignore[reportArgumentType]


def take_word(words: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value` among `words`, and the words without it."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    return (values[-1] if values else None), [word for word in words if not word.startswith(f"{key}=")]


def _data_of(recipe: Recipe, meta: Meta, named: bool) -> Manifest:
    from pipelines.manifest import load_manifest

    if recipe.data is None:
        raise DataError("this run names no data; type data=FOLDER, a folder that `vidssl pack` wrote")
    root = Path(recipe.data).expanduser().resolve()
    if not root.exists():
        raise DataError(f"the data of this run is not at {root}; if it has moved, type data=FOLDER")
    manifest = load_manifest(root)
    if manifest.hash != meta.data and not named:
        raise DataError(
            f"{root} holds other data (hash {manifest.hash}) than this run was trained on ({meta.data}); "
            f"to look at it all the same, type data={recipe.data}"
        )
    return manifest


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("trainer.device=cuda was asked for and this machine has no GPU; type trainer.device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
