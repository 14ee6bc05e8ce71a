"""Where are the vectors of a data set kept? One zarr store: features and embeddings by view, who they are, how they were made.

Arrays: `feature/VIEW` float32 [N, F], `embedding/VIEW` float32 [N, D], `instance`, `group`, `label` int64 [N], `split`,
`name` text [N]; the attributes hold the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import CheckpointError, DataError
from vidssl.files import check_place, storage_error
from vidssl.zarr_aside import zarr_aside

__all__ = ["Embedded", "load_embeddings", "refuse_no_store", "save_embeddings"]

FORMAT: Final = 1
_ROWS_PER_CHUNK: Final = 4096
_INSTEAD: Final = "give another out="
_COLUMNS: Final = ("instance", "group", "label")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Vectors of N videos.

    Attributes:
        feature: view → float32 [N, F], mean over a video's windows of the unit pooled backbone features.
        embedding: view → float32 [N, D] unit rows, mean over the windows of the unit head outputs, made unit again.
        instance: int64 [N], rows of the manifest.
        group: int64 [N].
        label: int64 [N], -1 unknown.
        split: [N] names of the splits.
        name: [N] paths of the originals, relative to the source.
        protocol: What is needed to make these vectors again (plain JSON values).
    """

    feature: Mapping[str, NDArray[np.float32]]
    embedding: Mapping[str, NDArray[np.float32]]
    instance: NDArray[np.int64]
    group: NDArray[np.int64]
    label: NDArray[np.int64]
    split: NDArray[np.str_]
    name: NDArray[np.str_]
    protocol: Mapping[str, Any]

    def __len__(self) -> int:
        """N, the number of videos."""
        return len(self.instance)


def save_embeddings(store: Embedded, path: Path) -> Path:
    """Write `store` aside and rename it to `path`, so that a reader sees the old store or the whole new one.

    Raises:
        DataError: as `refuse_no_store`.
        StorageError: the disk is full or cannot be written; a former store stays.
    """
    refuse_no_store(path)
    vectors = [*store.feature.values(), *store.embedding.values()]
    try:
        with zarr_aside(path) as aside:
            _write_store(store, aside)
    except OSError as error:
        raise storage_error(error, path, sum(rows.nbytes for rows in vectors), _INSTEAD) from error
    return path


def refuse_no_store(path: Path) -> None:
    """Refuse a place where vectors could not be stored, before they are made.

    Raises:
        DataError: `path` exists and is no store of embeddings, or lies below a file.
        StorageError: the disk cannot be written.
    """
    if path.exists() and not _is_store(path):
        raise DataError(f"{path} exists and is no store of embeddings; give another out=")
    check_place(path, _INSTEAD)


def _write_store(store: Embedded, folder: Path) -> None:
    import zarr

    root = zarr.open_group(str(folder), mode="w")
    for kind, views in (("feature", store.feature), ("embedding", store.embedding)):
        for view, rows in views.items():
            _write(root, f"{kind}/{view}", np.asarray(rows, np.float32))
    for column in _COLUMNS:
        _write(root, column, np.asarray(getattr(store, column), np.int64))
    _write(root, "split", store.split)
    _write(root, "name", store.name)
    root.attrs.update({"format": FORMAT, "kind": "vidssl.embeddings", "protocol": dict(store.protocol)})


def load_embeddings(path: Path) -> Embedded:
    """Read a store that `save_embeddings` wrote.

    Raises:
        CheckpointError: there is no store, it is damaged, or of another format.
    """
    import zarr

    if not _is_store(path):
        raise CheckpointError(f"{path} is no store of embeddings; make one with: vidssl embed RUN out={path}")
    try:
        root = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(root.attrs)
        found = attributes.get("format")
        store = _read_store(root, attributes) if found == FORMAT else None
    except Exception as error:  # zarr raises what its parsers run into
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}); embed again") from error
    if store is None:
        raise CheckpointError(f"{path} is of format {found}, this version reads {FORMAT}; embed again")
    return store


def _read_store(root: Any, attributes: Mapping[str, Any]) -> Embedded:
    return Embedded(
        feature={view: _read(root, f"feature/{view}") for view in _views(root, "feature")},
        embedding={view: _read(root, f"embedding/{view}") for view in _views(root, "embedding")},
        **{column: _read(root, column) for column in _COLUMNS},
        split=_text(root, "split"),
        name=_text(root, "name"),
        protocol=attributes["protocol"],
    )


def _is_store(path: Path) -> bool:
    return (path / "zarr.json").is_file() and (path / "instance").is_dir()


def _views(root: Any, kind: str) -> list[str]:
    return sorted(root[kind].keys()) if kind in root else []


def _read(root: Any, key: str) -> NDArray[Any]:
    return np.asarray(root[key][:])


def _text(root: Any, key: str) -> NDArray[np.str_]:
    return np.array([str(word) for word in root[key][:]], dtype=np.str_)


def _write(root: Any, key: str, rows: NDArray[Any]) -> None:
    text = rows.dtype.kind in "UOT"
    chunks = (max(1, min(_ROWS_PER_CHUNK, len(rows))), *rows.shape[1:])
    array = root.create_array(key, shape=rows.shape, dtype=str if text else rows.dtype, chunks=chunks)
    array[:] = rows
