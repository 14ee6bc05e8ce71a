"""What is this data set? Shards, samples, classes, splits and one hash of it all.

A packed folder holds `shard-NNNNN.tar` with `.idx` beside it, `manifest.json`, `samples.npz` (columns by instance) and
`verdicts.csv`. The hash covers everything a training run can see, and neither where it lies nor when it was made.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.shards import file_sha256
from vidssl.errors import DataError
from vidssl.files import written_aside

__all__ = ["FORMAT", "Manifest", "Samples", "Shard", "load_manifest", "write_manifest"]

FORMAT = 1
MANIFEST = "manifest.json"
SAMPLES = "samples.npz"

_KEYS = {"hash", "codec", "short_side", "fps", "gop", "classes", "groups", "splits", "shards", "rejected", "source"}


@dataclass(frozen=True)
class Shard:
    """One tar: file name, size in bytes, number of samples, sha256 of the file."""

    name: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Samples:
    """Columns by instance (the number of a sample in storage order, 0..N-1).

    Attributes:
        shard: int32 [N], which shard holds it.
        label: int32 [N], index into the classes, -1 unknown.
        group: int32 [N], videos cut from one source share it.
        split: int8 [N], index into the splits.
        frames: int32 [N], counted by decoding.
        width: int16 [N], pixels.
        height: int16 [N], pixels.
        name: unicode [N], path of the original, relative to the source.
    """

    shard: NDArray[np.int32]
    label: NDArray[np.int32]
    group: NDArray[np.int32]
    split: NDArray[np.int8]
    frames: NDArray[np.int32]
    width: NDArray[np.int16]
    height: NDArray[np.int16]
    name: NDArray[np.str_]

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.label)


@dataclass(frozen=True, eq=False)
class Manifest:
    """A packed data set.

    Attributes:
        root: Folder that holds it.
        hash: 16 hexadecimal digits; equal for equal content.
        codec: "h264" or "vp9".
        short_side: Pixels of the shorter side.
        fps: Frames per second of every video.
        gop: Frames per fragment.
        classes: Class names; labels index them.
        splits: Split names.
        shards: In storage order.
        samples: Columns by instance.
        groups: Number of groups.
        rejected: Videos of the source that were not packed (`verdicts.csv` says why).
        source: Format and place it was packed from; not part of the hash.
    """

    root: Path
    hash: str
    codec: str
    short_side: int
    fps: float
    gop: int
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    shards: tuple[Shard, ...]
    samples: Samples
    groups: int = 0
    rejected: int = 0
    source: Mapping[str, str] = field(default_factory=dict)

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

    def training_rows(self) -> NDArray[np.int64]:
        """Instances that are trained on, in storage order, int64: the split `train`, or all where there is none."""
        return self.rows("train" if "train" in self.splits else None)

    def shard_path(self, shard: int) -> Path:
        """The tar of shard number `shard`."""
        return self.root / self.shards[shard].name

    def index_path(self, shard: int) -> Path:
        """DALI's index of shard number `shard`."""
        return self.shard_path(shard).with_suffix(".idx")


def load_manifest(path: str | Path, verify: Literal["size", "sha256"] = "size") -> Manifest:
    """Read a packed folder and check that it is whole.

    Args:
        path: The folder (or its `manifest.json`).
        verify: "size" compares the size of every tar, "sha256" reads every byte.

    Raises:
        DataError: no manifest, another format, damaged samples, a shard or index that is missing or has changed.
    """
    root = Path(path).parent if Path(path).name == MANIFEST else Path(path)
    tree = _read_json(root)
    samples = _read_samples(root / SAMPLES)
    manifest = Manifest(
        root=root,
        hash=tree["hash"],
        codec=tree["codec"],
        short_side=tree["short_side"],
        fps=tree["fps"],
        gop=tree["gop"],
        classes=tuple(tree["classes"]),
        splits=tuple(tree["splits"]),
        shards=tuple(Shard(**shard) for shard in tree["shards"]),
        samples=samples,
        groups=tree["groups"],
        rejected=tree["rejected"],
        source=tree["source"],
    )
    if content_hash(manifest) != manifest.hash:
        raise DataError(f"{root}: {MANIFEST} and {SAMPLES} do not belong together (hash {manifest.hash}); pack again")
    for number in range(len(manifest.shards)):
        _check_shard(manifest, number, verify)
    return manifest


def write_manifest(manifest: Manifest) -> Manifest:
    """Write `samples.npz`, then `manifest.json`; returns the manifest with its hash.

    Raises:
        OSError: the files cannot be written.
    """
    sealed = replace(manifest, hash=content_hash(manifest))
    with written_aside(sealed.root / SAMPLES) as stream:
        np.savez_compressed(stream, allow_pickle=False, **_columns(sealed.samples))
    tree = {
        "format": FORMAT,
        "hash": sealed.hash,
        **_content(sealed),
        "rejected": sealed.rejected,
        "source": dict(sealed.source),
    }
    with written_aside(sealed.root / MANIFEST) as stream:
        stream.write((json.dumps(tree, indent=1) + "\n").encode())
    return sealed


def content_hash(manifest: Manifest) -> str:
    """sha256 of what a run can see (not of place, time or rejected videos), first 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(_content(manifest), sort_keys=True).encode())
    for name, column in _columns(manifest.samples).items():
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
    }


def _columns(samples: Samples) -> dict[str, NDArray[Any]]:
    return {column.name: getattr(samples, column.name) for column in fields(Samples)}


def _read_json(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{root} is no packed data (no {MANIFEST}); type: vidssl pack folder VIDEOS {root}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); pack again") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or _KEYS - tree.keys():
        raise DataError(f"{path} is no manifest of format {FORMAT}; pack again with this version")
    return tree


def _read_samples(path: Path) -> Samples:
    try:
        with np.load(path, allow_pickle=False) as columns:
            return Samples(**{column.name: columns[column.name] for column in fields(Samples)})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is missing or damaged; pack again") from error


def _check_shard(manifest: Manifest, number: int, verify: str) -> None:
    shard, path = manifest.shards[number], manifest.shard_path(number)
    for needed in (path, manifest.index_path(number)):
        if not needed.is_file():
            raise DataError(f"{needed} is missing; copy it again or pack again")
    if (size := path.stat().st_size) != shard.bytes:
        raise DataError(f"{path} has {size} bytes, the manifest says {shard.bytes}; copy it again or pack again")
    if verify == "sha256" and file_sha256(path) != shard.sha256:
        raise DataError(f"{path} has changed since it was packed (sha256 differs); copy it again or pack again")
