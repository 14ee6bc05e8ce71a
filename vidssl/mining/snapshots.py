"""How does a bank survive? zarr groups `snap-<step>`, written aside and renamed: a reader sees a whole one or none.

A snapshot is of one moment, the one at which it was asked for, and is written while others go on writing to the bank. No codec, because embeddings shrink by a tenth at several times the cost; whole rows in chunks of 65,536. The attributes
hold a hash of every array and one of themselves, and rows are looked at again when they are read: bit rot, a chunk that is
gone or one NaN is never mined from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.files import folder_aside, storage_error
from vidssl.mining.bank import EmbeddingBank, bad_row, fault_in
from vidssl.mining.mapped import NEVER, Fitted, MappedRows
from vidssl.mining.moments import BLOCK_ROWS, Moment
from vidssl.mining.rows import DTYPES, storage
from vidssl.mining.space_files import array_names, space_arrays, space_from, space_words

__all__ = [
    "FORMAT",
    "SnapshotInfo",
    "is_snapshot",
    "latest_snapshot",
    "load_snapshot",
    "read_info",
    "save_snapshot",
    "snapshot_at",
    "snapshot_steps",
    "sweep",
]

FORMAT = 2
_UNHASHED = 1
"""Format without hashes, which is still read."""
CHUNK_ROWS = BLOCK_ROWS
_NAME = re.compile(r"snap-(\d+)$")
_ASIDE = re.compile(r"\.snap-\d+\.(?P<host>.+)-(?P<pid>\d+)-\d+-\d+\.part$")


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot says about itself.

    Attributes:
        step: Optimizer steps done when it was taken (the name's number).
        n_slots: N.
        dim: D.
        views: Names, in order.
        dtype: Of the rows, see `vidssl.mining.rows`.
        bank_step: Newest step whose rows it holds, -1 when empty.
        extra: What the writer added: manifest hash, miner settings.
        sums: sha256 of each array's values; empty in a snapshot of an older version.
        space: Words of the space that it was mined in (see `vidssl.mining.space_files`); empty where rows were mined
            as they are.
    """

    step: int
    n_slots: int
    dim: int
    views: tuple[str, ...]
    dtype: str
    bank_step: int
    extra: Mapping[str, object]
    sums: Mapping[str, str]
    space: Mapping[str, Any] = field(default_factory=dict)


def save_snapshot(
    bank: EmbeddingBank | Moment,
    root: Path,
    step: int,
    keep: int = 2,
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Write `bank` to `root/snap-<step>` and keep the newest `keep` up to this step.

    A snapshot of the same step is replaced (an attempt that failed later may have left it); later ones stay until the
    run gets there again. Everything is on disk before the rename, so a power cut leaves the former state.

    Args:
        bank: As of now, whatever is written to it meanwhile; or a moment of it that was taken before.
        root: Folder of snapshots; made where missing.
        step: Optimizer steps done.
        keep: At least 1.
        extra: JSON values to be read back with it, e.g. manifest hash and miner settings.

    Raises:
        BankError: a row is no finite unit row; nothing was written.
        StorageError: the folder cannot be written; what was written aside is removed and older snapshots stay.
    """
    if isinstance(bank, EmbeddingBank):
        with bank.moment() as moment:
            return save_snapshot(moment, root, step, keep, extra)
    target = root / f"snap-{step}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with folder_aside(target) as aside:
            _write(bank, aside, step, extra or {})
        for former in sorted(found for found in snapshot_steps(root) if found <= step)[: -max(keep, 1)]:
            _discard(root / f"snap-{former}")
    except OSError as error:
        facts = bank.facts
        needed = facts.n_slots * (16 + len(facts.views) * facts.dim * storage(facts.dtype).itemsize)
        raise storage_error(error, target, needed, "older bank snapshots stay") from error
    return target


def load_snapshot(
    path: Path,
    expect: EmbeddingBank | None = None,
    data_hash: str | None = None,
    say: Callable[[str], None] | None = None,
) -> EmbeddingBank:
    """The bank in `path`, every value held against its hash.

    Args:
        path: A snapshot folder.
        expect: Bank whose size, width, views and groups it must have; its dtype is taken over.
        data_hash: Manifest hash that it must name, where it names one.
        say: Told in a sentence that rows are kept in another dtype from here on.

    Raises:
        BankError: unreadable, damaged, of another format, or another bank than expected; the sentence names the
            difference.
    """
    info = read_info(path)
    _refuse_other(path, info, expect, data_hash)
    arrays = _arrays(path, info)
    dtype = info.dtype if expect is None else expect.dtype
    bank = EmbeddingBank(info.n_slots, info.dim, info.views, arrays["group"], dtype)
    if expect is not None and not np.array_equal(bank.group, expect.group):
        raise BankError(f"{path} was written with other groups of videos than this data has; start with an empty bank")
    bank.fill({view: arrays[f"view-{view}"] for view in info.views}, arrays["version"], info.bank_step)
    bank.mapped = _mapped(path, info, expect)
    if (bad := bad_row(bank)) is not None:
        raise BankError(f"{path} is damaged ({bad})")
    if dtype != info.dtype and say is not None:
        how = "exactly" if dtype == "float32" else "rounded"
        say(f"{path.name} holds {info.dtype} rows: this bank keeps them as {dtype}, {how} (mining.bank_dtype)")
    return bank


def read_info(path: Path) -> SnapshotInfo:
    """What a snapshot says about itself, without its rows.

    Raises:
        BankError: no snapshot there, a damaged one, or one of another format.
    """
    import zarr

    try:
        attrs: dict[str, Any] = dict(zarr.open_group(str(path), mode="r", zarr_format=3).attrs)
    except Exception as error:  # zarr raises what its parsers run into
        raise BankError(f"{path} is no readable bank snapshot; name a folder snap-STEP of a run's bank/") from error
    if attrs.get("format") not in (FORMAT, _UNHASHED):
        raise BankError(f"{path} has bank format {attrs.get('format')}, this version reads {FORMAT}")
    try:
        if attrs["format"] == FORMAT and attrs.pop("seal") != _seal(attrs):
            raise BankError(f"{path} is damaged (its description is not the one that was written)")
        return SnapshotInfo(
            step=int(attrs["step"]),
            n_slots=int(attrs["n_slots"]),
            dim=int(attrs["dim"]),
            views=tuple(json.loads(attrs["views"])),
            dtype=str(attrs["dtype"]),
            bank_step=int(attrs["bank_step"]),
            extra=json.loads(attrs["extra"]),
            sums=json.loads(attrs.get("sums", "{}")),
            space=json.loads(attrs.get("space", "{}")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BankError(f"{path} is damaged (its description lacks or spoils {error})") from error


def latest_snapshot(root: Path) -> Path | None:
    """The snapshot with the highest step, which may be damaged; None when there is none."""
    steps = snapshot_steps(root)
    return root / f"snap-{max(steps)}" if steps else None


def snapshot_at(root: Path, step: int) -> Path | None:
    """The snapshot of exactly this step; None when there is none."""
    return root / f"snap-{step}" if step in snapshot_steps(root) else None


def is_snapshot(path: Path) -> bool:
    """Whether a folder is (or was) one snapshot, not a folder of them."""
    return _NAME.match(path.name) is not None or (path / "zarr.json").is_file()


def sweep(root: Path) -> int:
    """Remove what killed writers left; folders of living processes of this machine stay. Returns how many went."""
    gone = 0
    for path in root.iterdir() if root.is_dir() else ():
        match = _ASIDE.match(path.name)
        if match and not (match["host"] == socket.gethostname() and _alive(int(match["pid"]))):
            shutil.rmtree(path, ignore_errors=True)
            gone += 1
    return gone


def _discard(path: Path) -> None:
    # Renamed first: a kill halfway through removing it would leave a torn snapshot under a whole one's name.
    old = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-0-0.part")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def _write(moment: Moment, path: Path, step: int, extra: Mapping[str, object]) -> None:
    import zarr

    group, facts = zarr.open_group(str(path), mode="w", zarr_format=3), moment.facts
    group.create_array("group", data=facts.group, chunks=_chunks(facts.group.shape), compressors=None)
    sums = {"group": _sum(facts.group)} | _write_rows(moment, group, step)
    for name, array in space_arrays(facts.mapped).items():
        group.create_array(name, data=array, chunks=array.shape, compressors=None)
        sums[name] = _sum(array)
    attrs = {
        "format": FORMAT,
        "step": step,
        "bank_step": facts.step,
        "n_slots": facts.n_slots,
        "dim": facts.dim,
        "views": json.dumps(list(facts.views)),
        "dtype": facts.dtype,
        "extra": json.dumps(dict(extra)),
        "sums": json.dumps(sums),
        "space": json.dumps(space_words(facts.mapped)),
    }
    group.attrs.update(attrs | {"seal": _seal(attrs)})


def _write_rows(moment: Moment, group: Any, step: int) -> dict[str, str]:
    facts, arrays, sums = moment.facts, {}, {}
    for part, block in moment.blocks():
        for view in facts.views:
            if bad := fault_in(view, block[f"view-{view}"], block["version"], part.start):
                raise BankError(f"the bank snapshot of step {step} is not written: {bad}; older snapshots stay")
        for name, values in block.items():
            if name not in arrays:
                shape = (facts.n_slots, *values.shape[1:])
                chunks = _chunks(shape)
                arrays[name] = group.create_array(
                    name, shape=shape, dtype=values.dtype, chunks=chunks, compressors=None
                )
                sums[name] = hashlib.sha256()
            arrays[name][part] = values
            sums[name].update(values.data)
    return {name: hashed.hexdigest() for name, hashed in sums.items()}


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (min(shape[0], CHUNK_ROWS), *shape[1:])


def _arrays(path: Path, info: SnapshotInfo) -> dict[str, NDArray[Any]]:
    if info.dtype not in DTYPES:
        raise BankError(f"{path} holds rows of dtype {info.dtype}, this version reads {', '.join(DTYPES)}")
    found = _read(path, ["group", "version", *(f"view-{view}" for view in info.views)], info.sums)
    for name, array in found.items():
        rows = name.startswith("view-")
        wanted = (info.n_slots, info.dim) if rows else (info.n_slots,)
        if array.shape != wanted or array.dtype != (storage(info.dtype) if rows else np.int64):
            raise BankError(f"{path} is damaged ({name} is {array.dtype} of shape {array.shape}, not {wanted})")
    return found


def _read(path: Path, names: list[str], sums: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    import zarr

    try:
        store = zarr.open_group(str(path), mode="r", zarr_format=3).store
        found = {name: np.asarray(zarr.open_array(store=store, path=name, mode="r")[...]) for name in names}
    except Exception as error:  # zarr raises what its parsers run into
        raise BankError(f"{path} is damaged ({type(error).__name__})") from error
    for name, array in found.items():
        if sums and sums.get(name) != _sum(array):
            raise BankError(f"{path} is damaged ({name} is not what was written)")
    return found


def _mapped(path: Path, info: SnapshotInfo, expect: EmbeddingBank | None) -> MappedRows:
    """The space that a run goes on in: the snapshot's, unless another kind is asked for now."""
    asked = info.space.get("asked", "raw")
    former = MappedRows(asked, NEVER) if expect is None else expect.mapped  # who only looks at it does not fit anew
    if former.kind != asked or "kind" not in info.space:
        return former.again()
    return former.again(_fitted(path, info))


def _fitted(path: Path, info: SnapshotInfo) -> Fitted:
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
        found = {
            name: np.asarray(zarr.open_array(store=group.store, path=name, mode="r")[:])
            for name in array_names(info.space)
        }
        if any(info.sums.get(name) != _sum(array) for name, array in found.items()):
            raise ValueError("space")
        return space_from(info.space, found)
    except Exception as error:  # zarr raises what its parsers run into
        raise BankError(f"{path} is damaged (its mining space is not what was written)") from error


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


def snapshot_steps(root: Path) -> list[int]:
    """Steps of all snapshots, damaged ones too, in no order."""
    names = (_NAME.match(path.name) for path in (root.iterdir() if root.is_dir() else ()))
    return [int(match[1]) for match in names if match]


def _sum(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _seal(attrs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attrs, sort_keys=True).encode()).hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
