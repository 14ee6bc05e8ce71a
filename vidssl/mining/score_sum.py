"""A rival of the cascade: both views' scores in one sum, and the best of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidssl.mining.strategy import Score, Strategy

__all__ = ["ScoreSum"]


class ScoreSum(Strategy):
    """Main plus aux, in float32."""

    def slowly(self, scores: Sequence[Score]) -> list[Score]:
        """See `Strategy.slowly`."""
        main, aux = scores
        return [{slot: float(np.float32(main[slot]) + np.float32(aux[slot])) for slot in main}]

    def fuse(self, scores_VBN: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """See `Strategy.fuse`."""
        main, aux = scores_VBN
        return [main + aux]

    def fuse_on_device(self, scores_VBN: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.fuse_on_device`."""
        main, aux = scores_VBN
        return [main + aux]
