"""What is this data set? Shards, samples, classes, splits and one hash of it all.

A packed folder, on a disk or in a store, holds `shard-NNNNN.tar` with `.idx` beside it, `manifest.json`, `samples.npz` (columns by instance) and
`verdicts.csv`. The hash covers everything a training run can see, and neither where it lies nor when it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.fields import Fields, checked_column, read_json
from pipelines.dataset.flow import FlowForm
from pipelines.dataset.patience import Patience, read_whole
from pipelines.dataset.place import Address, address_of
from pipelines.dataset.samples import KINDS, SAMPLES, Samples, columns_of, read_columns
from pipelines.dataset.shards import COMPONENTS, FLOW, ShardIndex, file_sha256, parse_index, sample_key
from pipelines.dataset.store import Store, open_store
from vidssl.errors import DataError
from vidssl.files import written_aside

__all__ = ["FORMAT", "MANIFEST", "Manifest", "Samples", "Shard", "load_manifest", "write_manifest"]

FORMAT = 2
WITH_FLOW = 3
"""The format of packs that hold optical flow: a version that knows none must not take them for damaged."""
UNCHECKED = 1
"""The format of packs that were made before samples had checksums; they are still read."""
MANIFEST = "manifest.json"
CHECKS_AT_ONCE = 16
"""Shards of a store that are looked at together."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Shard:
    """One tar: file name, size in bytes, number of samples, sha256 of the file."""

    name: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """A packed data set.

    Attributes:
        root: Folder that holds it, or its address in a store.
        hash: 16 hexadecimal digits; equal for equal content.
        codec: "h264" or "vp9".
        short_side: Pixels of the shorter side.
        fps: Frames per second of every video; None: each has that of its source (`fps` in its JSON).
        gop: Frames per fragment.
        classes: Class names; labels index them.
        splits: Split names.
        shards: In storage order.
        samples: Columns by instance.
        groups: Number of groups.
        rejected: Videos of the source that were not packed (`verdicts.csv` says why).
        source: Format and place it was packed from; not part of the hash.
        flow: What its optical flow is; None: it has none.
    """

    root: Path | Address
    hash: str
    codec: str
    short_side: int
    fps: float | None
    gop: int
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    shards: tuple[Shard, ...]
    samples: Samples
    groups: int = 0
    rejected: int = 0
    source: Mapping[str, str] = field(default_factory=dict)
    flow: FlowForm | None = None

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.samples)

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Instances of a split in storage order, int64; None: all.

        Raises:
            DataError: there is no such split.
        """
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in self.splits:
            raise DataError(f"{self.root} has no split '{split}'; it has {', '.join(self.splits)}")
        return np.flatnonzero(self.samples.split == self.splits.index(split)).astype(np.int64)

    @property
    def training_split(self) -> str | None:
        """The split that is trained on: `train`; None (all of it) where there is none."""
        return "train" if "train" in self.splits else None

    def training_rows(self) -> NDArray[np.int64]:
        """Instances of the training split in storage order, int64."""
        return self.rows(self.training_split)

    @property
    def checked(self) -> bool:
        """Whether every read of it can be held against a checksum (packs of format 1 have none)."""
        return self.samples.crc is not None

    def first_of(self, shard: int) -> int:
        """Instance of the first sample of a shard."""
        return int(self._first[shard])

    def checked_index(self, shard: int, data: bytes) -> ShardIndex:
        """The index of a shard out of its bytes.

        Raises:
            DataError: no index, or one of other samples or another tar.
        """
        path, wanted = self.root / self.index_name(shard), self.shards[shard]
        index = parse_index(data, str(path))
        keys = tuple(sample_key(self.first_of(shard) + row) for row in range(wanted.samples))
        if index.keys != keys:
            raise DataError(f"{path} names other samples than {keys[0]} … {keys[-1]}; copy it again or pack again")
        if self.flow is not None and not index.has_flow:
            raise DataError(
                f"{path} names no optical flow, which the manifest says there is; copy it again or pack again"
            )
        parts = COMPONENTS + (FLOW.members if self.flow is not None else ())
        begins = np.min([index.offset[name] for name in parts], axis=0)
        stops = np.max([index.offset[name] + index.size[name] for name in parts], axis=0)
        wrong = np.flatnonzero((begins < np.concatenate([[0], stops[:-1]])) | (stops > wanted.bytes))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{path}: the offsets of sample {keys[row]} are {begins[row]} … {stops[row]}, not behind the sample "
                f"before it or not within the {wanted.bytes} bytes of {wanted.name}; copy it again or pack again"
            )
        return index

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard.samples for shard in self.shards)])

    def index_name(self, shard: int) -> str:
        """File name of DALI's index of shard number `shard`."""
        return f"{self.shards[shard].name.removesuffix('.tar')}.idx"

    @property
    def folder(self) -> Path:
        """`root`, where it is a folder.

        Raises:
            DataError: it is an address.
        """
        if isinstance(self.root, Address):
            raise DataError(f"{self.root} lies in a store, and this needs a folder; copy it into one first")
        return self.root

    def shard_path(self, shard: int) -> Path:
        """The tar of shard number `shard`, in a folder."""
        return self.folder / self.shards[shard].name

    def index_path(self, shard: int) -> Path:
        """DALI's index of shard number `shard`, in a folder."""
        return self.folder / self.index_name(shard)


def load_manifest(
    path: str | Path | Address,
    verify: Literal["nothing", "size", "sha256"] = "size",
    patience: Patience | None = None,
) -> Manifest:
    """Read a packed folder, on a disk or in a store, and check that it is whole.

    Args:
        path: The folder or its address (or that of its `manifest.json`).
        verify: "nothing" looks at no shard (a reader waits for one that is away), "size" compares the size of every tar
            and reads its index, "sha256" reads every byte (in a folder).
        patience: For who knows that there was a manifest a moment ago: one that is away is waited for.

    Raises:
        DataError: no manifest, another format, a field that makes no sense, damaged samples, a shard or index that is
            missing or has changed; a store that does not let us, or is none.
        StorageError: the manifest is there and cannot be read, or the store cannot be reached.
    """
    place = address_of(path) or Path(str(path))
    root = place.parent if place.name == MANIFEST else place
    store = open_store(root)
    if patience is not None:
        for name in (MANIFEST, SAMPLES):
            patience.insist(str(root / name), partial(store.size, name))
    tree = _fields(root, store)
    manifest = _manifest(root, tree, read_columns(root / SAMPLES, lambda: store.read(SAMPLES)))
    if content_hash(manifest) != manifest.hash:
        raise DataError(f"{root}: {MANIFEST} and {SAMPLES} do not belong together (hash {manifest.hash}); pack again")
    if verify != "nothing":
        _check_shards(manifest, store, verify)
    return manifest


def write_manifest(manifest: Manifest) -> Manifest:
    """Write `samples.npz`, then `manifest.json`; returns the manifest with its hash.

    Raises:
        OSError: the files cannot be written.
    """
    sealed = replace(manifest, hash=content_hash(manifest))
    with written_aside(sealed.folder / SAMPLES) as stream:
        np.savez_compressed(stream, allow_pickle=False, **columns_of(sealed.samples))
    tree = {
        "format": WITH_FLOW if sealed.flow else FORMAT if sealed.checked else UNCHECKED,
        "hash": sealed.hash,
        **_content(sealed),
        "rejected": sealed.rejected,
        "source": dict(sealed.source),
    }
    with written_aside(sealed.folder / MANIFEST) as stream:
        stream.write((json.dumps(tree, indent=1) + "\n").encode())
    return sealed


def content_hash(manifest: Manifest) -> str:
    """sha256 of what a run can see (not of place, time or rejected videos), first 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(_content(manifest), sort_keys=True).encode())
    for name, column in columns_of(manifest.samples).items():
        text = "\n".join(column.tolist()).encode("utf-8", "surrogatepass") if name == "name" else column.tobytes()
        digest.update(f"{name} {len(column)}\n".encode() + text)
    return digest.hexdigest()[:16]


def _content(manifest: Manifest) -> dict[str, Any]:
    return {
        "codec": manifest.codec,
        "short_side": manifest.short_side,
        "fps": manifest.fps,
        "gop": manifest.gop,
        "classes": list(manifest.classes),
        "groups": manifest.groups,
        "splits": list(manifest.splits),
        "samples": len(manifest),
        "shards": [vars(shard) for shard in manifest.shards],
    } | ({} if manifest.flow is None else {"flow": asdict(manifest.flow)})


def _fields(root: Path | Address, store: Store) -> Fields:
    path = root / MANIFEST
    try:
        tree = read_json(read_whole(str(path), lambda: store.read(MANIFEST)), str(path))
    except OSError as error:
        if store.far and isinstance(error, PermissionError):
            raise DataError(f"{root} cannot be read: {error.strerror}") from error
        why = f"no {MANIFEST}" if isinstance(error, FileNotFoundError) else f"{MANIFEST}: {error.strerror}"
        raise DataError(f"{root} is no packed data ({why}); type: vidssl pack folder VIDEOS {root}") from error
    if not tree.has("format") or tree.number("format", 0) not in (UNCHECKED, FORMAT, WITH_FLOW):
        raise DataError(
            f"{path} is no manifest of format {UNCHECKED}, {FORMAT} or {WITH_FLOW}; pack again with this version"
        )
    return tree


def _manifest(root: Path | Address, tree: Fields, columns: Mapping[str, NDArray[Any]]) -> Manifest:
    classes, splits, shards = tree.texts("classes"), tree.texts("splits"), tuple(map(_shard, tree.objects("shards")))
    rows, groups = sum(shard.samples for shard in shards), tree.number("groups", 0)
    if tree.number("samples", 1) != rows:
        raise DataError(
            f"{root / MANIFEST}: samples is {tree.number('samples', 1)}, its shards hold {rows}; pack again"
        )
    bounds = {
        "shard": (0, len(shards) - 1),
        "label": (-1, len(classes) - 1),
        "group": (0, groups - 1),
        "split": (0, len(splits) - 1),
        "frames": (1, 2**31 - 1),
        "width": (1, 2**15 - 1),
        "height": (1, 2**15 - 1),
        "name": (0, 0),
        "crc": (0, 2**32 - 1),
        "flow_crc": (0, 2**32 - 1),
    }
    version = tree.number("format", 0)
    missing = {UNCHECKED: ("crc", "flow_crc"), FORMAT: ("flow_crc",)}.get(version, ())
    wanted = [name for name in bounds if name not in missing]
    samples = Samples(**{name: checked_column(columns, name, KINDS[name], rows, bounds[name]) for name in wanted})
    stored = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    if (samples.shard != stored).any():
        wrong = int(np.flatnonzero(samples.shard != stored)[0])
        raise DataError(
            f"{SAMPLES}: shard of sample {wrong} is {samples.shard[wrong]}, the shards of {MANIFEST} put it into "
            f"{stored[wrong]}; pack again"
        )
    return Manifest(
        root=root,
        hash=tree.text("hash"),
        codec=tree.text("codec", "h264|vp9", "h264 or vp9"),
        short_side=tree.number("short_side", 1, 2**15 - 1),
        fps=None if tree.is_null("fps") else tree.positive("fps"),
        gop=tree.number("gop", 1, 2**31 - 1),
        classes=classes,
        splits=splits,
        shards=shards,
        samples=samples,
        groups=groups,
        rejected=tree.number("rejected", 0),
        source=tree.words("source"),
        flow=_flow(tree.object("flow")) if version == WITH_FLOW else None,
    )


def _flow(tree: Fields) -> FlowForm:
    return FlowForm(
        algorithm=cast(Any, tree.text("algorithm", "dis|tvl1", "dis or tvl1")),
        encoding=cast(Any, tree.text("encoding", "companded|parity", "companded or parity")),
        size=tree.number("size", 1, 2**15 - 1),
        crf=tree.number("crf", 0, 63),
    )


def _shard(tree: Fields) -> Shard:
    return Shard(
        name=tree.shard_name("name"),
        bytes=tree.number("bytes", 1),
        samples=tree.number("samples", 1, 2**31 - 1),
        sha256=tree.text("sha256", "[0-9a-f]{64}", "64 hexadecimal digits"),
    )


def _check_shards(manifest: Manifest, store: Store, verify: str) -> None:
    numbers = range(len(manifest.shards))
    if not store.far:
        for number in numbers:
            _check_shard(manifest, store, number, verify)
        return
    with ThreadPoolExecutor(min(CHECKS_AT_ONCE, len(numbers)), "manifest") as pool:
        for done in [pool.submit(_check_shard, manifest, store, number, verify) for number in numbers]:
            done.result()


def _check_shard(manifest: Manifest, store: Store, number: int, verify: str) -> None:
    shard, path = manifest.shards[number], manifest.root / manifest.shards[number].name
    size = _asked(path, lambda: store.size(shard.name))
    if size != shard.bytes:
        raise DataError(f"{path} has {size} bytes, the manifest says {shard.bytes}; copy it again or pack again")
    index = manifest.index_name(number)
    manifest.checked_index(number, _asked(manifest.root / index, lambda: store.read(index)))
    if verify == "sha256" and file_sha256(manifest.shard_path(number)) != shard.sha256:
        raise DataError(
            f"{path} has changed since it was packed (sha256 differs); see which samples with `vidssl verify "
            f"{manifest.root}`, then copy it again or pack again"
        )


def _asked(path: Path | Address, ask: Callable[[], Answer]) -> Answer:
    try:
        return read_whole(str(path), ask)
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise DataError(f"{path} is missing; copy it again or pack again") from error
