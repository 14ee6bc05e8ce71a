"""Who are the nearest videos? Retrieval on features that are there, with its classes and examples, for `vidssl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.evaluation.probes import sides_of
from vidssl.evaluation.fusion import retrieve_fused
from vidssl.evaluation.retrieval import Recall, Side, wilson
from vidssl.saved.embeddings import Embedded

__all__ = ["retrieval_protocol", "retrieval_results"]

EXAMPLES: Final = 8
_CENTRING: Final = {
    "p1_strict": "query and gallery by the gallery mean",
    "p1_ref": "query and gallery each by its own mean (transductive)",
    "centre": "query and gallery by the gallery mean",
    "p2": "none",
}


def retrieval_results(
    rows: Mapping[str, Sequence[NDArray[np.floating]]],
    store: Embedded,
    protocol: str,
    ks: Sequence[int],
    classes: Sequence[str],
) -> dict[str, Any]:
    """R@k of each set of features, R@1 by class, and some queries with their neighbours.

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
    results: dict[str, Any] = {}
    first: dict[str, NDArray[np.float64]] = {}
    chance: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    label = store.label
    for name, streams in rows.items():
        query, gallery = sides_of(streams, store)
        found = retrieve_fused(query, gallery, protocol=protocol, ks=ks)
        results[name], first[name], label = _numbers(found), found.first, query[0].label
        if name == "trained":
            chance = {"recall": _by_k(found.chance)}
            examples = _examples(found, query[0], (gallery or query)[0])
    return {
        "results": results | {"chance": chance},
        "per_class": _per_class(first, label, classes),
        "examples": examples,
    }


def retrieval_protocol(store: Embedded, protocol: str, views: Sequence[str]) -> dict[str, Any]:
    """The lines of the protocol that belong to the search."""
    query, gallery = sides_of([np.zeros((len(store), 1))], store)
    shared = 0 if gallery is None else len(np.intersect1d(query[0].group, gallery[0].group))
    maps = protocol == "p2"
    told = {
        "id": protocol,
        "centring": _CENTRING[protocol],
        "feature": "last map, maximum over 2x2, laid flat, mean" if maps else "pooled backbone, unit windows, mean",
        "similarity": "cosine",
        "search": "leave one group out" if gallery is None else "test → train",
        "query_split": "all" if gallery is None else "test",
        "gallery_split": "all" if gallery is None else "train",
        "groups_in_both_splits": shared,
        "baselines": "untrained: the same network and seed before training; histogram: 6x6x6 colours of the same frames",
    }
    if len(views) > 1:
        told["fusion"] = "features side by side" if maps else "sum of the two similarity matrices"
    return told


def _numbers(found: Recall) -> dict[str, Any]:
    low, high = wilson(found.at.get(1, 0.0), found.queries)
    return {
        "recall": _by_k(found.at),
        "r1_interval95": [round(low, 6), round(high, 6)],
        "queries": found.queries,
        "gallery": found.gallery,
        "without_class_mate": found.unanswerable,
        "omitted_k": list(found.omitted),
    }


def _by_k(values: Mapping[int, float]) -> dict[str, float]:
    return {str(k): round(value, 6) for k, value in values.items()}


def _per_class(
    first: Mapping[str, NDArray[np.float64]], label: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for number, name in enumerate(classes):
        own = label == number
        if own.any():
            values = {kind: round(float(hits[own].mean()), 6) for kind, hits in first.items()}
            table[name] = {"queries": int(own.sum())} | values
    return table


def _examples(found: Recall, query: Side, gallery: Side) -> list[dict[str, Any]]:
    """Queries chosen by chance (seed 0), of different classes as far as there are: never by success."""
    turn = np.random.default_rng(0).permutation(np.flatnonzero(query.label >= 0))
    _, place = np.unique(query.label[turn], return_index=True)
    several = [*turn[np.sort(place)], *np.delete(turn, place)][:EXAMPLES]
    return [
        {
            "query": int(query.instance[row]),
            "neighbours": [int(gallery.instance[j]) for j in found.neighbours[row] if j >= 0],
            "similarity": [round(float(s), 4) for s in found.similarity[row] if np.isfinite(s)],
        }
        for row in several
    ]
