"""What is a video to an evaluation? The features of the trained encoder and of what it has to beat, read in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cluster.embed import describe, embedded
from cluster.evaluation.sides import sides_of
from cluster.subject import Subject
from vidssl.errors import RecipeError
from vidssl.evaluation.protocol import Protocol
from vidssl.health import Health, alignment_of_windows, examine
from vidssl.saved.embeddings import Embedded

if TYPE_CHECKING:
    from vidssl.encoder import Encoder
    from vidssl.evaluation.encode import Described

__all__ = ["JOINT", "FeatureProtocol", "Features", "features_of", "search_protocol", "views_asked"]

JOINT: Final = ("joint", "fusion")
"""Words for both streams together."""
_CENTRING: Final = {
    "p1_strict": "query and gallery by the gallery mean",
    "p1_ref": "query and gallery each by its own mean (transductive)",
    "centre": "query and gallery by the gallery mean",
    "p2": "none",
}

Rows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Features:
    """Videos as the evaluation sees them.

    Attributes:
        views: The streams looked at.
        search: Name (trained, untrained, histogram, and each stream alone) → one matrix [N, F] for each stream: what the
            protocol's neighbours are searched with.
        pooled: The same names → the pooled features, which classifiers are trained on.
        encoders: Name → view → network, where a name has one.
        store: Who the rows are, with the pooled features and embeddings of the trained encoders.
        health: Of the first view's embeddings.
    """

    views: tuple[str, ...]
    search: Mapping[str, Sequence[Rows]]
    pooled: Mapping[str, Sequence[Rows]]
    encoders: Mapping[str, Mapping[str, Encoder]]
    store: Embedded
    health: Health


@dataclass(frozen=True, kw_only=True)
class FeatureProtocol(Protocol):
    """The lines of a protocol that say what was compared with what.

    Attributes:
        view: Streams.
        stream: The same, as the papers' tables name them.
        unreadable: Videos that could not be decoded.
        id: p1_strict | p1_ref | centre | p2; of a fine-tuning its name.
        centring: What was subtracted.
        feature: What describes a video.
        similarity: Of two videos.
        search: Who asks whom.
        query_split: Who asks.
        gallery_split: Who is searched.
        groups_in_both_splits: Sources with videos on both sides.
        baselines: What the rivals are.
        fusion: How two streams are put together.
    """

    view: str
    stream: str
    unreadable: int
    id: str
    centring: str
    feature: str
    similarity: str
    search: str
    query_split: str
    gallery_split: str
    groups_in_both_splits: int
    baselines: str
    fusion: str = "none"


def search_protocol(subject: Subject, seen: Features) -> FeatureProtocol:
    """Everything that a number made from these features has to carry."""
    protocol, store = subject.recipe.evaluation.protocol, seen.store
    query, gallery = sides_of([np.zeros((len(store), 1))], store)
    shared = 0 if gallery is None else len(np.intersect1d(query[0].group, gallery[0].group))
    maps, both = protocol == "p2", len(seen.views) > 1
    fusion = "features side by side" if maps else "sum of the two similarity matrices"
    return subject.protocol().grown(
        FeatureProtocol,
        view=" + ".join(seen.views),
        stream=" + ".join(seen.views),
        unreadable=len(store.protocol["unreadable"]),
        id=protocol,
        centring=_CENTRING[protocol],
        feature="last map, maximum over 2x2, laid flat, mean" if maps else "pooled backbone, unit windows, mean",
        similarity="cosine",
        search="leave one group out" if gallery is None else "test → train",
        query_split="all" if gallery is None else "test",
        gallery_split="all" if gallery is None else "train",
        groups_in_both_splits=shared,
        baselines="untrained: the same network and seed before training; histogram: 6x6x6 colours of the same frames",
        fusion=fusion if both else "none",
    )


def views_asked(subject: Subject, word: str | None) -> tuple[str, ...]:
    """Streams to look at: the trained one, the asked one, or both with `view=joint`.

    Raises:
        RecipeError: a view without an encoder, or `joint` where there is one stream only.
    """
    have = subject.views
    if word is None:
        return (subject.trained_view,)
    if word in JOINT:
        if len(have) < 2:
            raise RecipeError(
                f"view={word} needs two streams, {subject.home.name} has an encoder of {subject.trained_view} only"
            )
        return have[:2]
    if word == "all":
        raise RecipeError(f"an evaluation looks at one view; type view= one of {', '.join(have)}, joint")
    if word not in have:
        raise RecipeError(
            f"{subject.home.name} has no encoder of view={word}; type view= one of {', '.join(have)}, joint"
        )
    return (word,)


def features_of(subject: Subject, views: tuple[str, ...], untrained: bool) -> Features:
    """Look at all videos of the data once and name what was seen."""
    from vidssl.evaluation.encode import EncoderReader, HistogramReader
    from vidssl.evaluation.iic_retrieval import MapReader, joint

    maps = subject.recipe.evaluation.protocol == "p2"
    encoders = {"trained": {view: subject.encoder(view) for view in views}}
    if untrained:
        encoders["untrained"] = {view: subject.untrained(view) for view in views}
    reader = MapReader if maps else EncoderReader
    readers: list[nn.Module] = [
        reader(encoder, view, prefix=f"{name}/") for name, those in encoders.items() for view, encoder in those.items()
    ]
    readers.append(HistogramReader(subject.recipe.augment.normalize))
    found = describe(subject, readers, tuple(dict.fromkeys((*views, "rgb"))), subject.manifest.rows())

    def named(kind: str) -> dict[str, Sequence[Rows]]:
        rows = {name: [found.rows[f"{name}/{kind}/{view}"] for view in views] for name in encoders}
        rows |= {f"{view} alone": [found.rows[f"trained/{kind}/{view}"]] for view in views if len(views) > 1}
        return {**rows, "histogram": [found.rows["histogram"]]}

    search, pooled = named("map" if maps else "feature"), named("feature")
    if maps and len(views) == 2:
        search |= {name: [joint(*search[name])] for name in encoders}  # pyright: ignore[reportAssignmentType]
    return Features(views, search, pooled, encoders, _store(subject, found, views), _health(found, views[0]))


def _store(subject: Subject, found: Described, views: Sequence[str]) -> Embedded:
    plain = {name.removeprefix("trained/"): rows for name, rows in found.rows.items() if name.startswith("trained/")}
    return embedded(subject, replace(found, rows=plain), views)


def _health(found: Described, view: str) -> Health:
    mean = found.rows[f"trained/embedding/{view}"]
    return examine(mean, near=alignment_of_windows(mean, found.seen))
