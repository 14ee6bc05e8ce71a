"""What do the features say about classes they were never told of? k-NN, linear probe and few-shot, for `vidssl evaluate`.

Each returns `results` by name of the features, `chance`, and the lines of the protocol that belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.embed import describe
from cluster.evaluation.features import Features
from cluster.subject import Subject
from vidssl.evaluation.fewshot import DRAWS, few_shot
from vidssl.evaluation.fusion import mean_probability
from vidssl.evaluation.heldout import Sides, classification_sides
from vidssl.evaluation.knn import accuracy, knn
from vidssl.evaluation.probe import Probed, batch_of, linear_probe
from vidssl.evaluation.retrieval import Side, wilson
from vidssl.saved.embeddings import Embedded

if TYPE_CHECKING:
    from vidssl.encoder import Encoder

__all__ = ["few_shot_results", "knn_results", "linear_results", "sides_of"]

Results = tuple[dict[str, Any], dict[str, Any]]


def sides_of(streams: Sequence[NDArray[np.floating]], store: Embedded) -> tuple[list[Side], list[Side] | None]:
    """Who asks and who is searched, one side for each stream.

    Test → train where the data has both splits, else everybody leaves one group out.
    """

    def side(rows: NDArray[np.floating], mask: NDArray[np.bool_]) -> Side:
        return Side(rows[mask], store.label[mask], store.group[mask], store.instance[mask])

    train, test = store.split == "train", store.split == "test"
    if train.any() and test.any():
        return [side(rows, test) for rows in streams], [side(rows, train) for rows in streams]
    return [side(rows, np.ones(len(store), bool)) for rows in streams], None


def knn_results(subject: Subject, seen: Features) -> Results:
    """Accuracy of the weighted and the majority vote, on the neighbours of the retrieval protocol."""
    chosen, classes = subject.recipe.evaluation, len(subject.manifest.classes)
    results: dict[str, Any] = {}
    voters = 0
    for name, streams in seen.search.items():
        query, gallery = sides_of(streams, seen.store)
        votes = knn(query, gallery, classes=classes, k=chosen.neighbours, protocol=chosen.protocol)
        label, voters = query[0].label, votes.k
        score = _score(accuracy(votes.weighted, label), int((label >= 0).sum()))
        results[name] = score | {"majority": round(accuracy(votes.majority, label), 6)}
        results["chance"] = _most_frequent((gallery or query)[0].label, label)
    results["chance"] = results.pop("chance")  # last in every table
    about = {
        "neighbours": voters,
        "vote": "exp(cosine / 0.07); majority: one vote each",
        "fusion": _fusion(seen, "sum"),
    }
    return results, about


def linear_results(subject: Subject, seen: Features) -> Results:
    """Accuracy of a linear layer on the pooled features; two streams: the mean of their probabilities."""
    chosen, store = subject.recipe.evaluation, seen.store
    sides = _sides(subject, store)
    asked = store.label[sides.test]
    probes = {name: [_probe(subject, rows, store, sides) for rows in streams] for name, streams in seen.pooled.items()}
    answers = {name: [one.probability for one in those] for name, those in probes.items()}
    if chosen.crops == "ten":
        answers |= _ten_crops(subject, seen, probes, store.instance[sides.test])
    results: dict[str, Any] = {}
    for name, those in answers.items():
        score = accuracy(mean_probability(those), asked)
        results[name] = _score(score, len(asked)) | {"streams": [_told(one) for one in probes[name]]}
        results[name]["per_class_mean"] = round(_per_class(mean_probability(those), asked), 6)
    results["chance"] = _most_frequent(store.label[sides.train], asked)
    about = {
        "probe": "unit rows, batch norm, linear layer; SGD, momentum 0.9, rate / 10 at 60 % and 80 %, last epoch",
        "probe_epochs": chosen.probe_epochs,
        "probe_batch": batch_of(int(sides.train.sum())),
        "chosen_on": f"{chosen.held_out:.0%} of each class's training groups; then trained again on all, test asked once",
        "crops": "ten, probabilities averaged over windows and crops; histogram: one crop"
        if chosen.crops == "ten"
        else "centre",
    }
    return results, about | _told_sides(sides) | {"fusion": _fusion(seen, "mean")}


def few_shot_results(subject: Subject, seen: Features) -> Results:
    """Accuracy with a few labelled videos per class; two streams: the features of both, each unit, side by side."""
    chosen, store = subject.recipe.evaluation, seen.store
    sides = _sides(subject, store)
    label = store.label
    results: dict[str, Any] = {}
    for name, streams in seen.pooled.items():
        rows = np.concatenate([_unit(one) for one in streams], axis=1)
        results[name] = {}
        for shots in chosen.shots:
            found = few_shot(
                rows[sides.train], label[sides.train], rows[sides.test], label[sides.test], shots=shots, seed=0
            )
            results[name][str(shots)] = {
                "accuracy": round(found.mean, 6),
                "interval95": [round(edge, 6) for edge in found.interval],
                "draws": [round(one, 6) for one in found.draws],
                "classes_with_fewer": found.short,
            }
    flat = _most_frequent(label[sides.train], label[sides.test])["accuracy"]
    results["chance"] = {str(shots): {"accuracy": flat} for shots in chosen.shots}
    about = {
        "classifier": "nearest class mean by cosine, centred by the mean of all training videos",
        "draws": DRAWS,
        "interval": "95 % of the mean over draws of the labelled videos (Student's t); the test videos are the same",
    }
    return results, about | _told_sides(sides) | {"fusion": _fusion(seen, "side by side")}


def _sides(subject: Subject, store: Embedded) -> Sides:
    return classification_sides(store.label, store.group, store.split, subject.recipe.evaluation.held_out, seed=0)


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


def _ten_crops(
    subject: Subject, seen: Features, probes: Mapping[str, Sequence[Probed]], test: NDArray[np.int64]
) -> dict[str, list[NDArray[np.float64]]]:
    """Probabilities of the test videos, averaged over windows and crops (as published), by name of the features."""
    readers = [
        partial(_asked, encoder=encoder, probe=probes[name][number].layer, view=view, name=f"{name}/probability/{view}")
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


@torch.no_grad()
def _asked(
    clips: Mapping[str, Tensor], *, encoder: Encoder, probe: torch.nn.Module, view: str, name: str
) -> dict[str, Tensor]:
    """A reader: class probabilities of each window."""
    unit = torch.nn.functional.normalize(encoder.features(clips[view]).float().cpu(), dim=1)
    return {name: torch.softmax(probe(unit), dim=1)}


def _told(one: Probed) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return round(value, 6) if np.isfinite(value) else None

    return {
        "lr": one.chosen.lr,
        "weight_decay": one.chosen.weight_decay,
        "held_out_accuracy": plain(one.chosen.held_out_accuracy),
        "held_out_videos": one.held_out,
        "train_accuracy": plain(one.train_accuracy),
        "tried": [[lr, decay, plain(score)] for lr, decay, score in one.tried],
    }


def _told_sides(sides: Sides) -> dict[str, Any]:
    return {"sides": sides.rule, "train_videos": int(sides.train.sum()), "test_videos": int(sides.test.sum())}


def _score(score: float, queries: int) -> dict[str, Any]:
    low, high = wilson(score, queries)
    return {"accuracy": round(score, 6), "interval95": [round(low, 6), round(high, 6)], "queries": queries}


def _most_frequent(train: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, Any]:
    """What always naming the most frequent training class would score."""
    known = test[test >= 0]
    return {"accuracy": round(float(np.mean(known == np.bincount(train[train >= 0]).argmax())), 6)}


def _per_class(probability: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    return float(np.mean([accuracy(probability[label == one], label[label == one]) for one in np.unique(label)]))


def _fusion(seen: Features, how: str) -> str:
    if len(seen.views) < 2:
        return "none"
    return {
        "sum": "sum of the two similarity matrices",
        "mean": "mean of the two probability vectors",
        "side by side": "unit features side by side",
    }[how]


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
