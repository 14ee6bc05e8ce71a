"""How does IIC describe a video for retrieval? Protocol P2: the last map of ten clips, pooled in space and laid flat.

Ten clips, centres evenly spaced from frame T/2 to T/2 before the end; of each the last convolutional map [F, t, h, w] goes
through a maximum over 2 x 2 places and is laid flat (R3D at 16 x 112 x 112: 512 x 2 x 3 x 3 = 9216 numbers); the mean over
the clips is the video, raw: neither the clips nor the video are made unit, and nothing is centred. Neighbours are ranked by
cosine. `joint` puts two streams side by side, so that the stream with the longer features weighs more, as published.
The published loop dropped the last incomplete batch (1 training and 7 test videos of UCF101); here every video counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidssl.evaluation.encode import EncoderReader

__all__ = ["MapReader", "joint", "pooled_map"]


def pooled_map(map_BFthw: Tensor) -> Tensor:
    """Maximum over 2 x 2 places of a map [B, F, t, h, w] (a last odd row or column is left out), laid flat.

    Returns:
        [B, F·t·⌊h/2⌋·⌊w/2⌋]. A map that is one place high or wide keeps it: small clips have no 2 x 2.
    """
    window = (1, min(2, map_BFthw.shape[3]), min(2, map_BFthw.shape[4]))
    return F.max_pool3d(map_BFthw, window).flatten(1)


class MapReader(EncoderReader):
    """Reads `PREFIXmap/VIEW` (P2) too, in the same pass."""

    def forward(self, clips: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """View → clips [B, C, T, H, W]; name → rows [B, F]."""
        last = self.encoder.backbone(clips[self.view])
        pooled = last.mean(dim=(2, 3, 4))
        return {
            f"{self.prefix}map/{self.view}": pooled_map(last),
            f"{self.prefix}feature/{self.view}": pooled,
            f"{self.prefix}embedding/{self.view}": self.encoder.head(pooled),
        }


def joint(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.floating]:
    """Two streams' rows [N, F] and [N, G] of the same videos, side by side: [N, F + G]."""
    return np.concatenate([first, second], axis=1)
