"""How far do n labelled videos per class go? The nearest class mean of `vidssl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np

from cluster.evaluation.accuracy import Interval, fusion_words, most_frequent, name_of
from cluster.evaluation.evaluator import About, FeatureEvaluator, FeatureResult, Head
from cluster.evaluation.features import FeatureProtocol, Features
from cluster.evaluation.sides import classifier_sides
from cluster.page.parts import Section, bare, table
from cluster.subject import Subject
from vidssl.evaluation.fewshot import DRAWS, few_shot
from vidssl.evaluation.retrieval import unit_rows

__all__ = ["FewShot", "FewShotResult", "Shots"]


@dataclass(frozen=True, kw_only=True)
class Shots:
    """What n labelled videos per class gave; of `chance` only the accuracy is known.

    Attributes:
        accuracy: Mean over the draws.
        interval95: Of that mean.
        draws: Each draw.
        classes_with_fewer: Classes with fewer than n training videos.
    """

    accuracy: float
    interval95: Interval | None = None
    draws: tuple[float, ...] = ()
    classes_with_fewer: int = 0

    @property
    def half(self) -> float | None:
        """Half the width of the interval, in percent."""
        return None if self.interval95 is None else 50 * (self.interval95[1] - self.interval95[0])


@dataclass(frozen=True, kw_only=True)
class FewShotProtocol(FeatureProtocol):
    """With the classifier, its draws and on whom."""

    classifier: str | None = None
    draws: int | None = None
    interval: str | None = None
    sides: str | None = None
    train_videos: int | None = None
    test_videos: int | None = None


@dataclass(frozen=True, kw_only=True)
class FewShotResult(FeatureResult):
    """Accuracy by name of the features and by n."""

    protocol: FewShotProtocol
    results: Mapping[str, Mapping[str, Shots]] | None = None


class FewShot(FeatureEvaluator[FewShotResult]):
    """The nearest class mean of a few labelled videos; two streams: the features of both, each unit, side by side."""

    name = "fewshot"
    result = FewShotResult

    def ask(self, subject: Subject, features: Features, head: Head) -> FewShotResult:
        """See `FeatureEvaluator.ask`."""
        chosen, store, label = subject.recipe.evaluation, features.store, features.store.label
        sides = classifier_sides(store, chosen.held_out)
        results: dict[str, Mapping[str, Shots]] = {}
        for name, streams in features.pooled.items():
            rows = np.concatenate([unit_rows(one) for one in streams], axis=1)
            train, test = (rows[sides.train], label[sides.train]), (rows[sides.test], label[sides.test])
            results[name] = {str(n): _drawn(train, test, n) for n in chosen.shots}
        flat = most_frequent(label[sides.train], label[sides.test])
        results["chance"] = {str(n): Shots(accuracy=flat) for n in chosen.shots}
        protocol = head.protocol.grown(
            FewShotProtocol,
            fusion=fusion_words(features.views, "side by side"),
            classifier="nearest class mean by cosine, centred by the mean of all training videos",
            draws=DRAWS,
            interval="95 % of the mean over draws of the labelled videos (Student's t); the test videos are the same",
            sides=sides.rule,
            train_videos=int(sides.train.sum()),
            test_videos=int(sides.test.sum()),
        )
        return FewShotResult(protocol=protocol, health=head.health, classes=head.classes, results=results)

    def nothing(self, head: Head, reason: str) -> FewShotResult:
        """See `FeatureEvaluator.nothing`."""
        protocol = head.protocol.grown(FewShotProtocol)
        return FewShotResult(protocol=protocol, health=head.health, classes=head.classes, reason=reason)

    def text(self, result: FewShotResult) -> list[str]:
        """See `Evaluator.text`."""
        rows, about = result.results or {}, result.protocol
        shots = list(rows["trained"])
        lines = [
            f"few-shot, {about.draws} draws, view {about.view}",
            f"  {'':15}" + "".join(f"{'n=' + n:>14}" for n in shots),
        ]
        lines += [
            (f"  {name:15}" + "".join(f"{_cell(row[n]):>14}" for n in shots)).rstrip() for name, row in rows.items()
        ]
        return lines + [f"  {word}" for word in _too_few(rows["trained"])]

    def heading(self, about: About) -> tuple[str, str]:
        """See `Evaluator.heading`."""
        return "A few labelled videos", ""

    def section(self, result: FewShotResult, about: About) -> Section:
        """See `Evaluator.section`."""
        rows, protocol = result.results or {}, result.protocol
        shots = list(rows["trained"])
        lines = [
            [name_of(name, protocol)]
            + [bare(row[n].accuracy) + ("" if row[n].half is None else f" ± {row[n].half:.1f}") for n in shots]
            for name, row in rows.items()
        ]
        words = (
            f"Nearest class mean of n labelled videos per class, {protocol.draws} draws; ± is the 95 % interval of the mean "
            "over draws, not over test videos."
        )
        words = " ".join([words, *(f"{word[0].upper()}{word[1:]}." for word in _too_few(rows["trained"]))])
        body = table(["percent", *(f"n = {n}" for n in shots)], lines, strong=0)
        return Section(self.heading(about)[0], escape(words), body)


def _drawn(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shots: int,
) -> Shots:
    found = few_shot(*train, *test, shots=shots, seed=0)
    low, high = found.interval
    return Shots(
        accuracy=round(found.mean, 6),
        interval95=(round(low, 6), round(high, 6)),
        draws=tuple(round(one, 6) for one in found.draws),
        classes_with_fewer=found.short,
    )


def _too_few(trained: Mapping[str, Shots]) -> list[str]:
    """A clause for each n that some classes cannot give: their draws are all the same, which narrows the interval."""
    return [
        f"for n = {n}, {row.classes_with_fewer} classes have fewer training videos, and all of theirs were taken in every draw"
        for n, row in trained.items()
        if row.classes_with_fewer
    ]


def _cell(row: Shots) -> str:
    half = " " * 6 if row.half is None else f" ± {row.half:.1f}"
    return f"{100 * row.accuracy:.1f}{half}"
