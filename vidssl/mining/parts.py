"""How do the rows of a snapshot lie on the disk? As zarr arrays, whole or in parts that each hold a range of the slots.

A bank in one process writes one part, the snapshot's own folder; shards write a folder each. Any range of slots can be
read from any parts, so that shards are cut anew as a run goes on. What is read is held against the hash of its part, in
blocks: a range takes its own memory and a block's, whatever the parts are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.arrivals import fault_in
from vidssl.mining.moments import BLOCK_ROWS, Moment
from vidssl.mining.rows import DTYPES, storage

__all__ = ["RowsPart", "array_sum", "chunks", "read_group", "read_range", "write_part", "write_rows"]


@dataclass(frozen=True)
class RowsPart:
    """Where some slots of a snapshot lie.

    Attributes:
        folder: Below the snapshot; "" for its own.
        first: First slot.
        size: How many.
        sums: sha256 of each array's values; empty in a snapshot of an older version.
    """

    folder: str
    first: int
    size: int
    sums: Mapping[str, str]


def write_rows(moment: Moment, group: Any, step: int, first: int = 0) -> dict[str, str]:
    """Write versions and rows into a zarr group; returns the sums.

    Args:
        moment: Of the bank, or of a shard of it.
        group: A zarr group.
        step: Of the snapshot.
        first: What slot 0 is called.

    Raises:
        BankError: a row is no finite unit row.
    """
    facts, arrays, sums = moment.facts, {}, {}
    for part, block in moment.blocks():
        for view in facts.views:
            if bad := fault_in(view, block[f"view-{view}"], block["version"], first + part.start):
                raise BankError(f"the bank snapshot of step {step} is not written: {bad}; older snapshots stay")
        for name, values in block.items():
            if name not in arrays:
                shape = (facts.n_slots, *values.shape[1:])
                arrays[name] = group.create_array(
                    name, shape=shape, dtype=values.dtype, chunks=chunks(shape), compressors=None
                )
                sums[name] = hashlib.sha256()
            arrays[name][part] = values
            sums[name].update(values.data)
    return {name: hashed.hexdigest() for name, hashed in sums.items()}


def write_part(moment: Moment, path: Path, first: int, step: int) -> RowsPart:
    """Write one shard's rows into a folder of its own below a snapshot that is being written.

    Raises:
        BankError: as `write_rows`.
        OSError: it cannot be written.
    """
    import zarr

    sums = write_rows(moment, zarr.open_group(str(path), mode="w", zarr_format=3), step, first)
    return RowsPart(path.name, first, moment.facts.n_slots, sums)


def read_range(
    path: Path, parts: Sequence[RowsPart], views: Mapping[str, tuple[str, int]], start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Versions and rows of slots start..stop-1, every part that holds some of them held against its hashes.

    Args:
        path: The snapshot.
        parts: Of it, in the order of their slots.
        views: View → dtype and width of its rows.
        start: First slot.
        stop: One behind the last.

    Returns:
        "version" and "view-NAME" for each view, as they are kept.

    Raises:
        BankError: damaged, or of a dtype that this version does not know.
    """
    dtypes = {dtype for dtype, _ in views.values()}
    if unknown := dtypes - set(DTYPES):
        raise BankError(f"{path} holds rows of dtype {unknown.pop()}, this version reads {', '.join(DTYPES)}")
    kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {"version": (np.dtype(np.int64), ())}
    kinds |= {f"view-{view}": (storage(dtype), (dim,)) for view, (dtype, dim) in views.items()}
    found = {name: np.empty((stop - start, *shape), dtype) for name, (dtype, shape) in kinds.items()}
    for part in parts:
        if part.first < stop and start < part.first + part.size:
            for name, into in found.items():
                _read_into(into, start, path, part, name)
    return found


def read_group(path: Path, n_slots: int, sums: Mapping[str, str]) -> NDArray[np.int64]:
    """int64 [N], groups of a snapshot's videos, held against their hash.

    Raises:
        BankError: damaged.
    """
    group, whole = np.empty(n_slots, np.int64), RowsPart("", 0, n_slots, sums)
    _read_into(group, 0, path, whole, "group")
    return group


def array_sum(array: NDArray[Any]) -> str:
    """sha256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Whole rows, many of them."""
    return (min(shape[0], BLOCK_ROWS), *shape[1:])


def _read_into(into: NDArray[Any], start: int, path: Path, part: RowsPart, name: str) -> None:
    """Rows of one array that lie in `into`, whose row 0 is of slot `start`; all of the array is read for its hash."""
    import zarr

    shape, hashed = (part.size, *into.shape[1:]), hashlib.sha256()
    try:
        array = zarr.open_array(str(path / part.folder / name), mode="r")
        fits = array.shape == shape and array.dtype == into.dtype
        for a in range(0, part.size if fits else 0, BLOCK_ROWS):
            block = np.ascontiguousarray(array[a : min(a + BLOCK_ROWS, part.size)])
            hashed.update(block.data)
            low, high = max(part.first + a, start), min(part.first + a + len(block), start + len(into))
            if low < high:
                into[low - start : high - start] = block[low - part.first - a : high - part.first - a]
    except Exception as error:  # zarr raises what its parsers run into
        raise BankError(f"{path} is damaged ({type(error).__name__})") from error
    where = f"{part.folder}/{name}" if part.folder else name
    if not fits:
        raise BankError(f"{path} is damaged ({where} is {array.dtype} of shape {array.shape}, not {shape})")
    if part.sums and part.sums.get(name) != hashed.hexdigest():
        raise BankError(f"{path} is damaged ({where} is not what was written)")
