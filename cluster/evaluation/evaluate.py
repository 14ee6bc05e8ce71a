"""`vidssl evaluate RUN|CARD`: what the features are worth beside what they have to beat, each number with its protocol.

| what | file | measures |
|---|---|---|
| retrieval | retrieval.json | nearest neighbours, R@k (P1 of CoCLR, CPR, ViCC; P2 of IIC) |
| mining | mining.json | the cascade and its rivals on the run's last bank snapshot |
| knn | knn.json | k-NN classifier |
| linear | linear.json | linear probe on saved features (P3) |
| fewshot | fewshot.json | nearest class mean of a few labelled videos |

With `view=joint` two streams are looked at together; the files are then named `*-joint.json`. Nothing in them depends on the
time or the place: two evaluations of one checkpoint write the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster.evaluation.features import Features, features_of, views_asked
from cluster.evaluation.probes import few_shot_results, knn_results, linear_results
from cluster.evaluation.retrieval import retrieval_protocol, retrieval_results
from cluster.evaluation.text import results_table
from cluster.keywords import EvaluateWords, own_words
from cluster.subject import Subject, open_subject
from vidssl.errors import DataError, RecipeError
from vidssl.saved.embeddings import save_embeddings

__all__ = ["WHAT", "evaluate_run", "results_table"]

WHAT: Final = ("retrieval", "mining", "knn", "linear", "fewshot")
_PROBES: Final = {"knn": knn_results, "linear": linear_results, "fewshot": few_shot_results}


def evaluate_run(run_dir: str | Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Measure a run's last checkpoint, or a card.

    Args:
        run_dir: The run or card folder.
        words: `what=` a list of `WHAT`, or all (default: retrieval,mining); `view=` a stream, or joint for both (default: the
            trained one); `baseline=untrained|off`; and the words of `cluster.subject.open_subject`.

    Returns:
        what → the content of its file.

    Raises:
        VidsslError: as `open_subject`; an unknown word of `what`, `view`, `baseline` or protocol.
    """
    own, words = own_words(EvaluateWords, words)
    parts = _parts(own.what)
    subject = open_subject(run_dir, words)
    views = views_asked(subject, own.view)
    results: dict[str, Any] = {}
    if set(parts) - {"mining"}:
        seen = features_of(subject, views, untrained=own.baseline != "off")
        if len(views) == 1:
            save_embeddings(seen.store, _folder(subject) / "embeddings.zarr")
        results = {what: _measured(what, subject, seen) for what in parts if what != "mining"}
    if "mining" in parts:
        results["mining"] = _mining(subject)
    for what, result in results.items():
        end = "-joint" if len(views) > 1 and what != "mining" else ""
        _write(_folder(subject) / f"{what}{end}.json", result)
    return results


def _parts(asked: str) -> tuple[str, ...]:
    words = WHAT if asked == "all" else tuple(word for word in asked.strip("[]").replace(" ", "").split(",") if word)
    unknown = [word for word in words if word not in WHAT]
    if unknown or not words:
        raise RecipeError(f"what={asked} is unknown; type what= some of {','.join(WHAT)}, or what=all")
    return tuple(word for word in WHAT if word in words)


def _folder(subject: Subject) -> Path:
    subject.out_folder.mkdir(parents=True, exist_ok=True)
    return subject.out_folder


def _measured(what: str, subject: Subject, seen: Features) -> dict[str, Any]:
    """The content of one file; `results` is None and `reason` says why where nothing can be measured."""
    chosen = subject.recipe.evaluation
    head: dict[str, Any] = {
        "protocol": _protocol(subject, seen),
        "health": dict(seen.health),
        "classes": list(subject.manifest.classes),
        "reason": None,
    }
    nothing: dict[str, Any] = {"results": None, "per_class": {}, "examples": []}
    if not (seen.store.label >= 0).any():
        told = "R@k" if what == "retrieval" else "accuracy"
        return head | nothing | {"reason": f"the labels are unknown, so there is no {told}"}
    try:
        if what == "retrieval":
            return head | retrieval_results(
                seen.search, seen.store, chosen.protocol, chosen.ks, subject.manifest.classes
            )
        results, about = _PROBES[what](subject, seen)
    except DataError as error:
        return head | nothing | {"reason": str(error)}
    return head | {"protocol": head["protocol"] | about, "results": results}


def _protocol(subject: Subject, seen: Features) -> dict[str, Any]:
    """Everything that a number of this evaluation has to carry."""
    chosen = subject.recipe.evaluation
    about = {
        "view": " + ".join(seen.views),
        "stream": " + ".join(seen.views),
        "unreadable": len(seen.store.protocol["unreadable"]),
    }
    return subject.protocol() | about | retrieval_protocol(seen.store, chosen.protocol, seen.views)


def _mining(subject: Subject) -> dict[str, Any]:
    if subject.folder is None:
        nothing = {"stages": [], "results": None}
        return {
            "protocol": subject.protocol(),
            "reason": "a card has no bank, so there is no mining to measure",
        } | nothing
    from cluster.evaluation.mining import mining_quality

    return mining_quality(subject)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(aside, path)
