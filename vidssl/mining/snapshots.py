"""How does a bank survive? zarr groups `snap-<step>`, written aside and renamed: a reader sees a whole one or none.

A snapshot is of one moment, the one at which it was asked for, and is written while others go on writing to the bank. No
codec, because embeddings shrink by a tenth at several times the cost; whole rows in chunks of 65,536, by each shard of a
bank in a folder of its own (see `vidssl.mining.parts`). The attributes hold a hash of every array and one of themselves, and
rows are looked at again when they are read: bit rot, a chunk or a part that is gone or one NaN is never mined from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.files import process_lives, storage_error
from vidssl.mining.bank import EmbeddingBank, bad_row
from vidssl.mining.mapped import NEVER, Fitted, MappedRows
from vidssl.mining.moments import Facts, Moment
from vidssl.mining.parts import RowsPart, array_sum, chunks, read_group, read_range, write_rows
from vidssl.mining.rows import storage
from vidssl.mining.space_files import array_names, space_arrays, space_from, space_words
from vidssl.zarr_aside import zarr_aside

__all__ = [
    "FORMAT",
    "Expected",
    "InParts",
    "SnapshotInfo",
    "fitting_info",
    "is_snapshot",
    "latest_snapshot",
    "load_rows",
    "load_snapshot",
    "other_dtype",
    "read_info",
    "save_snapshot",
    "snapshot_at",
    "snapshot_steps",
    "space_of",
    "sweep",
]

FORMAT = 2
_UNHASHED = 1
"""Format without hashes, which is still read."""
_PARTED = 3
"""Format of a bank in shards."""
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
        sums: sha256 of each array's values that is in no part; empty in a snapshot of an older version.
        parts: Where the rows lie.
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
    parts: Sequence[RowsPart]
    space: Mapping[str, Any] = field(default_factory=dict)


class Expected(Protocol):
    """The bank that is to have a snapshot's rows; an `EmbeddingBank`, or what stands for rows elsewhere."""

    n_slots: int
    dim: int
    dtype: str
    group: NDArray[np.int64]
    mapped: MappedRows

    @property
    def views(self) -> Collection[str]:
        """Names."""
        ...


class InParts(Protocol):
    """A moment of a bank whose rows lie elsewhere.

    Attributes:
        facts: Of the whole bank.
    """

    facts: Facts

    def write(self, path: Path, step: int) -> Sequence[RowsPart]:
        """Have each shard write its part into a folder below `path`; returns when all have.

        Raises:
            BankError: a row is no finite unit row.
            StorageError: a shard does not answer, or cannot write.
        """
        ...


def save_snapshot(
    bank: EmbeddingBank | Moment | InParts,
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
        with zarr_aside(target) as aside:
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
    info, group = fitting_info(path, expect, data_hash)
    dtype = info.dtype if expect is None else expect.dtype
    bank = load_rows(path, info, 0, info.n_slots, dtype, group)
    bank.mapped, bank.step = space_of(path, info, expect), info.bank_step
    if say is not None and (other := other_dtype(path, info, dtype)):
        say(other)
    return bank


def fitting_info(
    path: Path, expect: Expected | None = None, data_hash: str | None = None
) -> tuple[SnapshotInfo, NDArray[np.int64]]:
    """What a snapshot says about itself, and its groups, held against the bank that is to have its rows.

    Raises:
        BankError: as `load_snapshot`, but for the rows, which are not read.
    """
    info = read_info(path)
    _refuse_other(path, info, expect, data_hash)
    group = read_group(path, info.n_slots, info.sums)
    if expect is not None and not np.array_equal(group, expect.group):
        raise BankError(f"{path} was written with other groups of videos than this data has; start with an empty bank")
    return info, group


def load_rows(
    path: Path, info: SnapshotInfo, start: int, stop: int, dtype: str, group: NDArray[np.int64] | None = None
) -> EmbeddingBank:
    """Slots start..stop-1 of a snapshot as a bank of their own, every value held against its hash.

    Raises:
        BankError: damaged.
    """
    views = dict.fromkeys(info.views, (info.dtype, info.dim))
    arrays = read_range(path, info.parts, views, start, stop)
    bank, version = EmbeddingBank(stop - start, info.dim, info.views, group, dtype), arrays["version"]
    bank.fill({view: arrays[f"view-{view}"] for view in info.views}, version, int(version.max()))
    if (bad := bad_row(bank, start)) is not None:
        raise BankError(f"{path} is damaged ({bad})")
    return bank


def other_dtype(path: Path, info: SnapshotInfo, dtype: str) -> str:
    """The sentence about rows that are kept in another dtype from here on; "" where they are not."""
    if dtype == info.dtype:
        return ""
    how = "exactly" if dtype == "float32" else "rounded"
    return f"{path.name} holds {info.dtype} rows: this bank keeps them as {dtype}, {how} (mining.bank_dtype)"


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
    if attrs.get("format") not in (FORMAT, _UNHASHED, _PARTED):
        raise BankError(f"{path} has bank format {attrs.get('format')}, this version reads {FORMAT}")
    try:
        if attrs["format"] != _UNHASHED and attrs.pop("seal") != _seal(attrs):
            raise BankError(f"{path} is damaged (its description is not the one that was written)")
        n_slots, sums = int(attrs["n_slots"]), json.loads(attrs.get("sums", "{}"))
        parts = [RowsPart(**part) for part in json.loads(attrs["parts"])] if attrs["format"] == _PARTED else None
        return SnapshotInfo(
            step=int(attrs["step"]),
            n_slots=n_slots,
            dim=int(attrs["dim"]),
            views=tuple(json.loads(attrs["views"])),
            dtype=str(attrs["dtype"]),
            bank_step=int(attrs["bank_step"]),
            extra=json.loads(attrs["extra"]),
            sums=sums,
            parts=parts or [RowsPart("", 0, n_slots, sums)],
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
        if match and not (match["host"] == socket.gethostname() and process_lives(int(match["pid"]))):
            shutil.rmtree(path, ignore_errors=True)
            gone += 1
    return gone


def _discard(path: Path) -> None:
    # Renamed first: a kill halfway through removing it would leave a torn snapshot under a whole one's name.
    old = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-0-0.part")
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def _write(moment: Moment | InParts, path: Path, step: int, extra: Mapping[str, object]) -> None:
    import zarr

    group, facts = zarr.open_group(str(path), mode="w", zarr_format=3), moment.facts
    group.create_array("group", data=facts.group, chunks=chunks(facts.group.shape), compressors=None)
    sums, parts = {"group": array_sum(facts.group)}, {}
    if isinstance(moment, Moment):
        sums |= write_rows(moment, group, step)
    else:
        parts = {"parts": json.dumps([asdict(part) for part in moment.write(path, step)])}
    for name, array in space_arrays(facts.mapped).items():
        group.create_array(name, data=array, chunks=array.shape, compressors=None)
        sums[name] = array_sum(array)
    attrs = {
        "format": _PARTED if parts else FORMAT,
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
    attrs |= parts
    group.attrs.update(attrs | {"seal": _seal(attrs)})


def space_of(path: Path, info: SnapshotInfo, expect: Expected | None = None) -> MappedRows:
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
        if any(info.sums.get(name) != array_sum(array) for name, array in found.items()):
            raise ValueError("space")
        return space_from(info.space, found)
    except Exception as error:  # zarr raises what its parsers run into
        raise BankError(f"{path} is damaged (its mining space is not what was written)") from error


def _refuse_other(path: Path, info: SnapshotInfo, expect: Expected | None, data_hash: str | None) -> None:
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


def _seal(attrs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attrs, sort_keys=True).encode()).hexdigest()
