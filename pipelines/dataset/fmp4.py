"""Where are the frames? The fragment table of a fragmented MP4, and the byte ranges that hold a window of frames.

A packed video is one init segment (`ftyp`, `moov`) followed by fragments (`moof`, `mdat`), one closed GOP each. Init
segment plus any run of whole fragments is again a decodable file, so a window costs only the fragments it touches.

Table, int32 [2·G + 5] for G fragments: `[n, init, G, off_0 … off_{G-1}, end, first_0 … first_{G-1}, n]`; n frames, init
bytes of the init segment, off the byte offset of each fragment, end the byte after the last one (an `mfra` box may
follow it), first the number of each fragment's first frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError

__all__ = ["ByteRange", "cut", "fragment_table", "fragments_of_window"]

ByteRange = tuple[int, int]

_INT32_MAX = 2**31 - 1


def fragment_table(data: bytes) -> NDArray[np.int32]:
    """The fragment table of a fragmented MP4 with one video track; frames are counted from the `trun` boxes.

    Args:
        data: The whole file.

    Returns:
        int32 [2·G + 5], see the module.

    Raises:
        DataError: no fragments, a damaged box, a fragment without frames, or a file of 2 GiB and more.
    """
    if len(data) > _INT32_MAX:
        raise DataError(f"a video of {len(data)} bytes does not fit the int32 fragment table; cut it below 2 GiB")
    offsets: list[int] = []
    counts: list[int] = []
    end = 0
    for kind, start, stop, head in _boxes(data, 0, len(data)):
        if kind == b"moof":
            offsets.append(start)
            counts.append(_frames_of_fragment(data, head, stop))
        elif kind == b"mdat":
            end = stop
    if not offsets or end <= offsets[-1] or min(counts) < 1:
        raise DataError("this is no fragmented MP4 with frames in every fragment; pack it with `vidssl pack`")
    first = np.concatenate([[0], np.cumsum(counts)])
    return np.array([first[-1], offsets[0], len(offsets), *offsets, end, *first], np.int32)


def fragments_of_window(table: NDArray[np.int32], start: int, span: int) -> tuple[tuple[ByteRange, ByteRange], int]:
    """The bytes that hold frames `start … start + span - 1`; frames past the end are left out (the decoder pads).

    Args:
        table: int32 [2·G + 5] from `fragment_table`.
        start: First frame, 0 ≤ start < n.
        span: Frames from the first to the last one wanted, at least 1.

    Returns:
        ((0, init), (first byte, byte after the last)) and the number of decoded frames to skip before the window.

    Raises:
        DataError: the window starts outside the video or is empty.
    """
    frames, init, fragments = (int(value) for value in table[:3])
    if not 0 <= start < frames or span < 1:
        raise DataError(f"a window of {span} frames from frame {start} is not in a video of {frames} frames")
    offsets, first = table[3 : 4 + fragments], table[4 + fragments :]
    begin = int(np.searchsorted(first, start, side="right")) - 1
    stop = min(int(np.searchsorted(first, start + span, side="left")), fragments)
    return ((0, init), (int(offsets[begin]), int(offsets[stop]))), start - int(first[begin])


def cut(data: bytes, ranges: tuple[ByteRange, ...]) -> bytes:
    """The bytes of `ranges` joined: a decodable file when they come from `fragments_of_window`."""
    return b"".join(data[begin:stop] for begin, stop in ranges)


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Boxes between two offsets as (kind, start, stop, start of the content)."""
    while begin < end:
        if begin + 8 > end:
            raise DataError(f"damaged MP4: {end - begin} stray bytes at offset {begin}")
        size, kind = struct.unpack_from(">I4s", data, begin)
        head = begin + 8
        if size == 1 and begin + 16 <= end:
            size, head = struct.unpack_from(">Q", data, head)[0], begin + 16
        elif size == 0:  # reaches to the end of what surrounds it
            size = end - begin
        if size < head - begin or begin + size > end:
            raise DataError(f"damaged MP4: box {kind!r} at offset {begin} claims {size} bytes, {end - begin} are left")
        yield kind, begin, begin + size, head
        begin += size


def _frames_of_fragment(data: bytes, begin: int, end: int) -> int:
    total = 0
    for kind, _, stop, head in _boxes(data, begin, end):
        if kind == b"traf":
            total += _frames_of_fragment(data, head, stop)
        elif kind == b"trun":
            total += struct.unpack_from(">I", data, head + 4)[0]  # after version and flags: sample_count
    return total
