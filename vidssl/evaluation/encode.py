"""Windows in, one row per video out: every reader sees the same frames once, and batches leave no trace in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.batch import ClipBatch
from vidssl.encoder import Encoder
from vidssl.errors import DataError
from vidssl.evaluation.histogram import rgb_histogram
from vidssl.evaluation.retrieval import unit_rows

__all__ = ["Described", "Reader", "describe_videos", "encoder_reader", "histogram_reader"]

Reader: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""View → clips [B, C, T, H, W] in; name → rows [B, F] out."""

_WIDE: Final = 4096  # sums of wider rows are kept in single precision: 20 000 videos of 9216 numbers are 0.7 GB


def encoder_reader(encoder: Encoder, view: str, prefix: str = "") -> Reader:
    """A reader of `PREFIXfeature/VIEW` (pooled backbone) and `PREFIXembedding/VIEW` (head) from one pass."""

    def read(clips: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        pooled = encoder.features(clips[view])
        return {f"{prefix}feature/{view}": pooled, f"{prefix}embedding/{view}": encoder.head(pooled)}

    return read


def histogram_reader(clips: Mapping[str, Tensor], normalize: str = "imagenet") -> Mapping[str, Tensor]:
    """A reader of `histogram`: the colours of the RGB frames, which are scaled as the recipe's `augment.normalize` says."""
    return {"histogram": rgb_histogram(clips["rgb"], normalize=normalize)}


@dataclass(frozen=True, eq=False)
class Described:
    """Videos as rows.

    Attributes:
        rows: name → float32 [N, F].
        instance: int64 [N], the videos that came, in the order they were asked for.
        missing: int64, the videos that never came (they could not be decoded).
        windows: How many windows were read in all.
        seen: int64 [N], windows of each video.
    """

    rows: Mapping[str, NDArray[np.float32]]
    instance: NDArray[np.int64]
    missing: NDArray[np.int64]
    windows: int
    seen: NDArray[np.int64]


@torch.no_grad()
def describe_videos(
    batches: Iterable[ClipBatch],
    readers: Iterable[Reader],
    instances: NDArray[np.int64],
    raw: tuple[str, ...] = ("map/", "probability/"),
) -> Described:
    """The mean of each video's unit window rows, for every name that the readers give.

    Windows are summed in double precision in the order they come, so that cutting them into other batches changes
    nothing but the rounding of the encoder itself.

    Args:
        batches: Windows as rows with one clip each (`n_clips` = 1); a video may have any number of them.
        readers: What looks at the clips; encoders in evaluation mode.
        instances: int64 [N], the videos wanted.
        raw: Names that contain one of these are averaged as they come: IIC's maps, and class probabilities.

    Raises:
        DataError: no wanted video came.
    """
    known, order = np.sort(instances), np.argsort(instances, kind="stable")
    total: dict[str, NDArray[np.floating]] = {}
    count = np.zeros(len(instances), np.int64)
    looks = tuple(readers)
    for batch in batches:
        clips = {view: clip[:, 0] for view, clip in batch.clips.items()}
        place = order[np.searchsorted(known, batch.instance.cpu().numpy())]
        np.add.at(count, place, 1)
        for look in looks:
            for name, rows in look(clips).items():
                given = rows.float().cpu().numpy()
                if not any(part in name for part in raw):
                    given = unit_rows(given)
                if name not in total:
                    exact = np.float64 if given.shape[1] <= _WIDE else np.float32
                    total[name] = np.zeros((len(instances), given.shape[1]), exact)
                np.add.at(total[name], place, given)
    came = count > 0
    if not came.any():
        raise DataError(f"none of {len(instances)} videos could be read; type vidssl verify PACKED, or pack them again")
    rows = {name: (sums[came] / count[came, None]).astype(np.float32) for name, sums in total.items()}
    return Described(rows, instances[came], instances[~came], int(count.sum()), count[came])
