"""`vidssl evaluate RUN`: retrieval and mining quality beside what they have to beat, each with the protocol that made it.

Writes `eval/retrieval.json`, `eval/mining.json` and `eval/embeddings.zarr` into the run. Nothing in them depends on the
time or the place: two evaluations of one checkpoint write the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.embed import describe, embedded, views_of
from cluster.mining_quality import mining_quality
from cluster.subject import Subject, open_subject, take_word
from vidssl.embeddings import Embedded, save_embeddings
from vidssl.errors import RecipeError
from vidssl.evaluation.retrieval import Recall, Side, retrieve, wilson
from vidssl.health import examine

__all__ = ["evaluate_run", "results_table", "retrieval_results", "search_sides"]

BASELINES: Final = ("untrained", "off")
EXAMPLES: Final = 8
_CENTRING: Final = {
    "p1_strict": "query and gallery by the gallery mean",
    "p1_ref": "query and gallery each by its own mean (transductive)",
    "centre": "query and gallery by the gallery mean",
}


def evaluate_run(run_dir: str | Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Retrieval and mining quality of a run's last checkpoint.

    Args:
        run_dir: The run folder.
        words: `view=rgb|residual` (default: the trained view), `baseline=untrained|off`, and the words of
            `cluster.subject.open_subject`.

    Returns:
        {"retrieval": the content of retrieval.json, "mining": the content of mining.json}.

    Raises:
        VidsslError: as `open_subject`; an unknown view, baseline or protocol.
    """
    view, words = take_word(words, "view")
    baseline, words = take_word(words, "baseline")
    if baseline not in (None, *BASELINES):
        raise RecipeError(f"unknown baseline={baseline}; type baseline=untrained or baseline=off")
    subject = open_subject(run_dir, words)
    if view == "all":
        raise RecipeError(f"retrieval searches one view; type view= one of {', '.join(subject.recipe.views)}")
    view = views_of(subject, view)[0]
    found, store = _described(subject, view, untrained=baseline != "off")
    folder = subject.folder.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    save_embeddings(store, folder / "embeddings.zarr")
    retrieval = _retrieval(subject, view, found, store)
    _write(folder / "retrieval.json", retrieval)
    mining = mining_quality(subject)
    _write(folder / "mining.json", mining)
    return {"retrieval": retrieval, "mining": mining}


def _described(subject: Subject, view: str, untrained: bool) -> tuple[dict[str, NDArray[np.float32]], Embedded]:
    """Features by name (trained, untrained, histogram), and the trained ones as a store."""
    from vidssl.evaluation.encode import encoder_reader, histogram_reader
    from vidssl.methods import build_method

    readers = [encoder_reader(subject.method.encoder(view), view), histogram_reader]
    if untrained:
        fresh = build_method(subject.recipe, subject.recipe.seed).eval().to(subject.device)
        readers.append(encoder_reader(fresh.encoder(view), view, prefix="untrained/"))
    needed = tuple(dict.fromkeys((view, "rgb")))
    found = describe(subject, readers, needed, subject.manifest.rows())
    names = {"trained": f"feature/{view}", "untrained": f"untrained/feature/{view}", "histogram": "histogram"}
    rows = {name: found.rows[key] for name, key in names.items() if key in found.rows}
    return rows, embedded(subject, found, (view,))


def search_sides(rows: NDArray[np.floating], store: Embedded) -> tuple[Side, Side | None]:
    """Who asks and who is searched: test → train where the data has both splits, else everybody leaves one group out."""

    def side(mask: NDArray[np.bool_]) -> Side:
        return Side(rows[mask], store.label[mask], store.group[mask], store.instance[mask])

    train, test = store.split == "train", store.split == "test"
    if train.any() and test.any():
        return side(test), side(train)
    return side(np.ones(len(store), bool)), None


def retrieval_results(
    rows: Mapping[str, NDArray[np.floating]], store: Embedded, protocol: str, ks: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """R@k of each set of features, R@1 by class, and some queries with their neighbours.

    Raises:
        RecipeError: unknown protocol.
        DataError: no labelled query, or too few videos.
    """
    results: dict[str, Any] = {}
    first: dict[str, NDArray[np.float64]] = {}
    chance: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    query = search_sides(next(iter(rows.values())), store)[0]
    for name, features in rows.items():
        query, gallery = search_sides(features, store)
        found = retrieve(query, gallery, protocol=protocol, ks=ks)
        results[name], first[name] = _numbers(found), found.first
        if name == "trained":
            chance = {"recall": _by_k(found.chance)}
            examples = _examples(found, query, query if gallery is None else gallery)
    return {
        "results": results | {"chance": chance},
        "per_class": _per_class(first, query.label, classes),
        "examples": examples,
    }


def _retrieval(subject: Subject, view: str, rows: Mapping[str, NDArray[np.float32]], store: Embedded) -> dict[str, Any]:
    chosen, manifest = subject.recipe.evaluation, subject.manifest
    split = {"train", "test"} <= set(manifest.splits)
    query, gallery = search_sides(rows["trained"], store)
    shared = 0 if gallery is None else len(np.intersect1d(query.group, gallery.group))
    protocol = subject.protocol() | {
        "id": chosen.protocol,
        "centring": _CENTRING[chosen.protocol],
        "feature": "pooled backbone, unit windows, mean",
        "similarity": "cosine",
        "view": view,
        "search": "test → train" if split else "leave one group out",
        "query_split": "test" if split else "all",
        "gallery_split": "train" if split else "all",
        "groups_in_both_splits": shared,
        "unreadable": len(store.protocol["unreadable"]),
        "baselines": "untrained: the same network and seed before training; histogram: 6x6x6 colours of the same frames",
    }
    head = {
        "protocol": protocol,
        "health": _plain(asdict(examine(store.embedding[view]))),
        "classes": list(manifest.classes),
    }
    if not (query.label >= 0).any():
        return head | {
            "results": None,
            "reason": "the labels are unknown, so there is no R@k",
            "per_class": {},
            "examples": [],
        }
    return head | {"reason": None} | retrieval_results(rows, store, chosen.protocol, chosen.ks, manifest.classes)


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


def results_table(results: Mapping[str, Any]) -> str:
    """The lines that `vidssl evaluate` prints."""
    retrieval, mining = results["retrieval"], results["mining"]
    about = retrieval["protocol"]
    lines = [f"retrieval {about['id']} on data {about['data_hash']}, {about['search']}, view {about['view']}"]
    if retrieval["results"] is None:
        lines.append(f"  {retrieval['reason']}")
    else:
        ks = list(retrieval["results"]["trained"]["recall"])
        lines.append(f"  {'':12}" + "".join(f"{'R@' + k:>8}" for k in ks))
        for name, row in retrieval["results"].items():
            lines.append(f"  {name:12}" + "".join(f"{100 * row['recall'][k]:7.1f} " for k in ks))
    if mining["results"] is None:
        return "\n".join([*lines, f"mining: {mining['reason']}"])
    lines.append(f"mining on the bank of step {mining['protocol']['bank_step']}, {mining['protocol']['plan']}")
    lines.append(f"  {'':12}{'prec@k':>8}{'hit@k':>8}{'coverage':>9}  (median over classes)")
    for name, row in mining["results"].items():
        lines.append(
            f"  {name:12}{100 * row['precision']:7.1f} {100 * row['hit']:7.1f} {100 * row['coverage_median']:8.1f}"
        )
    return "\n".join(lines)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has no NaN
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(aside, path)
