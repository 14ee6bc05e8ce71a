"""How far does one linear layer get on the features? The linear probe of `vidssl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.embed import describe
from cluster.evaluation.accuracy import (
    Accuracy,
    accuracy_lines,
    accuracy_table,
    fusion_words,
    interval95,
    most_frequent,
    verdict,
)
from cluster.evaluation.evaluator import About, FeatureEvaluator, FeatureResult, Head
from cluster.evaluation.features import FeatureProtocol, Features
from cluster.evaluation.sides import classifier_sides
from cluster.page.parts import Section, percent
from cluster.subject import Subject
from vidssl.evaluation.fusion import mean_probability
from vidssl.evaluation.heldout import Sides
from vidssl.evaluation.knn import accuracy
from vidssl.evaluation.probe import Probed, batch_of, linear_probe
from vidssl.saved.embeddings import Embedded

if TYPE_CHECKING:
    from vidssl.encoder import Encoder

__all__ = ["Linear", "LinearResult", "Probe"]

Answers = Mapping[str, Sequence[NDArray[np.float64]]]
"""Name of the features → class probabilities [M, C] of the test videos, one for each stream."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How the layer of one stream came to be.

    Attributes:
        lr: Chosen rate.
        weight_decay: Chosen decay.
        held_out_accuracy: On the videos it was chosen on; None where there was no choice.
        held_out_videos: How many those were.
        train_accuracy: On its own training videos.
        tried: Rate, decay, held-out accuracy of each setting.
    """

    lr: float
    weight_decay: float
    held_out_accuracy: float | None
    held_out_videos: int
    train_accuracy: float | None
    tried: tuple[tuple[float, float, float | None], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Probe(Accuracy):
    """Accuracy of the layers of one set of features.

    Attributes:
        streams: One layer each.
        per_class_mean: Every class counts once.
    """

    streams: tuple[Stream, ...] = ()
    per_class_mean: float | None = None


@dataclass(frozen=True, kw_only=True)
class LinearProtocol(FeatureProtocol):
    """With how the layer is trained and on whom."""

    probe: str | None = None
    probe_epochs: int | None = None
    probe_batch: int | None = None
    chosen_on: str | None = None
    sides: str | None = None
    train_videos: int | None = None
    test_videos: int | None = None


@dataclass(frozen=True, kw_only=True)
class LinearResult(FeatureResult):
    """Accuracy by name of the features."""

    protocol: LinearProtocol
    results: Mapping[str, Probe] | None = None


class Linear(FeatureEvaluator[LinearResult]):
    """A linear layer on the pooled features; two streams: the mean of their probabilities."""

    name = "linear"
    result = LinearResult

    def ask(self, subject: Subject, features: Features, head: Head) -> LinearResult:
        """See `FeatureEvaluator.ask`."""
        chosen, store = subject.recipe.evaluation, features.store
        sides = classifier_sides(store, chosen.held_out)
        asked = store.label[sides.test]
        probes = {
            name: [_probe(subject, rows, store, sides) for rows in streams] for name, streams in features.pooled.items()
        }
        answers: Answers = {name: [one.probability for one in those] for name, those in probes.items()}
        if chosen.crops == "ten":
            answers = {**answers, **ten_crops(subject, features, probes, store.instance[sides.test])}
        results = {name: _row(those, probes[name], asked) for name, those in answers.items()}
        results["chance"] = Probe(accuracy=most_frequent(store.label[sides.train], asked))
        protocol = _protocol(subject, features, head, sides)
        return LinearResult(protocol=protocol, health=head.health, classes=head.classes, results=results)

    def nothing(self, head: Head, reason: str) -> LinearResult:
        """See `FeatureEvaluator.nothing`."""
        protocol = head.protocol.grown(LinearProtocol)
        return LinearResult(protocol=protocol, health=head.health, classes=head.classes, reason=reason)

    def text(self, result: LinearResult) -> list[str]:
        """See `Evaluator.text`."""
        rows, about = result.results or {}, result.protocol
        head = f"linear probe, {about.train_videos} training and {about.test_videos} test videos, view {about.view}"
        notes = {
            name: ", ".join(f"lr {one.lr:g} decay {one.weight_decay:g}" for one in row.streams)
            for name, row in rows.items()
        }
        return accuracy_lines(head, rows, notes)

    def heading(self, about: About) -> tuple[str, str]:
        """See `Evaluator.heading`."""
        return "Linear probe", ""

    def section(self, result: LinearResult, about: About) -> Section:
        """See `Evaluator.section`."""
        rows, protocol = result.results or {}, result.protocol
        trained = rows["trained"]
        gap = ", ".join(percent(one.train_accuracy) for one in trained.streams)
        words = (
            f"{protocol.train_videos} training and {protocol.test_videos} test videos ({protocol.sides}). "
            f"Chosen: {'; '.join(map(_choice, trained.streams))}. On its own training videos: {gap}. "
            f"Mean over classes: {percent(trained.per_class_mean)}. {verdict(rows, protocol)}"
        )
        return Section(self.heading(about)[0], escape(words), accuracy_table(rows, protocol))


def ten_crops(
    subject: Subject, seen: Features, probes: Mapping[str, Sequence[Probed]], test: NDArray[np.int64]
) -> Answers:
    """Probabilities of the test videos, averaged over windows and crops (as published), by name of the features."""
    readers = [
        ProbeReader(encoder, probes[name][number].layer, view, name)
        for name, encoders in seen.encoders.items()
        for number, (view, encoder) in enumerate(encoders.items())
    ]
    found = describe(subject, readers, seen.views, test, crops="ten")
    answers = {
        name: [found.rows[f"{name}/probability/{view}"].astype(np.float64) for view in seen.views]
        for name in seen.encoders
    }
    alone = {f"{view} alone": [rows] for view, rows in zip(seen.views, answers["trained"], strict=True)}
    return answers | (alone if len(seen.views) > 1 else {})


def _protocol(subject: Subject, features: Features, head: Head, sides: Sides) -> LinearProtocol:
    chosen = subject.recipe.evaluation
    ten = chosen.crops == "ten"
    crops = "ten, probabilities averaged over windows and crops; histogram: one crop"
    return head.protocol.grown(
        LinearProtocol,
        crops=crops if ten else head.protocol.crops,
        crop=chosen.crop if ten else head.protocol.crop,
        fusion=fusion_words(features.views, "mean"),
        probe="unit rows, batch norm, linear layer; SGD, momentum 0.9, rate / 10 at 60 % and 80 %, last epoch",
        probe_epochs=chosen.probe_epochs,
        probe_batch=batch_of(int(sides.train.sum())),
        chosen_on=f"{chosen.held_out:.0%} of each class's training groups; then trained again on all, test asked once",
        sides=sides.rule,
        train_videos=int(sides.train.sum()),
        test_videos=int(sides.test.sum()),
    )


def _probe(subject: Subject, rows: NDArray[np.floating], store: Embedded, sides: Sides) -> Probed:
    chosen = subject.recipe.evaluation
    return linear_probe(
        rows[sides.train],
        store.label[sides.train],
        store.group[sides.train],
        rows[sides.test],
        classes=len(subject.manifest.classes),
        rates=chosen.probe_lr,
        decays=chosen.probe_weight_decay,
        epochs=chosen.probe_epochs,
        held_out=chosen.held_out,
    )


def _row(answers: Sequence[NDArray[np.float64]], probes: Sequence[Probed], asked: NDArray[np.int64]) -> Probe:
    together = mean_probability(answers)
    score = accuracy(together, asked)
    by_class = [accuracy(together[asked == one], asked[asked == one]) for one in np.unique(asked)]
    return Probe(
        accuracy=round(score, 6),
        interval95=interval95(score, len(asked)),
        queries=len(asked),
        streams=tuple(map(_stream, probes)),
        per_class_mean=round(float(np.mean(by_class)), 6),
    )


def _stream(one: Probed) -> Stream:
    def plain(value: float) -> float | None:
        return round(value, 6) if np.isfinite(value) else None

    return Stream(
        lr=one.chosen.lr,
        weight_decay=one.chosen.weight_decay,
        held_out_accuracy=plain(one.chosen.held_out_accuracy),
        held_out_videos=one.held_out,
        train_accuracy=plain(one.train_accuracy),
        tried=tuple((lr, decay, plain(score)) for lr, decay, score in one.tried),
    )


def _choice(one: Stream) -> str:
    words = f"rate {one.lr:g}, decay {one.weight_decay:g}"
    if one.held_out_accuracy is None:
        return words
    return f"{words} ({percent(one.held_out_accuracy)} on {one.held_out_videos} held-out videos)"


class ProbeReader(nn.Module):
    """Reads `NAME/probability/VIEW`: the classes' probabilities of each window.

    Args:
        encoder: In evaluation mode.
        layer: Of the probe; takes unit rows.
        view: Stream.
        name: Of the features.
    """

    def __init__(self, encoder: Encoder, layer: nn.Module, view: str, name: str) -> None:
        super().__init__()
        self.encoder, self.layer, self.view, self.name = encoder, layer, view, f"{name}/probability/{view}"

    def forward(self, clips: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """View → clips [B, C, T, H, W]; the name → [B, classes]."""
        unit = nn.functional.normalize(self.encoder.features(clips[self.view]).float(), dim=1)
        return {self.name: torch.softmax(self.layer(unit), dim=1)}
