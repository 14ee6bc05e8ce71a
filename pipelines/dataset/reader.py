"""Where are the bytes of a sample, and are they still what was packed? Random access to the samples of a packed folder.

Samples are read positionally out of the shards (at the offsets of the index), so any order costs the same and nothing has
to be rewound. Every byte that is handed out has been held against its checksum. Who reads from a store says what will be
wanted, so that many answers are waited for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.ahead import ReadAhead, Span
from pipelines.dataset.cache import Cache
from pipelines.dataset.checked import DamagedError, Read, SampleError, Tables, Windowed, Windows, check_sample
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.patience import Patience, Stopped
from pipelines.dataset.shards import RGB, ShardIndex, Stream
from pipelines.dataset.store import open_store

__all__ = ["DamagedError", "SampleError", "ShardReader", "Windows", "check_sample"]

PATIENCE_S = 240.0
POLL_S = 0.2


Answer = TypeVar("Answer")


class ShardReader:
    """Random access to samples; indexes stay in memory, up to 128 shards of a folder stay open.

    Args:
        manifest: The packed data.
        patience: How long a disk or store that does not answer is asked again.
        cache: Where what was read is kept; None: nowhere.
        reads: Questions to a store at once.
        ahead: Calls of `want` whose samples are kept until they are read.

    Attributes:
        bytes_read: Bytes of samples that were handed out, tables and what lies between them included.
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
        self._tables: Tables = {}
        self.bytes_read = 0
        self._ahead = ReadAhead(self._fetched, reads, ahead) if self._store.far else None

    @property
    def far(self) -> bool:
        """Whether it pays to say what will be wanted."""
        return self._ahead is not None

    @property
    def _reads_whole(self) -> bool:
        """Whether there is no use in reading windows: others are wanted of what is kept, or nothing tells what is whole."""
        return self._cache is not None or not self.manifest.checked

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

    def want_windows(self, wanted: Iterable[tuple[int, Stream, Windows]]) -> None:
        """As `want`, of windows of samples."""
        wanted = list(wanted)
        if self._reads_whole:
            for stream in dict.fromkeys(stream for _, stream, _ in wanted):
                self.want([instance for instance, of, _ in wanted if of is stream], [stream])
            return
        if self._ahead is None:
            return
        shards = {int(self.manifest.samples.shard[instance]) for instance, _, _ in wanted}
        self._ahead.together([partial(self._read_index, shard) for shard in sorted(shards - self._indexes.keys())])
        known = [one for one in wanted if int(self.manifest.samples.shard[one[0]]) in self._indexes]
        self._ahead.want_each({one: partial(self._window, *one) for one in known})

    def read_windows(
        self, instance: int, stream: Stream, windows: Windows
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """As `read`, but of the video only the init segment and the fragments that hold some windows; zeros elsewhere.

        Every byte that is read is held against its checksum. A pack without checksums is read whole, and so is one whose
        samples are kept in a cache, for other windows will be wanted of it.

        Raises:
            SampleError, DataError, StorageError: as `read`.
        """
        if self._reads_whole:
            return self.read(instance, stream)
        try:
            coming = self._ahead and self._ahead.coming((instance, stream, windows))
            return self._windows(instance, stream, windows, coming)
        except SampleError:
            self._store.forget(self._span(instance, stream).name)
            self._tables.pop((instance, stream), None)
            return self._windows(instance, stream, windows)

    def _windows(
        self, instance: int, stream: Stream, windows: Windows, coming: Future[Read] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        name = self._span(instance, stream).name  # brings the index
        first = None if coming is None else partial(self._arrived, coming)
        read = self._patiently(name, partial(self._window, instance, stream, windows), first)
        self.bytes_read += read.size
        return read.video, read.table

    def _window(self, instance: int, stream: Stream, windows: Windows) -> Read:
        """The parts of a file that hold some windows; one attempt, of a store on any thread."""
        shard = int(self.manifest.samples.shard[instance])
        read = Windowed(self.manifest, self._indexes[shard], self._tables)
        return read(
            instance, stream, windows, self.manifest.shards[shard].name, lambda part: self._store.read_range(*part)
        )

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
        self.bytes_read += span.size
        first = None if coming is None else lambda: self._arrived(coming)[span]
        return self._patiently(span.name, partial(self._one, span), first)

    def _patiently(self, name: str, ask: Callable[[], Answer], first: Callable[[], Answer] | None) -> Answer:
        """An answer about a file, asked for until it comes; `first` is what is on its way, and counts as an attempt."""
        attempts = iter([] if first is None else [first])
        return self.patience.insist(self._store.said(name), lambda: next(attempts, ask)())

    def _arrived(self, coming: Future[Answer]) -> Answer:
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
