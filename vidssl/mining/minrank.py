"""A rival of the cascade: a video is as good as the worse of its two ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.mining.strategy import Score, Strategy

__all__ = ["MinRank"]


class MinRank(Strategy):
    """Minus the larger of the ranks (from 0) in both views; ranks of equals go to the lower slot first."""

    def slowly(self, scores: Sequence[Score]) -> list[Score]:
        """See `Strategy.slowly`."""
        places: list[dict[int, int]] = []
        for score in scores:
            ranked = sorted(score, key=lambda slot: (-score[slot], slot))
            places.append({slot: place for place, slot in enumerate(ranked)})
        main, aux = places
        return [{slot: -float(max(main[slot], aux[slot])) for slot in main}]

    def fuse(self, scores_VBN: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """See `Strategy.fuse`."""
        main, aux = scores_VBN
        worse = np.maximum(_ranks(main), _ranks(aux)).astype(np.float32)
        return [np.where(np.isneginf(main), -np.inf, -worse).astype(np.float32)]

    def fuse_on_device(self, scores_VBN: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.fuse_on_device`."""
        main, aux = scores_VBN
        worse = torch.maximum(_ranks_on_device(main), _ranks_on_device(aux)).float()
        return [torch.where(main == -torch.inf, -torch.inf, -worse)]


def _ranks(score_BN: NDArray[np.float32]) -> NDArray[np.int64]:
    order = np.argsort(-score_BN, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return ranks


def _ranks_on_device(score_BN: Tensor) -> Tensor:
    order = score_BN.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
