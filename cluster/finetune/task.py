"""What exactly is fine-tuned? The words of `vidssl finetune`, settled into one task before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cluster.keywords import OF_A_FINETUNING, FinetuneWords, own_words
from cluster.subject import Subject, open_subject
from vidssl.errors import DataError, RecipeError
from vidssl.evaluation.class_scores import Average, ClassScores
from vidssl.evaluation.finetune import Epoch
from vidssl.evaluation.heldout import classification_sides, hold_out
from vidssl.recipe import Recipe, recipe_from_tree

if TYPE_CHECKING:
    from pipelines.loader import LoaderSpec
    from pipelines.loading.crops import Crops
    from pipelines.loading.windows import Rule

__all__ = ["Answers", "FineTuning", "on_workers", "settings_of", "settle", "spec_of"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FineTuning:
    """One fine-tuning, settled before it starts.

    Attributes:
        subject: Whose encoder, and where results go.
        recipe: The subject's, with the words of this training.
        view: Stream.
        scratch: Fresh weights instead of the trained ones.
        average: How a video's rows become one answer.
        train: Videos that train.
        held: Videos that choose the epoch.
        test: Videos that are asked at the end.
        sides: How training and test were told apart.
    """

    subject: Subject
    recipe: Recipe
    view: str
    scratch: bool
    average: Average
    train: Rows
    held: Rows
    test: Rows
    sides: str

    @property
    def name(self) -> str:
        """Of the files."""
        parts = ("-linear", self.recipe.finetune.backbone_lr == 0), ("-scratch", self.scratch)
        other = f"-{self.view}" if self.view != self.subject.trained_view else ""
        return "finetune" + "".join(word for word, chosen in parts if chosen) + other

    @property
    def rows(self) -> tuple[Rule, Crops]:
        """Windows and crops of the test: the protocol's, or its windows with ten crops."""
        rule, usual = self.subject.window_rule
        return rule, "ten" if self.recipe.evaluation.crops == "ten" else usual


@dataclass(frozen=True, eq=False)
class Answers:
    """What came out of one fine-tuning, of any number of workers.

    Attributes:
        last: The test videos' answers with the weights of the last epoch.
        chosen: With those of the chosen one.
        best: Its number; None where nothing was held out.
        history: Every epoch.
    """

    last: ClassScores
    chosen: ClassScores
    best: int | None
    history: tuple[Epoch, ...]


def settle(path: str | Path, words: Sequence[str]) -> FineTuning:
    """The task that words describe; see `cluster.finetune.run.finetune_run`."""
    own, words = own_words(FinetuneWords, words)
    mine = [word for word in words if word.startswith(OF_A_FINETUNING)]
    subject = open_subject(path, [word for word in words if word not in mine], elsewhere=on_workers)
    recipe = recipe_from_tree(subject.recipe.model_dump(mode="json"), mine)
    recipe = _as_it_fine_tunes(recipe, mine)
    average = own.average or ("logit" if recipe.evaluation.protocol == "p2" else "probability")
    view = own.view or subject.trained_view
    train, held, test, sides = _videos(subject, recipe)
    if len(train) < recipe.finetune.batch:
        raise RecipeError(
            f"finetune.batch={recipe.finetune.batch} is more than the {len(train)} videos that train; type finetune.batch={len(train)}"
        )
    return FineTuning(subject, recipe, view, own.init == "scratch", average, train, held, test, sides)


def on_workers(recipe: Recipe) -> bool:
    """Whether workers of a cluster train: as asked for, else where a cluster is named."""
    asked = recipe.finetune.workers
    return asked > 0 if asked is not None else "RAY_ADDRESS" in os.environ


def _as_it_fine_tunes(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """With the preset of `finetune.augment`, which is not that of the pre-training."""
    if recipe.finetune.augment == "as_trained":
        return recipe
    preset = next((word for word in words if word.startswith("augment.preset=")), None)
    if preset not in (None, f"augment.preset={recipe.finetune.augment}"):
        raise RecipeError(
            f"{preset} is not read with finetune.augment={recipe.finetune.augment}; type finetune.augment=as_trained beside it"
        )
    augment = recipe.augment.model_copy(update={"preset": recipe.finetune.augment})
    return recipe.model_copy(update={"augment": augment})


def _videos(subject: Subject, recipe: Recipe) -> tuple[Rows, Rows, Rows, str]:
    """Videos that train, that choose the epoch, and that are asked; held out by group, never from the test."""
    manifest, share = subject.manifest, recipe.evaluation.held_out
    if len(manifest.classes) < 2:
        raise DataError(
            f"a classifier needs two classes, the data has {len(manifest.classes)}; pack one folder per class"
        )
    samples = manifest.samples
    label, group = samples.label.astype(np.int64), samples.group.astype(np.int64)
    sides = classification_sides(label, group, np.array(manifest.splits)[samples.split], share, recipe.seed)
    train, test = np.flatnonzero(sides.train), np.flatnonzero(sides.test)
    out = np.zeros(len(train), bool)
    if recipe.finetune.choose == "held_out":
        try:
            out = hold_out(label[train], group[train], share, recipe.seed)
        except DataError as error:  # one group per class: the last epoch is taken, and the protocol says so
            if recipe.finetune.schedule == "plateau":
                raise DataError(f"{error}; type finetune.schedule=milestones") from error
    return train[~out], train[out], test, sides.rule


def spec_of(task: FineTuning, batch: int) -> LoaderSpec:
    """One clip per video of the task's view."""
    from pipelines.loader import LoaderSpec

    recipe = task.recipe
    clips = recipe.clips.model_copy(update={"per_video": 1})
    given = (clips, recipe.augment, recipe.loader, (task.view,), batch, recipe.seed)
    return LoaderSpec(*given, recipe.model.flow_channels)


def settings_of(task: FineTuning) -> str:
    """Everything that decides the training; a state of other settings is not gone on with."""
    recipe = task.recipe
    kept = {key: getattr(recipe, key).model_dump(mode="json") for key in ("finetune", "clips", "augment", "model")}
    kept["finetune"].pop("workers")  # any number of them goes on
    return json.dumps(
        kept
        | {
            "seed": recipe.seed,
            "precision": recipe.trainer.precision,
            "decode": recipe.loader.decode,
            "held_out": recipe.evaluation.held_out,
            "view": task.view,
            "weights": "scratch" if task.scratch else task.subject.checkpoint_hash,
            "data": task.subject.manifest.hash,
        },
        sort_keys=True,
    )
