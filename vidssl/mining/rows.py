"""How is a row kept? In float32, float16 or bfloat16; numpy has no bfloat16, so its bits are kept as uint16.

A table of the bank is always an array, whatever its rows are: what copies rows (snapshots, deltas for mirrors) need not
know. What computes with them asks for `table` (as an engine reads them, not copied) or `floats`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.errors import BankError

__all__ = ["DTYPES", "Table", "checked_dtype", "floats", "storage", "stored", "table"]

DTYPES = ("float32", "float16", "bfloat16")

Table: TypeAlias = NDArray | Tensor
"""[N, D] rows as an engine reads them: an array, or a bfloat16 tensor that shares the bank's memory."""

_BITS = np.dtype(np.uint16)


def checked_dtype(dtype: str) -> str:
    """The dtype, if rows can be kept in it.

    Raises:
        BankError: they cannot.
    """
    if dtype not in DTYPES:
        raise BankError(
            f"a bank of dtype {dtype} cannot be made; allowed are {', '.join(DTYPES[:-1])} and {DTYPES[-1]}"
        )
    return dtype


def storage(dtype: str) -> np.dtype:
    """The dtype of the array that holds such rows."""
    return _BITS if dtype == "bfloat16" else np.dtype(dtype)


def stored(rows: NDArray, dtype: str) -> NDArray:
    """Rows as a table of this dtype keeps them, rounded to nearest; uint16 is taken for bits of bfloat16 rows."""
    if rows.dtype == _BITS:
        return rows if dtype == "bfloat16" else floats(rows).astype(dtype)
    if dtype != "bfloat16":
        return rows.astype(dtype, copy=False)
    wide = torch.from_numpy(np.array(rows, np.float32))  # a copy: what comes from Ray is read-only
    return wide.to(torch.bfloat16).view(torch.uint16).numpy()


def floats(rows: NDArray) -> NDArray[np.float32]:
    """Kept rows as float32, copied where they are not; exact, since every kept value is a float32."""
    if rows.dtype != _BITS:
        return rows.astype(np.float32, copy=False)
    return (rows.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of a float32


def table(rows: NDArray) -> Table:
    """Kept rows as an engine reads them; shares their memory."""
    return torch.from_numpy(rows).view(torch.bfloat16) if rows.dtype == _BITS else rows
