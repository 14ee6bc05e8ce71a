"""One matrix product per view: how alike are queries and bank, with what is forbidden out of reach?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.exclusions import Exclusions

__all__ = ["check_finite", "score"]

CHUNK = 65536
"""Bank rows of one product where they must be raised from half precision."""


def score(
    query_BD: NDArray, view_ND: NDArray, exclude: Exclusions, valid_N: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """float32 scores [B, N] with -inf in forbidden columns.

    Raises:
        BankError: a filled row of the bank is not finite.
    """
    out = np.empty((len(query_BD), len(view_ND)), np.float32)
    if view_ND.dtype == np.float32:
        np.matmul(query_BD, view_ND.T, out=out)
    else:
        for a in range(0, len(view_ND), CHUNK):  # raising the whole bank at once would double its memory
            out[:, a : a + CHUNK] = query_BD @ view_ND[a : a + CHUNK].astype(np.float32).T
    if valid_N is not None:
        out[:, np.flatnonzero(~valid_N)] = -np.inf
    out[exclude.row_of_slot(), exclude.slots] = -np.inf
    check_finite(float(out.max(initial=-np.inf)))
    return out


def check_finite(largest: float) -> None:
    """Refuse scores whose largest is not a number.

    Raises:
        BankError: it is NaN or infinite.
    """
    if np.isnan(largest) or largest == np.inf:
        raise BankError("a bank row is not finite, so its scores are not numbers; push finite unit rows only")
