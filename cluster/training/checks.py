"""Can this recipe train on this data? Everything that would stop a run later is refused here, in one sentence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cluster.training.length import Length
from vidssl.encoder import build_encoder, check_fit
from vidssl.errors import CheckpointError, DataError, RecipeError
from vidssl.methods import method_class, mining_of
from vidssl.mining.plan import plan_from
from vidssl.recipe import Recipe, phase_recipe
from vidssl.saved.trained import encoder_state

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["Checked", "check", "check_recipe"]


@dataclass(frozen=True)
class Checked:
    """A recipe that can be trained; looked at once and handed on, so that nobody has to look again.

    Attributes:
        recipe: Of one training, or with phases.
        manifest: Of its data.
        total_steps: Optimizer steps of the whole run; of a recipe with phases, 0: each phase counts its own.
    """

    recipe: Recipe
    manifest: Manifest
    total_steps: int


def check(recipe: Recipe, later: Collection[str] = (), *, sources: bool = True) -> Checked:
    """`check_recipe`, and how long the run is; of a recipe with phases, every one of them.

    Raises:
        VidsslError: as `check_recipe`.
    """
    manifest = check_recipe(recipe, later, sources=sources)
    for phase in recipe.phases:
        check_recipe(phase_recipe(recipe, phase), phase.sources, manifest=manifest)
    length = Length(recipe.trainer, len(manifest.training_rows()))
    return Checked(recipe, manifest, 0 if recipe.phases else length.total)


def check_recipe(
    recipe: Recipe, later: Collection[str] = (), *, sources: bool = True, manifest: Manifest | None = None
) -> Manifest:
    """Open the data of a recipe and hold the recipe against it.

    Args:
        recipe: One training.
        later: Sources (`start`, `second`) that another phase will have made by then: they are not looked for.
        sources: Whether the runs it starts from are looked for; a run with a checkpoint has them in it.
        manifest: Of data opened before; it is opened again only where the recipe names other data.

    Raises:
        RecipeError: no data named; a second stream with random weights; an infeasible cascade.
        DataError: not packed, damaged, fewer videos than a step takes, no labels where they are needed.
        CheckpointError: a source that cannot be read.
    """
    manifest = _opened(recipe, manifest)
    _check_batch(recipe, manifest)
    if recipe.phases:
        return manifest
    method_class(recipe.method.name).check(recipe)
    _check_epochs(recipe, manifest)
    if sources:
        _check_sources(recipe, later)
    _check_labels(recipe, manifest)
    _check_flow(recipe, manifest)
    if recipe.mines:
        _check_alone(recipe)
        in_queue = recipe.mining.where == "inline" and recipe.method.traits.mines_in == "queue"
        plan_from(mining_of(recipe), recipe.method.queue if in_queue else len(manifest.training_rows()))
        if recipe.mining.shards > len(manifest):
            raise RecipeError(
                f"mining.shards={recipe.mining.shards} of {len(manifest)} videos: each holds one at least; "
                f"type mining.shards={max(1, len(manifest) // 10_000)}"
            )
    return manifest


def _check_alone(recipe: Recipe) -> None:
    mining = recipe.mining
    asked = {"miners": mining.miners > 0, "shards": mining.shards > 1}
    if recipe.trainer.in_process and mining.where == "actor" and any(asked.values()):
        key = next(name for name, given in asked.items() if given)
        raise RecipeError(
            f"mining.{key}={getattr(mining, key)} are processes of Ray, and trainer.workers=0 trains without it; type "
            f"trainer.workers=1, or leave mining.{key} out"
        )


def _opened(recipe: Recipe, manifest: Manifest | None) -> Manifest:
    from pipelines.dataset.cache import refuse_cache
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    if recipe.data is None:
        raise RecipeError("no data given; type data=FOLDER, a folder that `vidssl pack` wrote")
    if recipe.loader.cache is not None:
        refuse_cache(Path(recipe.loader.cache).expanduser())
    root = place_of(recipe.data)
    return manifest if manifest is not None and manifest.root == root else load_manifest(root)


def _check_batch(recipe: Recipe, manifest: Manifest) -> None:
    trainer = recipe.trainer
    rows = len(manifest.training_rows())
    together = trainer.batch * trainer.workers
    if rows < together:
        raise DataError(
            f"{recipe.data} has {rows} training videos and one step takes {together} (trainer.batch={trainer.batch} x trainer.workers={trainer.workers}); "
            f"type trainer.batch={max(1, rows // trainer.workers)} or pack more videos"
        )


def _check_epochs(recipe: Recipe, manifest: Manifest) -> None:
    """A checkpoint that another run is to start from will be there."""
    videos, trainer = len(manifest.training_rows()), recipe.trainer
    length = Length(trainer, videos)
    ends = length.total * length.together // videos if trainer.steps else trainer.epochs
    if late := [epoch for epoch in trainer.keep_epochs if epoch > ends]:
        raise RecipeError(
            f"trainer.keep_epochs={list(trainer.keep_epochs)}: {recipe.name} ends with epoch {ends}, before epoch {late[0]}; "
            f"take epochs up to {ends}, or let it train longer"
        )


def _check_sources(recipe: Recipe, later: Collection[str]) -> None:
    method = recipe.method
    if method.first_from is not None:
        _check_encoder(recipe, method.first_from, method.view)
    if method.streams not in ("two", "cross") or "second" in later:
        return
    if method.second_from is not None:
        _check_encoder(recipe, method.second_from, method.second_view)
        return
    if method.streams == "cross":
        raise RecipeError(
            f"{method.name}'s second stream ({method.second_view}) would have random weights; type "
            f"method.second_from=RUN, or method.{method.traits.streams_option}=single"
        )
    if method.warmup_steps == 0:
        raise RecipeError(
            f"{method.name} mines with the {method.second_view} stream, which would have random weights; "
            "type method.warmup_steps=N to train it first, or method.second_from=RUN"
        )


def _check_encoder(recipe: Recipe, source: str, view: str) -> None:
    """The weights exist and are of this recipe's network: known before a cluster starts."""
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(recipe.model, view)
    try:
        check_fit(encoder, encoder_state(source, view))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}" if source not in str(error) else str(error)) from error


def _check_labels(recipe: Recipe, manifest: Manifest) -> None:
    reads = f"method.name={recipe.method.name}" if recipe.method.traits.reads_labels else ""
    if recipe.mines and recipe.mining.traits.reads_labels:
        reads = f"mining.strategy={recipe.mining.strategy}"
    if reads and not (manifest.samples.label[manifest.training_rows()] >= 0).any():
        raise DataError(
            f"{reads} learns from labels and {recipe.data} has none; pack a folder with one sub-folder per class, or choose another method"
        )


def _check_flow(recipe: Recipe, manifest: Manifest) -> None:
    from pipelines.loading.flow import refuse_without_flow

    refuse_without_flow(manifest, recipe.views)
