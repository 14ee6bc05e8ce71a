"""Is a packed folder whole? Every byte of it read once, shards side by side, and whatever changed named by its place."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.patience import ANSWERS, Patience, Say, say_in_log
from pipelines.dataset.place import Address
from pipelines.dataset.reader import DamagedError, SampleError, check_sample
from pipelines.dataset.shards import FLOW, RGB, ShardIndex, Stream, sample_key
from pipelines.dataset.store import Store, open_store
from vidssl.errors import DataError, StorageError

__all__ = ["Damage", "Verified", "verify"]

Answer = TypeVar("Answer")

PATIENCE_S = 20.0
CHUNK = 8 * 2**20


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was packed.

    Attributes:
        file: Name of the shard or index.
        ranges: Bytes of the file, as (first, one after the last); empty: all of it.
        what: What is wrong.
        instance: The sample; -1: no sample of its own (a tar header, an index, a whole file).
        origin: Path of the sample's original; empty without a sample.
    """

    file: str
    ranges: tuple[tuple[int, int], ...]
    what: str
    instance: int = -1
    origin: str = ""

    def __str__(self) -> str:
        """One line: sample, shard, byte range, what is wrong."""
        who = f"sample {sample_key(self.instance)} ({self.origin}) in " if self.instance >= 0 else ""
        where = ", ".join(f"{first}-{stop - 1}" for first, stop in self.ranges)
        return f"{who}{self.file}{f', bytes {where}' if where else ''}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """What was read and found.

    Attributes:
        manifest: What was checked.
        bytes: Bytes read.
        seconds: How long it took.
        damages: By shard and place; empty: all is whole.
    """

    manifest: Manifest
    bytes: int
    seconds: float
    damages: tuple[Damage, ...]

    @property
    def samples(self) -> tuple[int, ...]:
        """Instances of the damaged samples, ascending."""
        return tuple(sorted({damage.instance for damage in self.damages if damage.instance >= 0}))


def verify(root: str | Path | Address, workers: int, say: Say = say_in_log) -> Verified:
    """Read a packed folder whole, on a disk or in a store.

    Args:
        root: The folder, or its address.
        workers: Shards that are read at once.
        say: Told of disks and stores that do not answer.

    Raises:
        DataError: no packed folder, or a manifest that does not belong to its samples.
        StorageError: the store cannot be reached any more, which says nothing of what it holds.
    """
    began = time.perf_counter()
    manifest = load_manifest(root, verify="nothing")
    shared = open_store(manifest.root)
    with ThreadPoolExecutor(min(workers, len(manifest.shards)), "verify") as pool:
        checks = [
            _ShardCheck(manifest, shard, shared if shared.far else open_store(manifest.root), Patience(PATIENCE_S, say))
            for shard in range(len(manifest.shards))
        ]
        damages = [damage for found in pool.map(_ShardCheck.run, checks) for damage in found]
    return Verified(manifest, sum(check.bytes for check in checks), time.perf_counter() - began, tuple(damages))


class _ShardCheck:
    """One shard, from its first byte to its last."""

    def __init__(self, manifest: Manifest, shard: int, store: Store, patience: Patience) -> None:
        self.manifest, self.number, self.shard, self.patience = manifest, shard, manifest.shards[shard], patience
        self.store, self.name, self.bytes = store, self.shard.name, 0
        self._digest, self._first, self._held = hashlib.sha256(), 0, b""

    def run(self) -> list[Damage]:
        """What is wrong with it."""
        try:
            size = self._asked(self.name, lambda: self.store.size(self.name))
        except OSError as error:
            return [Damage(self.name, (), f"cannot be opened ({error.strerror})")]
        self._size = size
        try:
            return self._found()
        finally:
            self._held = b""
            self.store.close()

    def _asked(self, name: str, ask: Callable[[], Answer]) -> Answer:
        """Of a disk every error is an answer; a store that cannot be reached has said nothing."""
        return self.patience.insist(self.store.said(name), ask, ANSWERS if self.store.far else (OSError,))

    def _found(self) -> list[Damage]:
        size = self._size
        found = [] if size == self.shard.bytes else [self._of_size(size)]
        path = self.manifest.index_name(self.number)
        try:
            index = self.manifest.checked_index(self.number, self._asked(path, lambda: self.store.read(path)))
        except (OSError, DataError) as error:
            found.append(Damage(path, (), str(error)))
            self._skim(0, size)
        else:
            found += self._samples(index, size)
        if not found and self._digest.hexdigest() != self.shard.sha256:
            outside = "bytes outside its samples are not what was packed (sha256), which training does not read"
            found.append(Damage(self.shard.name, (), outside if self.manifest.checked else "has changed (sha256)"))
        return found

    def _of_size(self, size: int) -> Damage:
        return Damage(self.shard.name, (), f"has {size} bytes, the manifest says {self.shard.bytes}")

    def _samples(self, index: ShardIndex, size: int) -> Iterator[Damage]:
        place, streams = 0, (RGB,) if self.manifest.flow is None else (RGB, FLOW)
        for row, stream in itertools.product(range(len(index)), streams):
            begin, stop = index.span(row, stream)
            self._skim(place, min(begin, size))
            damage = self._sample(index, row, begin, stop, stream)
            if damage is not None:
                yield damage
            place = min(stop, size)
        self._skim(place, size)

    def _sample(self, index: ShardIndex, row: int, begin: int, stop: int, stream: Stream) -> Damage | None:
        instance = self.manifest.first_of(self.number) + row
        try:
            if self._size < stop:
                self._read(begin, max(self._size - begin, 0))
                raise SampleError("it ends before this sample does")
            span = self._read(begin, stop - begin)
            check_sample(self.manifest, index, instance, span, stream)
            if not self.manifest.checked:
                _check_by_origin(index, row, begin, span)
        except (SampleError, StorageError) as error:
            if isinstance(error, StorageError) and self.store.far:
                raise
            ranges = tuple(error.ranges) if isinstance(error, DamagedError) else ((begin, stop),)
            what = "not what was packed (crc32)" if isinstance(error, DamagedError) else str(error)
            return Damage(self.shard.name, ranges, what, instance, str(self.manifest.samples.name[instance]))
        return None

    def _skim(self, begin: int, stop: int) -> None:
        for place in range(begin, stop, CHUNK):
            self._read(place, min(CHUNK, stop - place))

    def _read(self, begin: int, size: int) -> bytes:
        data = self._ahead(begin, size) if self.store.far else self._part(begin, size)
        self._digest.update(data)
        self.bytes += len(data)
        return data

    def _part(self, begin: int, size: int) -> bytes:
        if not size:
            return b""
        name = self.store.said(self.name)
        return self.patience.insist(name, lambda: self.store.read_range(self.name, begin, size))

    def _ahead(self, begin: int, size: int) -> bytes:
        """The same out of large parts, for it is read from its first byte to its last."""
        if begin + size > self._first + len(self._held):
            self._held = self._part(begin, max(size, min(CHUNK, self._size - begin)))
            self._first = begin
        return self._held[begin - self._first :][:size]


def _check_by_origin(index: ShardIndex, row: int, begin: int, span: bytes) -> None:
    """Packs of format 1 say the sha256 of each video in its `json`."""
    parts = {
        name: span[int(index.offset[name][row]) - begin :][: int(index.size[name][row])] for name in ("mp4", "json")
    }
    try:
        expected = json.loads(parts["json"]).get("sha256")
    except (ValueError, AttributeError) as error:
        raise SampleError("its json is damaged") from error
    if expected and hashlib.sha256(parts["mp4"]).hexdigest() != expected:
        raise SampleError("its video is not what was packed (sha256)")
