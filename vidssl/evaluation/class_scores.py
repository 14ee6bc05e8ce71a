"""What does a classifier answer for each video? Means over its windows and crops, kept so that two streams can be put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.batch import ClipBatch
from vidssl.distributed import gather_objects
from vidssl.errors import CheckpointError, DataError, RecipeError
from vidssl.evaluation.fusion import common_rows, mean_probability
from vidssl.files import written_aside

__all__ = ["AVERAGES", "Average", "ClassScores", "Fused", "fuse", "load_scores", "save_scores", "score_videos"]

Average = Literal["probability", "logit"]
AVERAGES: Final = get_args(Average)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Answers for N videos.

    Attributes:
        instance: int64 [N], ascending.
        label: int64 [N], what they are.
        probability: float64 [N, C], rows sum to one.
        rows: How many windows (times crops) were read in all.
    """

    instance: NDArray[np.int64]
    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    rows: int

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which videos are right, bool [N]: whether the most probable class is the video's (ties: the lower class)."""
        return self.probability.argmax(axis=1) == self.label

    @property
    def accuracy(self) -> float:
        """Share of the videos that are right (top-1)."""
        return float(self.right.mean())

    @property
    def loss(self) -> float:
        """Mean cross entropy of the videos' probabilities."""
        own = self.probability[np.arange(len(self.label)), self.label]
        return float(-np.log(np.maximum(own, 1e-12)).mean())


class Fused(NamedTuple):
    """Two streams and what they say together: accuracies on the same videos, and how many only one stream had."""

    first: float
    second: float
    both: float
    videos: int
    left_out: int


@torch.no_grad()
def score_videos(
    model: nn.Module, batches: Iterable[ClipBatch], view: str, average: Average = "probability", bf16: bool = False
) -> ClassScores:
    """Ask a classifier about every window and crop, and average by video; with several ranks each brings its own videos.

    CoCLR averages the softmax over windows and then over crops; every window has as many crops, so that is the mean
    over all rows. IIC averages the logits of its ten clips (`logit`) and takes the softmax of the mean.

    Args:
        model: clips [B, C, T, H, W] → logits [B, classes]; put into evaluation mode here and left in it.
        batches: Labelled rows with one clip each; a video may have any number of them, all of them on one rank.
        view: Stream that the model sees.
        average: `probability` or `logit`.
        bf16: Whether the model runs under autocast.

    Returns:
        The answers for the videos of all ranks, by ascending instance, the same on every rank.

    Raises:
        DataError: no video came, on any rank.
        RecipeError: an unknown average.
    """
    if average not in AVERAGES:
        raise RecipeError(f"average={average} is unknown; type average= one of {', '.join(AVERAGES)}")
    model.eval()
    total: dict[int, NDArray[np.float64]] = {}
    count: dict[int, int] = {}
    label: dict[int, int] = {}
    for batch in batches:
        clips = batch.clips[view][:, 0]
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = model(clips).double()
        rows = (logits.softmax(dim=1) if average == "probability" else logits).cpu().numpy()
        for video, known, row in zip(batch.instance.tolist(), batch.label.tolist(), rows, strict=True):
            total[video] = total.get(video, 0.0) + row
            count[video], label[video] = count.get(video, 0) + 1, known
    videos = sorted(total)
    mean = np.stack([total[video] / count[video] for video in videos]) if videos else np.empty((0, 0))
    known = np.array([label[video] for video in videos], np.int64)
    own = ClassScores(np.array(videos, np.int64), known, mean, sum(count.values()))
    scores = _together([one for one in gather_objects(own) if len(one.instance)])
    if average == "logit":
        scores = replace(scores, probability=torch.from_numpy(scores.probability).softmax(dim=1).numpy())
    return scores


def _together(parts: Sequence[ClassScores]) -> ClassScores:
    """The parts of all ranks that have any, by ascending instance."""
    if not parts:
        raise DataError(
            "none of the videos that were to be classified could be read; type vidssl verify PACKED, or pack them again"
        )
    columns = ((part.instance, part.label, part.probability) for part in parts)
    instance, label, probability = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(instance, kind="stable")
    return ClassScores(instance[order], label[order], probability[order], sum(part.rows for part in parts))


def save_scores(scores: ClassScores, path: Path, data_hash: str) -> Path:
    """Write an npz, whole or not at all: `instance`, `label`, `probability`, `rows`, `data`.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        np.savez(
            stream,
            instance=scores.instance,
            label=scores.label,
            probability=scores.probability,
            rows=np.int64(scores.rows),
            data=np.str_(data_hash),
        )
    return path


def load_scores(path: Path) -> tuple[ClassScores, str]:
    """What `save_scores` wrote: the scores and the hash of their data.

    Raises:
        CheckpointError: no such file, or a file of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            scores = ClassScores(held["instance"], held["label"], held["probability"], int(held["rows"]))
            return scores, str(held["data"])
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise CheckpointError(
            f"{path} holds no class scores; make them with: vidssl finetune RUN data=FOLDER"
        ) from error


def fuse(path_a: str | Path, path_b: str | Path) -> Fused:
    """Two streams' answers put together as CoCLR does: the mean of the two probability vectors of each video.

    Args:
        path_a: An npz that `vidssl finetune` wrote.
        path_b: That of the other stream.

    Raises:
        CheckpointError: a file without class scores.
        DataError: scores of other data, of other classes, or of no common video.
    """
    (first, data), (second, other) = load_scores(Path(path_a)), load_scores(Path(path_b))
    if data != other:
        raise DataError(f"{path_a} is of data {data} and {path_b} of data {other}; give two streams of the same data")
    left, right = common_rows(first.instance, second.instance)
    if first.probability.shape[1] != second.probability.shape[1] or not len(left):
        raise DataError(f"{path_a} and {path_b} have no video or not the same classes in common; fine-tune both again")
    mean = mean_probability([first.probability[left], second.probability[right]])
    both = ClassScores(first.instance[left], first.label[left], mean, first.rows + second.rows)
    lost = len(first.instance) + len(second.instance) - 2 * len(left)
    return Fused(float(first.right[left].mean()), float(second.right[right].mean()), both.accuracy, len(left), lost)
