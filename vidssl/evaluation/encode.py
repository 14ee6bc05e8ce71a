"""Windows in, one row per video out: every reader sees the same frames once, and batches leave no trace in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.batch import ClipBatch
from vidssl.encoder import Encoder
from vidssl.errors import DataError
from vidssl.evaluation.histogram import rgb_histogram
from vidssl.evaluation.retrieval import unit_rows

__all__ = ["Described", "EncoderReader", "HistogramReader", "Reader", "describe_videos"]

Reader: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""View → clips [B, C, T, H, W] in; name → rows [B, F] out."""

_WIDE: Final = 4096  # sums of wider rows are kept in single precision: 20 000 videos of 9216 numbers are 0.7 GB


class EncoderReader(nn.Module):
    """Reads `PREFIXfeature/VIEW` (pooled backbone) and `PREFIXembedding/VIEW` (head) in one pass.

    A reader is a module, so that it can be sent to another process and moved to the device of the clips.

    Args:
        encoder: In evaluation mode; taken, not copied.
        view: Whose clips it looks at.
        prefix: Of the names.
    """

    def __init__(self, encoder: Encoder, view: str, prefix: str = "") -> None:
        super().__init__()
        self.encoder, self.view, self.prefix = encoder, view, prefix

    def forward(self, clips: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """View → clips [B, C, T, H, W]; name → rows [B, F]."""
        pooled = self.encoder.features(clips[self.view])
        return {
            f"{self.prefix}feature/{self.view}": pooled,
            f"{self.prefix}embedding/{self.view}": self.encoder.head(pooled),
        }


class HistogramReader(nn.Module):
    """Reads `histogram`: the colours of the RGB frames.

    Args:
        normalize: How the frames are scaled, the recipe's `augment.normalize`.
    """

    def __init__(self, normalize: str = "imagenet") -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, clips: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """View → clips [B, C, T, H, W]; `histogram` → rows [B, 216]."""
        return {"histogram": rgb_histogram(clips["rgb"], normalize=self.normalize)}


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
    none_allowed: bool = False,
) -> Described:
    """The mean of each video's unit window rows, for every name that the readers give.

    Windows are summed in double precision in the order they come, so that cutting them into other batches changes
    nothing but the rounding of the encoder itself.

    Args:
        batches: Windows as rows with one clip each (`n_clips` = 1); a video may have any number of them.
        readers: What looks at the clips; encoders in evaluation mode.
        instances: int64 [N], the videos wanted.
        raw: Names that contain one of these are averaged as they come: IIC's maps, and class probabilities.
        none_allowed: Whether it is no error that no video came; then there are no rows.

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
    if not came.any() and not none_allowed:
        raise DataError(f"none of {len(instances)} videos could be read; type vidssl verify PACKED, or pack them again")
    rows = {name: (sums[came] / count[came, None]).astype(np.float32) for name, sums in total.items()}
    return Described(rows, instances[came], instances[~came], int(count.sum()), count[came])
