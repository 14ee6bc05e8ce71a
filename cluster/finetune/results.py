"""What came out of a fine-tuning? Accuracies of the chosen and of the last epoch, each with the protocol that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from cluster.finetune.task import Answers, FineTuning
from cluster.page.parts import bare, between, card, table
from vidssl.evaluation.class_scores import Average, ClassScores, Fused
from vidssl.evaluation.finetune import Epoch
from vidssl.evaluation.protocol import Protocol
from vidssl.evaluation.retrieval import wilson
from vidssl.records import read_record
from vidssl.sections import Finetune

__all__ = ["FinetuneResult", "Together", "Trained", "finetune_card", "finetune_table", "read_finetuned", "tested"]

_TITLES: Final = {
    "finetune": "Fine-tuning of the whole network",
    "finetune-scratch": "The same network, trained from random weights",
    "finetune-linear": "Linear probe on clips (backbone frozen)",
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The test videos' answers of one epoch.

    Attributes:
        epoch: Its number.
        accuracy: Share of the test videos.
        interval95: Of that share.
        mean_class_accuracy: Every class counts once.
        held_out_accuracy: What the epoch was chosen by; None where nothing was held out.
        train_accuracy: On its own training clips.
        videos: Test videos.
    """

    epoch: int
    accuracy: float
    interval95: tuple[float, float]
    mean_class_accuracy: float
    held_out_accuracy: float | None
    train_accuracy: float
    videos: int


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The two epochs that are reported, and what anybody would reach.

    Attributes:
        chosen: Best on the held-out videos.
        last: At the end.
        chance: One of the number of classes.
        largest_class: Always naming the largest class of the test.
    """

    chosen: Trained
    last: Trained
    chance: float
    largest_class: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many videos train, choose the epoch, and are asked."""

    train: int
    held_out: int
    test: int


@dataclass(frozen=True, kw_only=True)
class FinetuneProtocol(Protocol):
    """With everything that decided the training and the test.

    Attributes:
        id: Fine-tuning (P4) or linear probe (P3).
        init: pretrained | scratch.
        view: Stream.
        stream: The same, as the papers' tables name it.
        sides: How training and test were told apart.
        videos: Numbers of each.
        unreadable: Test videos that could not be decoded.
        finetune: The recipe's section.
        finetune_seed: Of this training.
        precision: fp32 | bf16.
        residual: Boundary and scale of a residual stream.
        checkpoint_rule: Which epoch is which.
        held_out_share: Of the training groups.
        rows: Windows times crops that were read.
        average: How rows become a video's answer.
    """

    id: str
    init: str
    view: str
    stream: str
    sides: str
    videos: Sizes
    unreadable: int
    finetune: Finetune
    finetune_seed: int
    precision: str
    residual: tuple[str, str]
    checkpoint_rule: str
    held_out_share: float
    rows: int
    average: Average


@dataclass(frozen=True, kw_only=True)
class Together:
    """Two streams' probabilities put together; accuracies on the videos that both have.

    Attributes:
        first: This stream alone.
        second: The other alone.
        both: Together.
        videos: In common.
        left_out: Only one has them.
        other: File of the other stream's probabilities (`with` in the file).
    """

    first: float
    second: float
    both: float
    videos: int
    left_out: int
    other: Annotated[str, Field(alias="with")]

    @classmethod
    def of(cls, fused: Fused, other: str) -> Together:
        """What `fuse` found, with the name of the other file."""
        return cls(**fused._asdict(), other=other)


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The content of `finetune*.json`.

    Attributes:
        protocol: How it was trained and tested.
        results: Accuracies.
        per_class: Of the chosen epoch.
        history: Every epoch.
        fused: With another stream, where that was asked for.
    """

    protocol: FinetuneProtocol
    results: Epochs
    per_class: Mapping[str, float]
    history: tuple[Epoch, ...]
    fused: Together | None = None


def tested(task: FineTuning, answers: Answers) -> FinetuneResult:
    """What the answers of the chosen and of the last epoch are worth."""
    chosen, history = answers.chosen, answers.history
    manifest, label, right = task.subject.manifest, chosen.label, chosen.right
    return FinetuneResult(
        protocol=_protocol(task, chosen),
        results=Epochs(
            chosen=_trained(chosen, history[(answers.best or len(history)) - 1]),
            last=_trained(answers.last, history[-1]),
            chance=round(1 / len(manifest.classes), 6),
            largest_class=round(float(np.bincount(label).max() / len(label)), 6),
        ),
        per_class={
            name: round(float(right[label == number].mean()), 6)
            for number, name in enumerate(manifest.classes)
            if (label == number).any()
        },
        history=history,
    )


def read_finetuned(folder: Path, run: str) -> dict[str, FinetuneResult]:
    """Every fine-tuning that is kept in the `eval` folder of `run`, by name.

    Raises:
        CheckpointError: a file that cannot be read as one.
    """
    mend = f"type vidssl finetune {run}"
    return {path.stem: read_record(FinetuneResult, path, mend) for path in sorted(folder.glob("finetune*.json"))}


def finetune_table(result: FinetuneResult) -> str:
    """The lines that `vidssl finetune` prints."""
    about, rows = result.protocol, result.results
    lines = [
        f"{about.id} from {about.init} weights on data {about.data_hash}, view {about.view}, "
        f"{about.windows} windows, crops {about.crops}"
    ]
    for name, row in (("chosen", rows.chosen), ("last", rows.last)):
        low, high = row.interval95
        lines.append(
            f"  {name:8} epoch {row.epoch:>4}  accuracy {100 * row.accuracy:5.1f} %  "
            f"(95 %: {100 * low:.1f} to {100 * high:.1f}, {row.videos} videos)"
        )
    lines.append(f"  chance {100 * rows.chance:.1f} %, always the largest class {100 * rows.largest_class:.1f} %")
    if (both := result.fused) is not None:
        lines.append(
            f"  with {both.other}: {100 * both.first:.1f} and {100 * both.second:.1f} alone, "
            f"{100 * both.both:.1f} % together on {both.videos} videos"
        )
    return "\n".join(lines)


def finetune_card(name: str, result: FinetuneResult) -> str:
    """A fine-tuning among the classifiers of the page."""
    about, epochs = result.protocol, result.results
    rows = [
        [f"{kind} epoch ({row.epoch})", bare(row.accuracy), between(row.interval95)]
        for kind, row in (("chosen", epochs.chosen), ("last", epochs.last))
    ]
    rows.append(["most frequent class", bare(epochs.largest_class), ""])
    if result.fused:
        rows.append([f"with {result.fused.other}", bare(result.fused.both), ""])
    words = (
        f"{about.id}, {about.view} stream, {about.init} weights, {about.windows} windows, crops {about.crops}. "
        f"{about.checkpoint_rule}."
    )
    title = _TITLES.get(name, f"{about.id}, {about.view} stream, {about.init} weights")
    return card(title, table(["percent", "accuracy", "95 % interval"], rows, strong=0), escape(words))


def _trained(scores: ClassScores, epoch: Epoch) -> Trained:
    low, high = wilson(scores.accuracy, len(scores.label))
    by_class = [float(scores.right[scores.label == one].mean()) for one in np.unique(scores.label)]
    return Trained(
        epoch=epoch.number,
        accuracy=round(scores.accuracy, 6),
        interval95=(round(low, 6), round(high, 6)),
        mean_class_accuracy=round(float(np.mean(by_class)), 6),
        held_out_accuracy=epoch.held_out_accuracy,
        train_accuracy=round(epoch.train_accuracy, 6),
        videos=len(scores.label),
    )


def _protocol(task: FineTuning, scores: ClassScores) -> FinetuneProtocol:
    """What every accuracy has to carry."""
    recipe, (rule, crops) = task.recipe, task.rows
    clips, linear = recipe.clips, recipe.finetune.backbone_lr == 0
    held = "chosen: best accuracy on held-out training groups, centre clip; last beside it"
    why = (
        "as asked for, the whole split trained"
        if recipe.finetune.choose == "last"
        else "every class has one training group, so none was held out"
    )
    alone = f"last epoch: {why}"
    return task.subject.protocol().grown(
        FinetuneProtocol,
        augmentation=recipe.augment,
        T=clips.frames,
        stride=clips.stride,
        size=clips.size,
        window_rule=rule,
        windows=task.subject.windows,
        crops=crops,
        crop=1.0 if crops == "centre" else recipe.evaluation.crop,
        id="linear probe, end to end (P3)" if linear else "fine-tuning (P4)",
        init="scratch" if task.scratch else "pretrained",
        view=task.view,
        stream=task.view,
        sides=task.sides,
        videos=Sizes(train=len(task.train), held_out=len(task.held), test=len(task.test)),
        unreadable=len(task.test) - len(scores.label),
        finetune=recipe.finetune.model_copy(update={"dropout": 0.0}) if linear else recipe.finetune,
        finetune_seed=recipe.seed,
        precision=recipe.trainer.precision,
        residual=(clips.residual_boundary, clips.residual_scale),
        checkpoint_rule=held if len(task.held) else alone,
        held_out_share=recipe.evaluation.held_out,
        rows=scores.rows,
        average=task.average,
    )
