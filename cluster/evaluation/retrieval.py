"""Who are the nearest videos? Retrieval with its classes and examples, for `vidssl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cluster.evaluation.accuracy import Interval, interval95
from cluster.evaluation.evaluator import About, FeatureEvaluator, FeatureResult, Head
from cluster.evaluation.features import Features
from cluster.evaluation.sides import sides_of
from cluster.page.parts import Section, bare, between, percent, table, tiles
from cluster.subject import Subject
from vidssl.evaluation.fusion import retrieve_fused
from vidssl.evaluation.retrieval import Recall, Side
from vidssl.saved.embeddings import Embedded

__all__ = ["Example", "Found", "Recalls", "Retrieval", "RetrievalResult", "recall_table", "search_videos"]

EXAMPLES: Final = 8
_NAMES: Final = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "histogram": "colour histogram",
    "chance": "chance",
}
_RIVALS: Final = {
    "chance": "a random order of the same videos",
    "histogram": "the same frames, colours only",
    "untrained": "same network and seed, before training",
}


@dataclass(frozen=True, kw_only=True)
class Recalls:
    """One line of the table; of `chance` only the recall is known.

    Attributes:
        recall: k → R@k.
        r1_interval95: Of R@1.
        queries: Labelled queries.
        gallery: Videos searched.
        without_class_mate: Queries that cannot be answered; they count as misses.
        omitted_k: k that were asked for and are no smaller than the gallery.
    """

    recall: Mapping[str, float]
    r1_interval95: Interval | None = None
    queries: int | None = None
    gallery: int | None = None
    without_class_mate: int | None = None
    omitted_k: tuple[int, ...] = ()

    @property
    def r1(self) -> float:
        """R@1; zero where it was not measured."""
        return self.recall.get("1", 0.0)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and its nearest videos, by their rows in the manifest, with their cosines."""

    query: int
    neighbours: tuple[int, ...]
    similarity: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(FeatureResult):
    """R@k of each set of features, R@1 by class, and some queries with their neighbours.

    Attributes:
        results: By name of the features.
        per_class: class → `queries`, and R@1 by name of the features.
        examples: Drawn by chance, never by success.
    """

    results: Mapping[str, Recalls] | None = None
    per_class: Mapping[str, Mapping[str, float]] | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Found:
    """What searches of several sets of features found; see `RetrievalResult`."""

    results: Mapping[str, Recalls]
    per_class: Mapping[str, Mapping[str, float]]
    examples: tuple[Example, ...]


class Retrieval(FeatureEvaluator[RetrievalResult]):
    """R@k (P1 of CoCLR, CPR, ViCC; P2 of IIC) beside the untrained network, colours and chance."""

    name = "retrieval"
    as_card = False
    number = "R@k"
    result = RetrievalResult

    def ask(self, subject: Subject, features: Features, head: Head) -> RetrievalResult:
        """See `FeatureEvaluator.ask`."""
        chosen = subject.recipe.evaluation
        found = search_videos(features.search, features.store, chosen.protocol, chosen.ks, head.classes)
        return RetrievalResult(**vars(head), **vars(found))

    def nothing(self, head: Head, reason: str) -> RetrievalResult:
        """See `FeatureEvaluator.nothing`."""
        return RetrievalResult(**vars(head), reason=reason)

    def text(self, result: RetrievalResult) -> list[str]:
        """See `Evaluator.text`."""
        rows, about = result.results or {}, result.protocol
        ks = list(rows["trained"].recall)
        lines = [
            f"retrieval {about.id} on data {about.data_hash}, {about.search}, view {about.view}",
            f"  {'':15}" + "".join(f"{'R@' + k:>8}" for k in ks),
        ]
        return lines + [
            f"  {name:15}" + "".join(f"{100 * row.recall[k]:7.1f} " for k in ks) for name, row in rows.items()
        ]

    def heading(self, about: About) -> tuple[str, str]:
        """See `Evaluator.heading`."""
        lead = (
            "Each query video asks for its nearest neighbours; R@k is the share of queries that find at least one video of "
            f"their own class among the k nearest. {about.taught or 'No label was used in training.'} The encoder has to beat "
            "its own untrained self and the colours of the frames; chance is a random order."
        )
        return "Does it find videos of the same class?", lead

    def section(self, result: RetrievalResult, about: About) -> Section:
        """See `Evaluator.section`."""
        rows, protocol = result.results or {}, result.protocol
        trained = rows["trained"]
        low, high = trained.r1_interval95 or (0.0, 1.0)
        big = [
            (percent(row.recall.get("1")), f"R@1, {_NAMES.get(name, name)}", _tile_note(name, row))
            for name, row in rows.items()
        ]
        words = (
            f"Protocol {protocol.id}: {protocol.search}, {trained.queries} queries, at most {protocol.windows} windows of "
            f"{protocol.T} frames (stride {protocol.stride}, {protocol.size} pixels) per video, {protocol.view} stream. "
            f"From {trained.queries} queries a share is known only to within its interval "
            f"({percent(low)} to {percent(high)} for the trained R@1): smaller differences mean nothing."
        )
        title, lead = self.heading(about)
        body = tiles(big) + f'<p class="verdict">{escape(_verdict(rows))}</p>' + recall_table(rows, _NAMES)
        return Section(title, lead, f'{body}<p class="note">{escape(words)}</p>')


def search_videos(
    rows: Mapping[str, Sequence[NDArray[np.floating]]],
    store: Embedded,
    protocol: str,
    ks: Sequence[int],
    classes: Sequence[str],
) -> Found:
    """Search with each set of features.

    Args:
        rows: Name → one matrix [N, F] for each stream; several streams add their similarities.
        store: Who the rows are.
        protocol: One of `vidssl.evaluation.retrieval.PROTOCOLS`.
        ks: k of R@k.
        classes: Names.

    Raises:
        RecipeError: unknown protocol.
        DataError: no labelled query, or too few videos.
    """
    results: dict[str, Recalls] = {}
    first: dict[str, NDArray[np.float64]] = {}
    chance = Recalls(recall={})
    examples: tuple[Example, ...] = ()
    label = store.label
    for name, streams in rows.items():
        query, gallery = sides_of(streams, store)
        found = retrieve_fused(query, gallery, protocol=protocol, ks=ks)
        results[name], first[name], label = _recalls(found), found.first, query[0].label
        if name == "trained":
            chance = Recalls(recall=_by_k(found.chance))
            examples = _examples(found, query[0], (gallery or query)[0])
    return Found(results | {"chance": chance}, _per_class(first, label, classes), examples)


def recall_table(rows: Mapping[str, Recalls], names: Mapping[str, str]) -> str:
    """The rows as a table, the trained encoder first."""
    ks = list(rows["trained"].recall)
    lines = [
        [names.get(name, name), *(bare(row.recall.get(k)) for k in ks), between(row.r1_interval95)]
        for name, row in rows.items()
    ]
    return table(["percent", *(f"R@{k}" for k in ks), "R@1, 95 % interval"], lines, strong=0)


def _verdict(rows: Mapping[str, Recalls]) -> str:
    """One honest sentence: does the trained encoder beat its rivals, and by more than the number of queries can tell?"""
    rivals = {name: row for name, row in rows.items() if name != "trained"}
    trained = rows["trained"]
    best = max(rivals, key=lambda name: rivals[name].r1)
    highest = max((row.r1_interval95 or (0.0, row.r1))[1] for row in rivals.values())
    if trained.r1 <= rivals[best].r1:
        return f"The trained encoder does not beat: {_NAMES.get(best, best)}. It has not learned what these classes are about."
    if (trained.r1_interval95 or (0.0, 0.0))[0] <= highest:
        return (
            "The trained encoder is ahead of all the others, but the intervals overlap: more videos would have to tell."
        )
    return "The trained encoder beats all the others, by more than the choice of queries can explain."


def _tile_note(name: str, row: Recalls) -> str:
    if name in _RIVALS or row.r1_interval95 is None:
        return _RIVALS.get(name, "")
    low, high = row.r1_interval95
    return f"{row.queries} queries; {percent(low)} to {percent(high)}"


def _recalls(found: Recall) -> Recalls:
    return Recalls(
        recall=_by_k(found.at),
        r1_interval95=interval95(found.at.get(1, 0.0), found.queries),
        queries=found.queries,
        gallery=found.gallery,
        without_class_mate=found.unanswerable,
        omitted_k=found.omitted,
    )


def _by_k(values: Mapping[int, float]) -> dict[str, float]:
    return {str(k): round(value, 6) for k, value in values.items()}


def _per_class(
    first: Mapping[str, NDArray[np.float64]], label: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Mapping[str, float]]:
    rows: dict[str, Mapping[str, float]] = {}
    for number, name in enumerate(classes):
        own = label == number
        if own.any():
            values = {kind: round(float(hits[own].mean()), 6) for kind, hits in first.items()}
            rows[name] = {"queries": int(own.sum())} | values
    return rows


def _examples(found: Recall, query: Side, gallery: Side) -> tuple[Example, ...]:
    """Queries chosen by chance (seed 0), of different classes as far as there are: never by success."""
    turn = np.random.default_rng(0).permutation(np.flatnonzero(query.label >= 0))
    _, place = np.unique(query.label[turn], return_index=True)
    several = [*turn[np.sort(place)], *np.delete(turn, place)][:EXAMPLES]
    return tuple(
        Example(
            query=int(query.instance[row]),
            neighbours=tuple(int(gallery.instance[j]) for j in found.neighbours[row] if j >= 0),
            similarity=tuple(round(float(s), 4) for s in found.similarity[row] if np.isfinite(s)),
        )
        for row in several
    )
