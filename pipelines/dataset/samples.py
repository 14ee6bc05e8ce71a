"""What is known of every sample without reading it? The columns of `samples.npz`, by instance."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.patience import read_whole
from pipelines.dataset.place import Address
from vidssl.errors import DataError

__all__ = ["KINDS", "SAMPLES", "Samples", "columns_of", "read_columns"]

SAMPLES = "samples.npz"

KINDS: dict[str, np.dtype[Any]] = {
    "shard": np.dtype(np.int32),
    "label": np.dtype(np.int32),
    "group": np.dtype(np.int32),
    "split": np.dtype(np.int8),
    "frames": np.dtype(np.int32),
    "width": np.dtype(np.int16),
    "height": np.dtype(np.int16),
    "name": np.dtype(np.str_),
    "crc": np.dtype(np.uint32),
    "flow_crc": np.dtype(np.uint32),
}
"""Column → type."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Columns by instance (the number of a sample in storage order, 0..N-1).

    Attributes:
        shard: int32 [N], which shard holds it.
        label: int32 [N], index into the classes, -1 unknown.
        group: int32 [N], videos cut from one source share it.
        split: int8 [N], index into the splits.
        frames: int32 [N], counted by decoding.
        width: int16 [N], pixels.
        height: int16 [N], pixels.
        name: unicode [N], path of the original, relative to the source.
        crc: uint32 [N], crc32 of the sample's `gop` member, which holds those of all its other bytes; None in packs of
            format 1.
        flow_crc: uint32 [N], the same of its `flow.gop` member; None without flow.
    """

    shard: NDArray[np.int32]
    label: NDArray[np.int32]
    group: NDArray[np.int32]
    split: NDArray[np.int8]
    frames: NDArray[np.int32]
    width: NDArray[np.int16]
    height: NDArray[np.int16]
    name: NDArray[np.str_]
    crc: NDArray[np.uint32] | None = None
    flow_crc: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.label)


def columns_of(samples: Samples) -> dict[str, NDArray[Any]]:
    """The columns that there are, by name."""
    named = {column.name: getattr(samples, column.name) for column in fields(Samples)}
    return {name: values for name, values in named.items() if values is not None}


def read_columns(path: Path | Address, ask: Callable[[], bytes]) -> dict[str, NDArray[Any]]:
    """The columns of a `samples.npz`, unchecked.

    Args:
        path: Where it lies, for the sentences.
        ask: Reads it.

    Raises:
        DataError: it is missing or damaged.
        StorageError: it cannot be read now.
    """
    try:
        with np.load(io.BytesIO(read_whole(str(path), ask)), allow_pickle=False) as columns:
            return {name: columns[name] for name in columns.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is missing or damaged; pack again") from error
