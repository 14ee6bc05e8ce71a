"""Do a video's nearest neighbours name its class? The k-NN classifier of `vidssl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

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
from cluster.evaluation.sides import sides_of
from cluster.page.parts import Section
from cluster.subject import Subject
from vidssl.evaluation.knn import accuracy, knn

__all__ = ["Knn", "KnnResult", "Vote"]


@dataclass(frozen=True, kw_only=True)
class Vote(Accuracy):
    """Accuracy of the weighted vote, and of the majority."""

    majority: float | None = None


@dataclass(frozen=True, kw_only=True)
class KnnProtocol(FeatureProtocol):
    """With how many voted, and how."""

    neighbours: int | None = None
    vote: str | None = None


@dataclass(frozen=True, kw_only=True)
class KnnResult(FeatureResult):
    """Accuracy by name of the features."""

    protocol: KnnProtocol
    results: Mapping[str, Vote] | None = None


class Knn(FeatureEvaluator[KnnResult]):
    """The weighted and the majority vote, on the neighbours of the retrieval protocol."""

    name = "knn"
    result = KnnResult

    def ask(self, subject: Subject, features: Features, head: Head) -> KnnResult:
        """See `FeatureEvaluator.ask`."""
        chosen, classes = subject.recipe.evaluation, len(subject.manifest.classes)
        results: dict[str, Vote] = {}
        voters, chance = 0, 0.0
        for name, streams in features.search.items():
            query, gallery = sides_of(streams, features.store)
            votes = knn(query, gallery, classes=classes, k=chosen.neighbours, protocol=chosen.protocol)
            label, voters = query[0].label, votes.k
            score, queries = accuracy(votes.weighted, label), int((label >= 0).sum())
            results[name] = Vote(
                accuracy=round(score, 6),
                interval95=interval95(score, queries),
                queries=queries,
                majority=round(accuracy(votes.majority, label), 6),
            )
            chance = most_frequent((gallery or query)[0].label, label)
        protocol = head.protocol.grown(
            KnnProtocol,
            neighbours=voters,
            vote="exp(cosine / 0.07); majority: one vote each",
            fusion=fusion_words(features.views, "sum"),
        )
        results["chance"] = Vote(accuracy=chance)  # last in every table
        return KnnResult(protocol=protocol, health=head.health, classes=head.classes, results=results)

    def nothing(self, head: Head, reason: str) -> KnnResult:
        """See `FeatureEvaluator.nothing`."""
        protocol = head.protocol.grown(KnnProtocol)
        return KnnResult(protocol=protocol, health=head.health, classes=head.classes, reason=reason)

    def text(self, result: KnnResult) -> list[str]:
        """See `Evaluator.text`."""
        rows, about = result.results or {}, result.protocol
        notes = {name: f"majority {100 * row.majority:.1f}" for name, row in rows.items() if row.majority is not None}
        return accuracy_lines(f"{about.neighbours} nearest neighbours, view {about.view}", rows, notes)

    def heading(self, about: About) -> tuple[str, str]:
        """See `Evaluator.heading`."""
        return "Nearest neighbours vote", ""

    def section(self, result: KnnResult, about: About) -> Section:
        """See `Evaluator.section`."""
        rows, protocol = result.results or {}, result.protocol
        words = f"k = {protocol.neighbours}; weighted by exp(cosine / 0.07), and one vote each (majority). {verdict(rows, protocol)}"
        body = accuracy_table(rows, protocol, majority={name: row.majority for name, row in rows.items()})
        return Section(self.heading(about)[0], escape(words), body)
