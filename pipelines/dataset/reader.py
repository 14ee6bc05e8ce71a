"""Where are the bytes of a sample, and are they still what was packed? Random access to the samples of a packed folder.

Samples are read positionally out of the shards (at the offsets of the index), so any order costs the same and nothing has
to be rewound. Every byte that is handed out has been held against its checksum. Who reads from a store says what will be
wanted, so that many answers are waited for at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.ahead import ReadAhead, Span
from pipelines.dataset.cache import Cache
from pipelines.dataset.checksums import crc_of, damaged_parts, unsealed
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.patience import Patience, Stopped
from pipelines.dataset.shards import RGB, ShardIndex, Stream
from pipelines.dataset.store import open_store
from vidssl.errors import DataError

__all__ = ["DamagedError", "SampleError", "ShardReader", "check_sample"]

PATIENCE_S = 240.0
POLL_S = 0.2


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
    """Random access to samples; indexes stay in memory, up to 128 shards of a folder stay open.

    Args:
        manifest: The packed data.
        patience: How long a disk or store that does not answer is asked again.
        cache: Where what was read is kept; None: nowhere.
        reads: Questions to a store at once.
        ahead: Calls of `want` whose samples are kept until they are read.
    """

    def __init__(
        self,
        manifest: Manifest,
        patience: Patience | None = None,
        cache: Cache | None = None,
        reads: int = 16,
        ahead: int = 4,
    ) -> None:
        self.manifest, self.patience = manifest, patience or Patience(PATIENCE_S)
        self._store, self._cache = open_store(manifest.root), cache
        self._indexes: dict[int, ShardIndex] = {}
        self._ahead = ReadAhead(self._fetched, reads, ahead) if self._store.far else None

    @property
    def far(self) -> bool:
        """Whether it pays to say what will be wanted."""
        return self._ahead is not None

    def want(self, instances: Iterable[int], streams: Sequence[Stream] = (RGB,)) -> None:
        """Begin to read samples that will be asked for soon; of a folder nothing is read ahead.

        What cannot be read now is no error here: who asks for it tries again, with patience.

        Raises:
            DataError: the index of a shard is damaged.
        """
        if self._ahead is None:
            return
        wanted = list(instances)
        shards = {int(self.manifest.samples.shard[instance]) for instance in wanted}
        self._ahead.together([partial(self._read_index, shard) for shard in sorted(shards - self._indexes.keys())])
        known = [instance for instance in wanted if int(self.manifest.samples.shard[instance]) in self._indexes]
        spans = [self._span(instance, stream) for instance in known for stream in streams]
        self._ahead.want(spans, self._is_kept)

    def read(self, instance: int, stream: Stream = RGB) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Bytes and fragment table [2·G + 5] of a stream of a sample; no byte of another stream is read.

        Raises:
            SampleError: the bytes are not what was packed, also when they are read a second time.
            DataError: the index of its shard is damaged.
            StorageError: the shard cannot be reached.
        """
        span = self._span(instance, stream)
        try:
            return self._checked(instance, stream, self._bytes(span, self._ahead and self._ahead.coming(span)))
        except SampleError:
            self._store.forget(span.name)
            if self._cache is not None:
                self._cache.drop(self._name(span))
            return self._checked(instance, stream, self._bytes(span))  # the error may have happened on the way here

    def close(self) -> None:
        """Close the shards."""
        self._store.close()
        if self._ahead is not None:
            self._ahead.close()

    def _checked(self, instance: int, stream: Stream, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        shard = int(self.manifest.samples.shard[instance])
        index = self._indexes[shard]
        row = instance - self.manifest.first_of(shard)
        table = check_sample(self.manifest, index, instance, data, stream)
        at = int(index.offset[stream.video][row]) - index.span(row, stream)[0]
        return np.frombuffer(data, np.uint8, int(index.size[stream.video][row]), at), table

    def _span(self, instance: int, stream: Stream) -> Span:
        shard = int(self.manifest.samples.shard[instance])
        if shard not in self._indexes:
            name = self._store.said(self.manifest.index_name(shard))
            self.patience.insist(name, partial(self._read_index, shard))
        begin, stop = self._indexes[shard].span(instance - self.manifest.first_of(shard), stream)
        return Span(self.manifest.shards[shard].name, begin, stop - begin)

    def _read_index(self, shard: int) -> None:
        text = self._store.read(self.manifest.index_name(shard))
        self._indexes[shard] = self.manifest.checked_index(shard, text)

    def _bytes(self, span: Span, coming: Future[Mapping[Span, bytes]] | None = None) -> bytes:
        """The bytes of a span; what is on its way counts as the first attempt."""
        attempts = iter([lambda: self._arrived(coming)[span]] if coming is not None else [])

        def ask() -> bytes:
            return next(attempts, partial(self._one, span))()

        return self.patience.insist(self._store.said(span.name), ask)

    def _arrived(self, coming: Future[Mapping[Span, bytes]]) -> Mapping[Span, bytes]:
        while not wait([coming], POLL_S).done:  # so that a loader that is closed does not wait for a store
            if self.patience.stopped:
                raise Stopped
        return coming.result()

    def _fetched(self, spans: Sequence[Span]) -> Mapping[Span, bytes]:
        """Neighbouring spans, with one question."""
        if len(spans) == 1:
            return {spans[0]: self._one(spans[0])}
        begin, stop = spans[0].begin, max(span.stop for span in spans)
        whole = self._store.read_range(spans[0].name, begin, stop - begin)
        parts = {span: whole[span.begin - begin : span.stop - begin] for span in spans}
        if self._cache is not None:
            for span, part in parts.items():
                self._cache.put(self._name(span), part)
        return parts

    def _one(self, span: Span) -> bytes:
        if self._cache is None:
            return self._store.read_range(*span)
        if (kept := self._cache.get(self._name(span), span.size)) is not None:
            return kept
        data = self._store.read_range(*span)
        self._cache.put(self._name(span), data)
        return data

    def _is_kept(self, span: Span) -> bool:
        return self._cache is not None and self._cache.has(self._name(span))

    def _name(self, span: Span) -> str:
        """In the cache: the hash says which data, so that it never goes stale."""
        return f"{self.manifest.hash}/{span.name.removesuffix('.tar')}/{span.begin}-{span.size}"


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
