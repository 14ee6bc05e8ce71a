"""What came out of a fine-tuning? Accuracies of the chosen and of the last epoch, each with the protocol that made it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.finetune.task import Task, spec_of
from vidssl.evaluation.class_scores import ClassScores, save_scores, score_videos
from vidssl.evaluation.finetune import Epoch, FineTuner
from vidssl.evaluation.retrieval import wilson

if TYPE_CHECKING:
    from pipelines.loader import EvalLoader

__all__ = ["finetune_table", "tested", "write_results"]


def tested(task: Task, tuner: FineTuner) -> dict[str, Any]:
    """The test videos' answers of the chosen and of the last epoch."""
    states = {"last": {key: rows.clone() for key, rows in tuner.model.state_dict().items()}}
    epochs, best = len(tuner.history), tuner.best or len(tuner.history)
    found = {"last": _scores(task, tuner)}
    if best == epochs:
        found["chosen"] = found["last"]
    else:
        tuner.model.load_state_dict(tuner.chosen_state())
        found["chosen"] = _scores(task, tuner)
        tuner.model.load_state_dict(states["last"])
    folder, manifest = task.subject.out_folder, task.subject.manifest
    save_scores(found["chosen"], folder / f"{task.name}.npz", manifest.hash)
    label, right = found["chosen"].label, found["chosen"].right
    return {
        "protocol": _protocol(task, found["chosen"]),
        "results": {
            "chosen": _numbers(found["chosen"], tuner.history[best - 1]),
            "last": _numbers(found["last"], tuner.history[-1]),
            "chance": round(1 / len(manifest.classes), 6),
            "largest_class": round(float(np.bincount(label).max() / len(label)), 6),
        },
        "per_class": {
            name: round(float(right[label == number].mean()), 6)
            for number, name in enumerate(manifest.classes)
            if (label == number).any()
        },
        "history": [list(epoch) for epoch in tuner.history],
    }


def _scores(task: Task, tuner: FineTuner) -> ClassScores:
    with contextlib.closing(_test_loader(task)) as loader:
        return score_videos(tuner.model, loader, task.view, task.average, tuner.bf16)


def _test_loader(task: Task) -> EvalLoader:
    from pipelines.loader import EvalLoader

    rule, crops = task.rows
    return EvalLoader(
        task.subject.manifest,
        spec_of(task, task.recipe.evaluation.batch),
        windows=task.subject.windows,
        rule=rule,
        crops=crops,
        device=task.subject.device,
        instances=task.test,
    )


def _numbers(scores: ClassScores, epoch: Epoch) -> dict[str, Any]:
    low, high = wilson(scores.accuracy, len(scores.label))
    by_class = [float(scores.right[scores.label == one].mean()) for one in np.unique(scores.label)]
    return {
        "epoch": epoch.number,
        "accuracy": round(scores.accuracy, 6),
        "interval95": [round(low, 6), round(high, 6)],
        "mean_class_accuracy": round(float(np.mean(by_class)), 6),
        "held_out_accuracy": epoch.held_out_accuracy,
        "train_accuracy": round(epoch.train_accuracy, 6),
        "videos": len(scores.label),
    }


def _protocol(task: Task, scores: ClassScores) -> dict[str, Any]:
    """What every accuracy has to carry."""
    recipe, (rule, crops) = task.recipe, task.rows
    clips, linear = recipe.clips, recipe.finetune.backbone_lr == 0
    return task.subject.protocol() | {
        "id": "linear probe, end to end (P3)" if linear else "fine-tuning (P4)",
        "init": "scratch" if task.scratch else "pretrained",
        "view": task.view,
        "stream": task.view,
        "sides": task.sides,
        "videos": {"train": len(task.train), "held_out": len(task.held), "test": len(task.test)},
        "unreadable": len(task.test) - len(scores.label),
        "finetune": recipe.finetune.model_dump(mode="json") | ({"dropout": 0.0} if linear else {}),
        "finetune_seed": recipe.seed,
        "precision": recipe.trainer.precision,
        "augmentation": recipe.augment.model_dump(mode="json"),
        "T": clips.frames,
        "stride": clips.stride,
        "size": clips.size,
        "residual": [clips.residual_boundary, clips.residual_scale],
        "checkpoint_rule": "chosen: best accuracy on held-out training groups, centre clip; last beside it"
        if len(task.held)
        else "last epoch: every class has one training group, so none was held out",
        "held_out_share": recipe.evaluation.held_out,
        "window_rule": rule,
        "windows": task.subject.windows,
        "crops": crops,
        "rows": scores.rows,
        "average": task.average,
    }


def finetune_table(results: dict[str, Any]) -> str:
    """The lines that `vidssl finetune` prints."""
    about, rows = results["protocol"], results["results"]
    lines = [
        f"{about['id']} from {about['init']} weights on data {about['data_hash']}, view {about['view']}, "
        f"{about['windows']} windows, crops {about['crops']}"
    ]
    for name in ("chosen", "last"):
        row = rows[name]
        low, high = row["interval95"]
        lines.append(
            f"  {name:8} epoch {row['epoch']:>4}  accuracy {100 * row['accuracy']:5.1f} %  "
            f"(95 %: {100 * low:.1f} to {100 * high:.1f}, {row['videos']} videos)"
        )
    lines.append(f"  chance {100 * rows['chance']:.1f} %, always the largest class {100 * rows['largest_class']:.1f} %")
    if "fused" in results:
        both = results["fused"]
        lines.append(
            f"  with {both['with']}: {100 * both['first']:.1f} and {100 * both['second']:.1f} alone, "
            f"{100 * both['both']:.1f} % together on {both['videos']} videos"
        )
    return "\n".join(lines)


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write JSON aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(aside, path)
