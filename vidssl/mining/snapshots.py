"""How does a bank survive? zarr groups `snap-<step>`, written aside and renamed: a reader sees a whole one or none.

No codec, because embeddings shrink by a tenth at several times the cost; whole rows in chunks of 65,536.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank

__all__ = [
    "FORMAT",
    "SnapshotInfo",
    "latest_snapshot",
    "load_snapshot",
    "read_info",
    "save_snapshot",
    "snapshot_at",
    "sweep",
]

FORMAT = 1
CHUNK_ROWS = 65536

_NAME = re.compile(r"snap-(\d+)$")
_ASIDE = re.compile(r"snap-\d+\.(tmp|old)-(\d+)-\d+$")


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot says about itself.

    Attributes:
        step: Optimizer steps done when it was taken (the name's number).
        n_slots: N.
        dim: D.
        views: Names, in order.
        dtype: "float32" or "float16".
        bank_step: Newest step whose rows it holds, -1 when empty.
        extra: What the writer added: manifest hash, miner settings.
    """

    step: int
    n_slots: int
    dim: int
    views: tuple[str, ...]
    dtype: str
    bank_step: int
    extra: Mapping[str, object]


def save_snapshot(
    bank: EmbeddingBank, root: Path, step: int, keep: int = 2, extra: Mapping[str, object] | None = None
) -> Path:
    """Write `bank` to `root/snap-<step>` and keep the newest `keep` up to this step.

    A snapshot of the same step is replaced (an attempt that failed later may have left it); later ones stay until the
    run gets there again. Everything is on disk before the rename, so a power cut leaves the former state.

    Args:
        bank: Copied row by row while it is written; give a `twin()` of a bank that others write to.
        root: Folder of snapshots; made where missing.
        step: Optimizer steps done.
        keep: At least 1.
        extra: JSON values to be read back with it, e.g. manifest hash and miner settings.

    Raises:
        BankError: the folder cannot be written.
    """
    aside, target = root / f"snap-{step}.tmp-{os.getpid()}-{time.monotonic_ns()}", root / f"snap-{step}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write(bank, aside, step, extra or {})
        _to_disk(aside)
        if target.exists():
            _discard(target)
        os.rename(aside, target)
        _sync(root)
        for former in sorted(found for found in _steps(root) if found <= step)[: -max(keep, 1)]:
            _discard(root / f"snap-{former}")
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise BankError(f"the bank snapshot {target} cannot be written: {error.strerror}") from error
    return target


def load_snapshot(path: Path, expect: EmbeddingBank | None = None, data_hash: str | None = None) -> EmbeddingBank:
    """The bank in `path`.

    Args:
        path: A snapshot folder.
        expect: Bank whose size, width, views and groups it must have; its dtype is taken over.
        data_hash: Manifest hash that it must name, where it names one.

    Raises:
        BankError: unreadable, of another format, or another bank than expected; the sentence names the difference.
    """
    info = read_info(path)
    _refuse_other(path, info, expect, data_hash)
    dtype = info.dtype if expect is None else expect.dtype.name
    arrays = _arrays(path, info.views)
    bank = EmbeddingBank(info.n_slots, info.dim, info.views, arrays["group"], dtype)
    if expect is not None and not np.array_equal(bank.group, expect.group):
        raise BankError(f"{path} was written with other groups of videos than this data has; start with an empty bank")
    for view, table in bank.views.items():
        table[:] = arrays[f"view-{view}"]
    bank.version[:] = arrays["version"]
    bank.step = info.bank_step
    _refuse_torn(path, bank)
    return bank


def read_info(path: Path) -> SnapshotInfo:
    """What a snapshot says about itself, without its rows.

    Raises:
        BankError: no snapshot there, or of another format.
    """
    import zarr

    try:
        attrs = dict(zarr.open_group(str(path), mode="r", zarr_format=3).attrs)
    except (OSError, ValueError, KeyError) as error:
        raise BankError(f"{path} is no readable bank snapshot; name a folder snap-STEP of a run's bank/") from error
    if attrs.get("format") != FORMAT:
        raise BankError(f"{path} has bank format {attrs.get('format')}, this version reads {FORMAT}")
    return SnapshotInfo(
        step=int(str(attrs["step"])),
        n_slots=int(str(attrs["n_slots"])),
        dim=int(str(attrs["dim"])),
        views=tuple(json.loads(str(attrs["views"]))),
        dtype=str(attrs["dtype"]),
        bank_step=int(str(attrs["bank_step"])),
        extra=json.loads(str(attrs["extra"])),
    )


def latest_snapshot(root: Path) -> Path | None:
    """The snapshot with the highest step; None when there is none."""
    steps = _steps(root)
    return root / f"snap-{max(steps)}" if steps else None


def snapshot_at(root: Path, step: int) -> Path | None:
    """The snapshot of exactly this step; None when there is none."""
    return root / f"snap-{step}" if step in _steps(root) else None


def sweep(root: Path) -> int:
    """Remove what killed writers left; folders of living processes of this machine stay. Returns how many went."""
    gone = 0
    for path in root.iterdir() if root.is_dir() else ():
        match = _ASIDE.match(path.name)
        if match and not _alive(int(match[2])):
            shutil.rmtree(path, ignore_errors=True)
            gone += 1
    return gone


def _discard(path: Path) -> None:
    # Renamed first: a kill halfway through removing it would leave a torn snapshot under a whole one's name.
    old = path.with_name(f"{path.name}.old-{os.getpid()}-{time.monotonic_ns()}")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def _write(bank: EmbeddingBank, path: Path, step: int, extra: Mapping[str, object]) -> None:
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    for name, array in bank.state().items():
        chunks = (min(bank.n_slots, CHUNK_ROWS), *array.shape[1:])
        group.create_array(name, data=array, chunks=chunks, compressors=None)
    group.attrs.update(
        format=FORMAT,
        step=step,
        bank_step=bank.step,
        n_slots=bank.n_slots,
        dim=bank.dim,
        views=json.dumps(list(bank.views)),
        dtype=bank.dtype.name,
        extra=json.dumps(dict(extra)),
    )


def _arrays(path: Path, views: tuple[str, ...]) -> dict[str, np.ndarray]:
    import zarr

    names = ("group", "version", *(f"view-{view}" for view in views))
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
        return {name: np.asarray(zarr.open_array(store=group.store, path=name, mode="r")[:]) for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise BankError(
            f"{path} is damaged ({type(error).__name__}); use an older snapshot or an empty bank"
        ) from error


def _refuse_other(path: Path, info: SnapshotInfo, expect: EmbeddingBank | None, data_hash: str | None) -> None:
    known = info.extra.get("data_hash")
    if data_hash is not None and known is not None and known != data_hash:
        raise BankError(f"{path} belongs to data {known}, this run has {data_hash}; start with an empty bank")
    if expect is None:
        return
    pairs = (
        ("slots", info.n_slots, expect.n_slots),
        ("width", info.dim, expect.dim),
        ("views", sorted(info.views), sorted(expect.views)),
    )
    for word, found, wanted in pairs:
        if found != wanted:
            raise BankError(f"{path} has {word} {found}, this run needs {wanted}; start with an empty bank")


def _refuse_torn(path: Path, bank: EmbeddingBank) -> None:
    # A chunk file that is gone reads as zeros without a word; filled slots hold unit rows.
    filled = bank.version >= 0
    for view, table in bank.views.items():
        for a in range(0, bank.n_slots, CHUNK_ROWS):
            part = slice(a, a + CHUNK_ROWS)
            missing = filled[part] & (np.count_nonzero(table[part], axis=1) == 0)
            if missing.any():
                raise BankError(f"{path} is damaged ({view} lacks rows); use an older snapshot or an empty bank")


def _steps(root: Path) -> list[int]:
    names = (_NAME.match(path.name) for path in (root.iterdir() if root.is_dir() else ()))
    return [int(match[1]) for match in names if match]


def _to_disk(folder: Path) -> None:
    for here, _, files in os.walk(folder):
        for name in files:
            _sync(Path(here) / name)
        _sync(Path(here))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
