"""How good is an encoder by videos that are no test? R@1 of held-out training groups among the other training videos.

Labels are read here and nowhere in the training. The held-out groups are those of seed 0, whatever the training's seed is, so
that every training of a sweep answers the same queries. As of all training videos, their frames may have been seen by the
pretext task; the test split is never looked at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cluster.embed import describe
from cluster.subject import open_subject
from vidssl.evaluation.encode import EncoderReader
from vidssl.evaluation.heldout import hold_out
from vidssl.evaluation.iic_retrieval import MapReader
from vidssl.evaluation.protocol import Protocol
from vidssl.evaluation.retrieval import Side, retrieve, wilson
from vidssl.recipe import Evaluation
from vidssl.records import read_record, write_record
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["HeldOut", "held_out_recall", "held_out_rows", "kept_at"]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the held-out videos found.

    Attributes:
        asked: Id of data, queries and protocol (`sweep.json`): answers of another id are to other questions.
        step: Optimizer steps by then.
        r1: R@1, the share of them whose nearest other training video has their class.
        interval95: Of that share, over videos.
        chance: Of a random order.
        videos: Instances of the queries.
        hits: Whether each found its class; between 0 and 1 where neighbours tie.
        gallery: Videos that are searched.
        share: Of each class's groups that is held out.
        protocol: How they were shown, and which encoder it was.
    """

    asked: str
    step: int
    r1: float
    interval95: tuple[float, float]
    chance: float
    videos: tuple[int, ...]
    hits: tuple[float, ...]
    gallery: int
    share: float
    protocol: Protocol


def held_out_rows(manifest: Manifest, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labelled training videos: those that ask, and those that are searched.

    Raises:
        DataError: no class has two groups to choose from.
    """
    samples, rows = manifest.samples, manifest.training_rows()
    rows = rows[samples.label[rows] >= 0]
    out = hold_out(samples.label[rows].astype(np.int64), samples.group[rows].astype(np.int64), share, 0)
    return rows[out], rows[~out]


def held_out_recall(path: Path, evaluation: Evaluation, asked: str) -> HeldOut:
    """Ask the last checkpoint of a run, and keep the answer as `eval/held-out-STEP.json`.

    Args:
        path: The run.
        evaluation: How videos are shown, and which share is held out; not what the run's own recipe says of it.
        asked: See `HeldOut`.

    Raises:
        VidsslError: as `open_subject` and `held_out_rows`.
    """
    told = evaluation.model_dump(mode="json") | {"workers": 0}  # this is a task already, with a device of its own
    subject = open_subject(path, [f"evaluation.{key}={json.dumps(value)}" for key, value in told.items()])
    chosen, view = subject.recipe.evaluation, subject.trained_view
    asking, searched = held_out_rows(subject.manifest, chosen.held_out)
    maps = chosen.protocol == "p2"
    reader = (MapReader if maps else EncoderReader)(subject.encoder(view), view)
    found = describe(subject, [reader], (view,), np.concatenate([asking, searched]))
    rows = found.rows[f"{'map' if maps else 'feature'}/{view}"]
    samples = subject.manifest.samples

    def side(wanted: NDArray[np.int64]) -> Side:
        here = np.isin(found.instance, wanted)
        who = found.instance[here]
        return Side(rows[here], samples.label[who].astype(np.int64), samples.group[who].astype(np.int64), who)

    query = side(asking)
    recall = retrieve(query, side(searched), protocol=chosen.protocol, ks=(1,), neighbours=1)
    low, high = wilson(recall.at[1], recall.queries)
    result = HeldOut(
        asked=asked,
        step=subject.meta.step,
        r1=round(recall.at[1], 6),
        interval95=(round(low, 6), round(high, 6)),
        chance=round(recall.chance[1], 6),
        videos=tuple(int(one) for one in query.instance),
        hits=tuple(round(float(one), 6) for one in recall.first),
        gallery=recall.gallery,
        share=chosen.held_out,
        protocol=subject.protocol(),
    )
    write_record(_file(RunFolder(path), result.step), result)
    return result


def kept_at(folder: RunFolder, step: int, asked: str) -> HeldOut | None:
    """What was found at that step before; None: nobody has asked this.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = _file(folder, step)
    found = read_record(HeldOut, path, "type the same words again") if path.is_file() else None
    return found if found is not None and found.asked == asked else None


def _file(folder: RunFolder, step: int) -> Path:
    return folder.evaluation / f"held-out-{step:07d}.json"
