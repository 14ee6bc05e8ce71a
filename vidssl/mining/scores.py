"""Matrix products of queries and bank, part by part, with what is forbidden out of reach."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.task import Array, Scores

__all__ = ["CHUNK", "check_finite", "forbid", "gathered", "is_half", "product", "raised", "score", "scratch"]

CHUNK = 16384
"""Bank rows of one product where they must be raised from half precision: 8 MB, which stay in the cache."""
SCRATCH = 16 << 20
"""Most bytes of a matrix of scores whose memory a thread keeps for the next one."""


def is_half(view: Array) -> bool:
    """Whether rows must be raised to float32."""
    return view.itemsize < 4


def raised(view: Array, start: int, stop: int, out: Scores | None = None) -> Scores:
    """float32 rows start..stop-1 of a view: the rows themselves, or raised from half precision into `out`."""
    rows = view[start:stop]
    if isinstance(rows, np.ndarray) and rows.dtype == np.float32:
        return rows
    out = np.empty(rows.shape, np.float32) if out is None else out[: len(rows)]
    if isinstance(rows, np.ndarray):
        np.copyto(out, rows)
    else:
        torch.from_numpy(out).copy_(rows)
    return out


def gathered(view: Array, slots: NDArray[np.int64]) -> Scores:
    """float32 rows of some slots."""
    if isinstance(view, np.ndarray):
        return view.take(slots, axis=0).astype(np.float32, copy=False)
    return view[torch.from_numpy(slots)].float().numpy()


def product(query_BD: Scores, rows_wD: Scores, out_Bw: Scores) -> None:
    """Inner products of queries and rows; torch's, unless an array is read-only, which torch does not take."""
    if query_BD.flags.writeable and rows_wD.flags.writeable:
        torch.mm(torch.from_numpy(query_BD), torch.from_numpy(rows_wD).T, out=torch.from_numpy(out_Bw))
    else:
        np.matmul(query_BD, rows_wD.T, out=out_Bw)


_kept = threading.local()


def scratch(number: int, rows: int, width: int) -> Scores:
    """Uninitialised float32 [rows, width] that is this thread's until it asks for the same number again.

    Memory that goes back to the system comes back page by page, which costs as much as a product of a small bank.
    """
    if 4 * rows * width > SCRATCH:
        return np.empty((rows, width), np.float32)
    buffers = _kept.__dict__.setdefault("buffers", {})
    if number not in buffers or buffers[number].size < rows * width:
        buffers[number] = np.empty(rows * width, np.float32)
    return buffers[number][: rows * width].reshape(rows, width)


def score(
    query_BD: Scores,
    view_ND: Array,
    exclude: Exclusions,
    valid_N: NDArray[np.bool_] | None,
    out: Scores | None = None,
) -> Scores:
    """float32 scores [B, N] with -inf in forbidden columns, in `out` if it is given.

    Raises:
        BankError: a filled row of the bank is not finite.
    """
    out = np.empty((len(query_BD), len(view_ND)), np.float32) if out is None else out
    if is_half(view_ND):
        wide = np.empty((min(CHUNK, len(view_ND)), view_ND.shape[1]), np.float32)
        for a in range(0, len(view_ND), CHUNK):  # raising the whole bank at once would double its memory
            product(query_BD, raised(view_ND, a, a + CHUNK, wide), out[:, a : a + CHUNK])
    else:
        product(query_BD, raised(view_ND, 0, len(view_ND)), out)
    check_finite(out[:1], valid_N)
    forbid(out, None if valid_N is None else np.flatnonzero(~valid_N), exclude.row_of_slot(), exclude.slots)
    return out


def forbid(score_Bw: Scores, unfilled: NDArray[np.int64] | None, rows: NDArray[np.int64], columns: NDArray) -> None:
    """-inf in the columns that are not filled and where (row, column) is excluded."""
    if unfilled is not None and unfilled.size:
        score_Bw[:, unfilled] = -np.inf
    score_Bw[rows, columns] = -np.inf


def check_finite(score_1w: Scores, valid_w: NDArray[np.bool_] | None) -> None:
    """Refuse a bank row that is not finite: it shows in the score of every query, so one query is looked at.

    Raises:
        BankError: a filled row is NaN or infinite.
    """
    fine = np.isfinite(score_1w)
    if not fine.all() and (valid_w is None or (~fine & valid_w).any()):
        raise BankError("a bank row is not finite, so its scores are not numbers; push finite unit rows only")
