"""Where are the bytes of a sample, and are they still what was packed? Random access to the samples of a packed folder.

Samples are read positionally out of the shards (`os.pread` at the offsets of the index), so any order costs the same and
nothing has to be rewound. Every byte that is handed out has been held against its checksum.
"""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.checksums import crc_of, damaged_parts, unsealed
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.patience import Patience
from pipelines.dataset.shards import RGB, ShardIndex, Stream
from vidssl.errors import DataError

__all__ = ["DamagedError", "SampleError", "ShardReader", "check_sample"]

OPEN_SHARDS = 128
PATIENCE_S = 240.0


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


class ShardReader:
    """Random access to samples; indexes stay in memory, up to 128 shards stay open.

    Args:
        manifest: The packed data.
        patience: How long a disk that does not answer is asked again.
    """

    def __init__(self, manifest: Manifest, patience: Patience | None = None) -> None:
        self.manifest, self.patience = manifest, patience or Patience(PATIENCE_S)
        self._indexes: dict[int, ShardIndex] = {}
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, instance: int, stream: Stream = RGB) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Bytes and fragment table [2·G + 5] of a stream of a sample; no byte of another stream is read.

        Raises:
            SampleError: the bytes are not what was packed, also when they are read a second time.
            DataError: the index of its shard is damaged.
            StorageError: the shard cannot be reached.
        """
        try:
            return self._checked(instance, stream)
        except SampleError:
            self._forget(int(self.manifest.samples.shard[instance]))
            return self._checked(instance, stream)  # the error may have happened on the way here

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _checked(self, instance: int, stream: Stream) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        shard = int(self.manifest.samples.shard[instance])
        index = self._index(shard)
        row = instance - self.manifest.first_of(shard)
        begin, stop = index.span(row, stream)
        span = self._bytes(shard, begin, stop - begin)
        table = check_sample(self.manifest, index, instance, span, stream)
        at = int(index.offset[stream.video][row]) - begin
        return np.frombuffer(span, np.uint8, int(index.size[stream.video][row]), at), table

    def _index(self, shard: int) -> ShardIndex:
        if shard not in self._indexes:
            path = self.manifest.index_path(shard)
            text = self.patience.insist(path.name, path.read_bytes)
            self._indexes[shard] = self.manifest.checked_index(shard, text)
        return self._indexes[shard]

    def _bytes(self, shard: int, begin: int, size: int) -> bytes:
        def ask() -> bytes:
            try:
                data = os.pread(self._descriptor(shard), size, begin)
                if len(data) != size:  # the index lies within the shard's size, so the file is not whole now
                    raise OSError(f"it ends before byte {begin + size}")
                return data
            except OSError:
                self._forget(shard)  # a stale handle stays stale: the next attempt opens the file again
                raise

        return self.patience.insist(self.manifest.shards[shard].name, ask)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.manifest.shard_path(shard), os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _forget(self, shard: int) -> None:
        if (descriptor := self._open.pop(shard, None)) is not None:
            os.close(descriptor)


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
