"""Is a sample still what was packed? A crc32 of each of its pieces, beside its fragment table; the table's own in the manifest.

`KEY.gop` of a sample with G fragments is int32 [3·G + 9]: the fragment table [2·G + 5] of `pipelines.dataset.fmp4`, then
the crc32 (same bits) of the init segment, of each fragment, of what follows the last fragment, of `KEY.idx` and of
`KEY.json`. The crc32 of `KEY.gop` itself is a column of the manifest's samples and sealed by the manifest's hash. So a
reader of a whole sample and a reader of a window that fetches its own fragments only both check every byte they use.

`KEY.flow.gop` does the same for `KEY.flow.mp4` and `KEY.flow.json`, in int32 [3·G + 8].
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.fmp4 import ByteRange

__all__ = ["crc_of", "damaged_parts", "pieces_of", "sealed", "unsealed"]

Bytes = bytes | memoryview


def crc_of(data: Bytes) -> int:
    """crc32, 0 … 2³² − 1."""
    return zlib.crc32(data)


def pieces_of(table: NDArray[np.int32], size: int) -> list[ByteRange]:
    """(first byte, byte after the last) of the init segment, of each of G fragments and of what follows them, in order.

    Args:
        table: int32 [2·G + 5].
        size: Bytes of the MP4.
    """
    fragments = int(table[2])
    edges = [0, *table[3 : 4 + fragments].tolist(), size]
    return list(itertools.pairwise(edges))


def sealed(table: NDArray[np.int32], mp4: bytes, *others: bytes) -> NDArray[np.int32]:
    """The words of `KEY.gop`, int32 [3·G + 7 + others]: the table and the crc32 of every piece of the sample.

    Args:
        table: int32 [2·G + 5].
        mp4: The video.
        others: What else is sealed: `KEY.idx` and `KEY.json`, or `KEY.flow.json`.
    """
    checks = [crc_of(mp4[begin:stop]) for begin, stop in pieces_of(table, len(mp4))]
    checks += [crc_of(other) for other in others]
    return np.concatenate([table, np.array(checks, np.uint32).view(np.int32)])


def unsealed(words: NDArray[np.int32], others: int = 2) -> tuple[NDArray[np.int32], NDArray[np.uint32] | None]:
    """The fragment table [2·G + 5] of a sample and its crc32s [G + 2 + others]; None: packed before there were any.

    Raises:
        ValueError: these words are no fragment table.
    """
    count = int(words[2]) if len(words) > 2 else 0
    table, checks = words[: 2 * count + 5], words[2 * count + 5 :]
    offsets, first = table[3 : 4 + count], table[4 + count :]
    if (
        count < 1
        or len(words) not in (2 * count + 5, 3 * count + 7 + others)
        or not 0 < table[1] <= offsets[0]
        or (np.diff(offsets) <= 0).any()
        or first[0] != 0
        or (np.diff(first) <= 0).any()
        or first[-1] != table[0]
    ):
        raise ValueError("this is no fragment table")
    return table, checks.view(np.uint32) if len(checks) else None


def damaged_parts(
    parts: Mapping[str, Bytes],
    table: NDArray[np.int32],
    checks: NDArray[np.uint32],
    video: str = "mp4",
    others: Sequence[str] = ("idx", "json"),
) -> list[tuple[str, ByteRange]]:
    """What has changed: (component, bytes within it), neighbouring fragments joined; empty when all is whole.

    Args:
        parts: The bytes of the components.
        table: int32 [2·G + 5].
        checks: uint32 of `unsealed`.
        video: The component that the table is of.
        others: The components that are sealed with it.
    """
    mp4 = parts[video]
    found: list[tuple[str, ByteRange]] = []
    for (begin, stop), expected in zip(pieces_of(table, len(mp4)), checks.tolist(), strict=False):
        if crc_of(mp4[begin:stop]) == expected:
            continue
        if found and found[-1][1][1] == begin:
            begin = found.pop()[1][0]
        found.append((video, (begin, stop)))
    for name, expected in zip(others, checks[-len(others) :].tolist(), strict=True):
        if crc_of(parts[name]) != expected:
            found.append((name, (0, len(parts[name]))))
    return found
