"""How do samples lie in a tar? Reproducible WebDataset shards and DALI's index beside them.

A sample is four members, in this order: `KEY.mp4`, `KEY.gop` (int32 fragment table and checksums), `KEY.idx` (int64
instance, group, label), `KEY.json`. With optical flow three more follow: `KEY.flow.mp4`, `KEY.flow.gop`, `KEY.flow.json`;
they come last, so that who wants one stream reads its bytes only, and the first four are the same with flow and without.
Owner, mode and time of every member are fixed, so equal samples make equal bytes.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.checksums import sealed
from pipelines.dataset.fmp4 import fragment_table
from vidssl.errors import DataError
from vidssl.files import written_aside

__all__ = [
    "COMPONENTS",
    "FLOW",
    "RGB",
    "ShardIndex",
    "StoredSample",
    "Stream",
    "file_sha256",
    "parse_index",
    "read_index",
    "sample_key",
    "sealed_sample",
    "with_flow",
    "write_index",
    "write_shard",
]

COMPONENTS = ("mp4", "gop", "idx", "json")
"""Members that every sample has."""
INDEX_VERSION = "v1.2"
_REMEDY = "copy it again, or write it with `wds2idx SHARD.tar SHARD.idx`"


@dataclass(frozen=True)
class Stream:
    """The members of one of a sample's streams.

    Attributes:
        video: Fragmented MP4.
        table: Its fragment table and checksums.
        others: What is sealed with it.
    """

    video: str
    table: str
    others: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """All of them, as they lie in the tar."""
        return (self.video, self.table, *self.others)


RGB = Stream("mp4", "gop", ("idx", "json"))
FLOW = Stream("flow.mp4", "flow.gop", ("flow.json",))


@dataclass(frozen=True)
class StoredSample:
    """One sample as bytes.

    Attributes:
        instance: Dense number over all shards; names the members.
        mp4: Fragmented MP4.
        gop: int32 [2·G + 5] fragment table, or with checksums [3·G + 9] (`pipelines.dataset.checksums`).
        idx: int64 [3]: instance, group, label.
        json: UTF-8 JSON object.
        flow_mp4: Fragmented MP4 of the flow; empty: there is none.
        flow_gop: As `gop`, of `flow_mp4` and `flow_json`.
        flow_json: UTF-8 JSON object.
    """

    instance: int
    mp4: bytes
    gop: NDArray[np.int32]
    idx: NDArray[np.int64]
    json: bytes
    flow_mp4: bytes = b""
    flow_gop: NDArray[np.int32] | None = None
    flow_json: bytes = b""

    @property
    def members(self) -> tuple[str, ...]:
        """What it has, in the order of the tar."""
        return COMPONENTS + (FLOW.members if self.flow_mp4 else ())

    def component(self, name: str) -> bytes:
        """The bytes of a member (little-endian for the arrays)."""
        value = getattr(self, name.replace(".", "_"))
        if isinstance(value, np.ndarray):
            return value.astype("<i8" if name == "idx" else "<i4").tobytes()
        return value


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the members of a shard lie.

    Attributes:
        keys: Name of each of the n samples.
        offset: component → int64 [n], first byte in the tar.
        size: component → int64 [n], bytes.
    """

    keys: tuple[str, ...]
    offset: Mapping[str, NDArray[np.int64]]
    size: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.keys)

    @property
    def has_flow(self) -> bool:
        """Whether every sample has its flow here."""
        return FLOW.video in self.offset

    def span(self, row: int, stream: Stream = RGB) -> tuple[int, int]:
        """The bytes from the first to the last component of a stream: (first, one after the last)."""
        begins = [int(self.offset[name][row]) for name in stream.members]
        stops = [begin + int(self.size[name][row]) for name, begin in zip(stream.members, begins, strict=True)]
        return min(begins), max(stops)


def sealed_sample(instance: int, mp4: bytes, idx: NDArray[np.int64], json: bytes) -> StoredSample:
    """A sample with its fragment table and checksums.

    Raises:
        DataError: `mp4` is no fragmented MP4.
    """
    table = fragment_table(mp4)
    gop = sealed(table, mp4, idx.astype("<i8").tobytes(), json)
    return StoredSample(instance, mp4, gop, idx, json)


def with_flow(sample: StoredSample, mp4: bytes, json: bytes) -> StoredSample:
    """The sample with a flow stream beside what it had, its table and checksums made.

    Raises:
        DataError: `mp4` is no fragmented MP4.
    """
    return replace(sample, flow_mp4=mp4, flow_gop=sealed(fragment_table(mp4), mp4, json), flow_json=json)


def sample_key(instance: int) -> str:
    """Name of a sample: eight digits, no dots (a dot would start the extension)."""
    return f"{instance:08d}"


def write_shard(path: Path, samples: Iterable[StoredSample]) -> tuple[int, str]:
    """Write a tar and its `.idx`, each aside and then renamed.

    Returns:
        Bytes and sha256 of the tar.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    from webdataset.writer import TarWriter

    same = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with written_aside(path) as stream, TarWriter(stream, encoder=False, compress=False, **same) as tar:
        # TarWriter sorts the members of one write(); one write per member keeps their order.
        for sample in samples:
            for name in sample.members:
                tar.write({"__key__": sample_key(sample.instance), name: sample.component(name)})
    write_index(path)
    return path.stat().st_size, file_sha256(path)


def write_index(tar: Path) -> Path:
    """Write DALI's index (v1.2, byte-equal to what `wds2idx` makes) beside a tar: `NAME.idx`.

    Returns:
        Path of the index.

    Raises:
        DataError: the tar is damaged or holds no samples.
        OSError: the index cannot be written.
    """
    rows: list[list[str]] = []
    last = None
    try:
        with tarfile.open(tar, "r:") as members:
            for member in members:
                key, _, extension = member.name.partition(".")
                if not member.isfile() or not key:
                    continue
                if key != last:
                    rows.append([])
                    last = key
                rows[-1].append(f"{extension} {member.offset_data} {member.size} {member.name}")
    except tarfile.TarError as error:
        raise DataError(f"{tar.name} is no readable tar ({error}); pack again") from error
    if not rows:
        raise DataError(f"{tar.name} holds no samples; pack again")
    path = tar.with_suffix(".idx")
    with written_aside(path) as stream:
        stream.write(f"{INDEX_VERSION} {len(rows)}\n".encode())
        stream.writelines(f"{' '.join(row)}\n".encode() for row in rows)
    return path


def read_index(tar: Path) -> ShardIndex:
    """Offsets and sizes of a shard's members, from the `.idx` beside it.

    Args:
        tar: Path of the shard (or of its index).

    Raises:
        DataError: the index is missing, of another version, or a sample lacks a component.
    """
    path = tar.with_suffix(".idx")
    if not path.is_file():
        raise DataError(f"{path} is missing; pack again, or write it with `wds2idx {tar.name} {path.name}`")
    return parse_index(path.read_bytes(), path.name)


def parse_index(data: bytes, name: str) -> ShardIndex:
    """As `read_index`, of the bytes of an index called `name`.

    Raises:
        DataError: another version, no text, a sample that lacks a component, an offset or size that is no number.
    """
    head, *lines = data.decode("ascii", "replace").splitlines() or [""]
    if head != f"{INDEX_VERSION} {len(lines)}":
        raise DataError(f"{name} starts with '{head[:40]}'; '{INDEX_VERSION} {len(lines)}' was expected: {_REMEDY}")
    words = [line.split(" ") for line in lines]
    forms = {tuple(row[::4]) if len(row) % 4 == 0 else () for row in words}
    if not all(set(COMPONENTS) <= set(form) for form in forms):
        raise DataError(f"{name}: {_lack(words)}; {_REMEDY}")
    uniform = next(iter(forms)) if len(forms) == 1 else None
    flow = FLOW.members if all(set(FLOW.members) <= set(form) for form in forms) else ()
    offset, size = {}, {}
    for part in COMPONENTS + flow:
        at = [4 * uniform.index(part)] * len(words) if uniform else [4 * row[::4].index(part) for row in words]
        offset[part] = _numbers(name, [row[k + 1] for row, k in zip(words, at, strict=True)], "offset")
        size[part] = _numbers(name, [row[k + 2] for row, k in zip(words, at, strict=True)], "size")
    return ShardIndex(tuple(row[3].partition(".")[0] for row in words), offset, size)


def _lack(words: list[list[str]]) -> str:
    """What the first incomplete line lacks."""
    row = next(row for row in words if len(row) % 4 or not set(COMPONENTS) <= set(row[::4]))
    lacking = [part for part in COMPONENTS if part not in row[::4]]
    parts = ", ".join(lacking) if lacking and len(row) % 4 == 0 else "names and places of its members"
    return f"sample '{row[3] if len(row) > 3 else row[0][:40]}' lacks {parts}"


def _numbers(name: str, found: list[str], what: str) -> NDArray[np.int64]:
    # At most 18 digits: a word with more could not be a place in a file, and would not fit.
    wrong = next((word for word in found if not (word.isdecimal() and len(word) < 19)), None)
    if wrong is not None:
        raise DataError(f"{name}: '{wrong[:40]}' is no {what} of a member (a number from 0 on); {_REMEDY}")
    return np.array([int(word) for word in found], np.int64)


def file_sha256(path: Path) -> str:
    """sha256 of a file as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
