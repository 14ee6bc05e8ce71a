"""Are the bytes of a sample what was packed? Of a whole stream of it, or of the fragments that hold some windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.ahead import Span
from pipelines.dataset.checksums import crc_of, damaged_parts, pieces_of, unsealed
from pipelines.dataset.fmp4 import ByteRange
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.shards import RGB, ShardIndex, Stream
from vidssl.errors import DataError

__all__ = ["DamagedError", "Read", "SampleError", "Tables", "Windowed", "Windows", "check_sample", "pieces_of_windows"]

TABLES = 100_000
"""Fragment tables that are remembered, some 400 bytes each."""

Tables = dict[tuple[int, Stream], tuple[NDArray[np.int32], NDArray[np.uint32]]]
"""(instance, stream) → its fragment table and checksums, checked."""


class SampleError(DataError):
    """One sample cannot be used; the others can."""


class DamagedError(SampleError):
    """Bytes of a sample are not what was packed.

    Attributes:
        ranges: What has changed, as (first byte, byte after the last) in the shard.
    """

    def __init__(self, sentence: str, ranges: list[tuple[int, int]]) -> None:
        super().__init__(sentence)
        self.ranges = ranges


@dataclass(frozen=True)
class Windows:
    """Which frames will be decoded.

    Attributes:
        starts: First frame of each window.
        span: Source frames from the first to the last of a window.
    """

    starts: tuple[int, ...]
    span: int


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of a video.

    Attributes:
        video: uint8 [bytes], zeros where nothing was read.
        table: Its fragment table, int32 [2·G + 5].
        size: Bytes that were read.
    """

    video: NDArray[np.uint8]
    table: NDArray[np.int32]
    size: int


class Windowed:
    """Reads of a stream's video what holds some windows.

    Args:
        manifest: The packed data.
        index: Of the sample's shard.
        tables: Those that were read before; more are added.
    """

    def __init__(self, manifest: Manifest, index: ShardIndex, tables: Tables) -> None:
        self._manifest, self._index, self._tables = manifest, index, tables

    def __call__(
        self, instance: int, stream: Stream, windows: Windows, shard: str, ask: Callable[[Span], bytes]
    ) -> Read:
        """The fragments that hold the windows, and the table where it was not known.

        Args:
            instance: Which sample.
            stream: Which stream.
            windows: Of the video.
            shard: Name of the sample's shard.
            ask: Reads a part of it.

        Raises:
            DamagedError: what was read has changed.
            SampleError: the sample has no checksums though its manifest says so.
        """
        row = instance - self._manifest.first_of(int(self._manifest.samples.shard[instance]))
        at, size = (int(of[stream.video][row]) for of in (self._index.offset, self._index.size))
        known = (instance, stream) in self._tables
        table, checks = self._table(instance, stream, row, shard, ask)
        total = 0 if known else int(self._index.size[stream.table][row])
        pieces, video = pieces_of(table, size), np.zeros(size, np.uint8)
        damaged: list[ByteRange] = []
        for run in _runs(pieces_of_windows(table, windows)):
            begin, stop = pieces[run[0]][0], pieces[run[-1]][1]
            data, total = ask(Span(shard, at + begin, stop - begin)), total + stop - begin
            for first, after in (
                pieces[piece] for piece in run if crc_of(_of(data, begin, pieces[piece])) != checks[piece]
            ):
                damaged.append((at + first, at + after))
            video[begin:stop] = np.frombuffer(data, np.uint8)
        if damaged:
            raise _damaged(shard, damaged)
        return Read(video, table, total)

    def _table(
        self, instance: int, stream: Stream, row: int, shard: str, ask: Callable[[Span], bytes]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
        if (known := self._tables.get((instance, stream))) is not None:
            return known
        at, size = (int(of[stream.table][row]) for of in (self._index.offset, self._index.size))
        gop, samples = ask(Span(shard, at, size)), self._manifest.samples
        crc = samples.crc if stream is RGB else samples.flow_crc
        if crc is not None and crc_of(gop) != int(crc[instance]):
            raise _damaged(shard, [(at, at + size)])
        table, checks = _unsealed(gop, len(stream.others))
        if checks is None:
            raise SampleError("its fragment table has no checksums though its manifest says so; pack again")
        if len(self._tables) >= TABLES:
            self._tables.clear()
        self._tables[instance, stream] = table, checks
        return table, checks


def pieces_of_windows(table: NDArray[np.int32], windows: Windows) -> list[int]:
    """Numbers of the pieces of `pieces_of`, ascending: the init segment, and each fragment that holds a wanted frame.

    Args:
        table: int32 [2·G + 5].
        windows: Which frames; those past the end are the last one again.
    """
    frames, count = int(table[0]), int(table[2])
    first = table[4 + count : 5 + 2 * count]
    wanted = {0}
    for start in windows.starts:
        start = min(start, frames - 1)
        last = min(start + windows.span - 1, frames - 1)
        begin, stop = np.searchsorted(first, [start, last], side="right")
        wanted |= set(range(int(begin), int(stop) + 1))  # fragment f is piece f + 1
    return sorted(wanted)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Neighbours together."""
    return [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda one: one[1] - one[0])]


def _of(data: bytes, begin: int, piece: ByteRange) -> memoryview:
    return memoryview(data)[piece[0] - begin : piece[1] - begin]


def check_sample(
    manifest: Manifest, index: ShardIndex, instance: int, span: bytes, stream: Stream = RGB
) -> NDArray[np.int32]:
    """Hold a stream of a sample against its checksums.

    Args:
        manifest: The packed data.
        index: Of the sample's shard.
        instance: Which sample.
        span: The bytes of the shard from the stream's first component to its last.
        stream: Which stream.

    Returns:
        Its fragment table, int32 [2·G + 5].

    Raises:
        DamagedError: bytes have changed.
        SampleError: packed before there were checksums, and table or MP4 make no sense.
    """
    shard = int(manifest.samples.shard[instance])
    row = instance - manifest.first_of(shard)
    begin, _ = index.span(row, stream)
    at = {name: int(index.offset[name][row]) for name in stream.members}
    view = memoryview(span)
    parts = {name: view[at[name] - begin :][: int(index.size[name][row])] for name in stream.members}
    name, crc = manifest.shards[shard].name, manifest.samples.crc if stream is RGB else manifest.samples.flow_crc
    gop, video = parts[stream.table], parts[stream.video]
    if crc is not None and crc_of(gop) != int(crc[instance]):
        raise _damaged(name, [(at[stream.table], at[stream.table] + len(gop))])
    table, checks = _unsealed(bytes(gop), len(stream.others))
    if checks is not None:
        if found := damaged_parts(parts, table, checks, stream.video, stream.others):
            raise _damaged(name, [(at[part] + first, at[part] + stop) for part, (first, stop) in found])
    elif crc is not None:
        raise SampleError("its fragment table has no checksums though its manifest says so; pack again")
    elif bytes(video[4:8]) != b"ftyp" or len(video) < table[3 + int(table[2])]:
        raise SampleError("its bytes are no MP4 of the length that its fragment table says")
    return table


def _unsealed(gop: bytes, others: int) -> tuple[NDArray[np.int32], NDArray[np.uint32] | None]:
    try:
        return unsealed(np.frombuffer(gop, "<i4"), others)
    except ValueError as error:
        raise SampleError("its fragment table is damaged") from error


def _damaged(shard: str, ranges: list[tuple[int, int]]) -> DamagedError:
    places = ", ".join(f"{first}-{stop - 1}" for first, stop in ranges)
    return DamagedError(f"bytes {places} of {shard} are not what was packed (crc32)", ranges)
