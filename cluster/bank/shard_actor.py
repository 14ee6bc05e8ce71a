"""A shard as a Ray actor: a range of the slots in a process of its own, on any node.

It takes pushes and hands out rows on other threads than the one that mines, so that nobody waits for mining. It may die at
any time: Ray starts it again, and it is told to take its rows from the newest whole snapshot of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.bank.miner import settle_threads, thread_variables
from cluster.bank.recovery import LIVE
from cluster.bank.spec import BankSpec
from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.files import storage_error, sync_tree
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.mapped import Fitted, MappedRows
from vidssl.mining.moments import Moment
from vidssl.mining.parts import RowsPart, write_part
from vidssl.mining.plan import CascadePlan
from vidssl.mining.reopen import newest_loaded
from vidssl.mining.rows import floats, storage, table
from vidssl.mining.shard import Part, Shard
from vidssl.mining.shards import cut_points
from vidssl.mining.snapshots import load_rows, read_info

__all__ = ["RECOVER", "Asked", "Opened", "ShardActor", "ShardIsNew", "Written", "start_actors"]

RECOVER = "newest"
"""Source of a shard's rows: the newest whole snapshot of the run, or nothing."""
_OWN_BYTES = 400 * 2**20  # Python, torch and the engine's scores

Ids = NDArray[np.int64]


class ShardIsNew(ConnectionError):
    """The process was started again and holds nothing of that bank."""


@dataclass(frozen=True)
class Opened:
    """What a shard begins with.

    Attributes:
        version: int64 [size], step of each row's write.
        said: Where the rows are from, in words, with what was passed over; only of `RECOVER`.
    """

    version: Ids
    said: str = ""


@dataclass(frozen=True)
class Written:
    """One part of a snapshot, and what it took."""

    part: RowsPart
    kept_rows: int
    most_bytes: int


@dataclass(frozen=True)
class Asked:
    """By whom and how rows are compared.

    Attributes:
        bank: Number of the bank.
        plan: Of the whole bank.
        main: Name of the view that mines first.
        aux: Of the trained one.
    """

    bank: int
    plan: CascadePlan
    main: str
    aux: str

    @property
    def compared(self) -> CascadePlan:
        """The plan on the tables that are compared: where both views are one table, there is one view."""
        return replace(self.plan, strategy="single") if self.plan.traits.joins else self.plan


class ShardActor:
    """Some slots of a run's bank.

    Args:
        spec: The run's bank.
        first: First slot.
        size: How many.
    """

    def __init__(self, spec: BankSpec, first: int, size: int) -> None:
        settle_threads(max(1, spec.cpus_per_shard))
        self._spec, self._first, self._size = spec, first, size
        self._banks: dict[int, EmbeddingBank] = {}
        self._over: set[int] = set()
        self._moments: dict[int, Moment] = {}
        self._made = 0
        self._shard = Shard(first, size)

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def open(self, number: int, source: str | None) -> Opened:
        """Begin a bank.

        Args:
            number: What it is called; one of the same number is replaced.
            source: None: no rows; a snapshot; or `RECOVER`.

        Raises:
            BankError: the snapshot is damaged.
        """
        said = ""
        if source == RECOVER:
            bank, said = self._recovered()
        else:
            bank = self._empty() if source is None else self._loaded(Path(source))
        if self._spec.space != "raw":
            bank.mapped = MappedRows(self._spec.space)
            bank.mapped.follow(None)  # it is fitted on all shards' rows, elsewhere
        if number not in self._over:
            self._banks[number] = bank
        return Opened(bank.version.copy(), said)

    @ray.method(concurrency_group="ctl")
    def forget(self, numbers: Sequence[int]) -> None:
        """These banks are over, and are not begun any more."""
        self._over.update(numbers)
        for number in numbers:
            self._banks.pop(number, None)

    @ray.method(concurrency_group="ctl")
    def held(self) -> list[int]:
        """Numbers of the banks that it holds."""
        return list(self._banks)

    @ray.method(concurrency_group="io")
    def push(self, number: int, rows: Embeddings) -> None:
        """As `EmbeddingBank.push`; instances are slots of this shard."""
        self._bank(number).push(rows)

    @ray.method(concurrency_group="io")
    def rewind(self, number: int, step: int) -> None:
        """As `EmbeddingBank.rewind`."""
        self._bank(number).rewind(step)

    @ray.method(concurrency_group="read")
    def vectors(self, number: int, slots: Ids, view: str) -> NDArray[np.float32]:
        """As `EmbeddingBank.vectors`, of slots of this shard."""
        return self._bank(number).vectors(slots, view)

    @ray.method(concurrency_group="mine")
    def follow(self, number: int, fitted: Fitted | None) -> None:
        """Mine in this space from here on."""
        self._bank(number).mapped.follow(fitted)

    @ray.method(concurrency_group="mine")
    def compared(self, asked: Asked, slots: Ids) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Rows of slots of this shard as they are compared, of each view, and which there are."""
        tables, names, valid = self._bank(asked.bank).compared(asked.plan, asked.main, asked.aux)
        return [floats(tables[name][slots]) for name in names], valid[slots]

    @ray.method(concurrency_group="mine")
    def run(self, asked: Asked, queries: Sequence[NDArray] | None, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Any:
        """Methods of `Shard`, one after the other; returns what the last one does.

        Args:
            asked: See there.
            queries: [B, D] of each view, where one of the calls is "scan" or "begin".
            calls: Names and arguments; those of the two begin behind the part.
        """
        found = None
        for name, given in calls:
            if name in ("scan", "begin"):
                assert queries is not None  # for the type checker
                # Copied: what comes from Ray is read-only, and other products are taken of that.
                rows, part = [np.array(query) for query in queries], self._part(asked, len(queries))
                more = (max(1, self._spec.cpus_per_shard),) if name == "scan" else ()
                found = getattr(self._shard, name)(rows, part, asked.compared, *given, *more)
            else:
                found = getattr(self._shard, name)(*given)
        return found

    @ray.method(concurrency_group="ctl")
    def moment(self, number: int) -> int:
        """Begin a snapshot of now; returns what it is called."""
        self._made += 1
        self._moments[self._made] = self._bank(number).moment()
        return self._made

    @ray.method(concurrency_group="save")
    def write(self, moment: int, path: str, step: int) -> Written:
        """Write this shard's part of a snapshot.

        Raises:
            BankError: a row is no finite unit row.
            StorageError: it cannot be written.
        """
        if moment not in self._moments:
            raise ShardIsNew("no such moment")
        with self._moments.pop(moment) as kept:
            try:
                part = write_part(kept, Path(path), self._first, step)
                sync_tree(Path(path))
            except OSError as error:
                raise storage_error(error, Path(path), instead="older bank snapshots stay") from error
            return Written(part, kept.kept_rows, kept.most_bytes)

    @ray.method(concurrency_group="ctl")
    def release(self, moment: int) -> None:
        """A snapshot that was begun is not wanted any more."""
        if (kept := self._moments.pop(moment, None)) is not None:
            kept.close()

    @ray.method(concurrency_group="ctl", max_task_retries=-1)
    def process_id(self) -> int:
        """Of the process that holds the rows."""
        import os

        return os.getpid()

    def _bank(self, number: int) -> EmbeddingBank:
        if number not in self._banks:
            raise ShardIsNew(f"no bank {number}")
        return self._banks[number]

    def _part(self, asked: Asked, views: int) -> Part:
        tables, names, valid = self._bank(asked.bank).compared(asked.plan, asked.main, asked.aux)
        return Part([table(tables[name]) for name in names[:views]], valid)

    def _empty(self) -> EmbeddingBank:
        spec = self._spec
        return EmbeddingBank(self._size, spec.dim, spec.views, dtype=spec.dtype)

    def _loaded(self, path: Path) -> EmbeddingBank:
        info, spec = read_info(path), self._spec
        if (info.n_slots, info.dim, set(info.views)) != (spec.n_slots, spec.dim, set(spec.views)):
            raise BankError(f"{path} is of another bank")
        bank, loaded = self._empty(), load_rows(path, info, self._first, self._first + self._size, spec.dtype)
        bank.fill(loaded.views, loaded.version, loaded.step)
        return bank

    def _recovered(self) -> tuple[EmbeddingBank, str]:
        said: list[str] = []
        root, found = Path(self._spec.root), None
        try:
            if self._spec.root:
                found = newest_loaded([root, root / LIVE], said.append, lambda path, _: self._loaded(path))
        except (BankError, OSError) as error:
            said = [str(error)]
        bank = self._empty() if found is None else found[1]
        rows = f"{bank.filled:,} of its {self._size:,} rows"
        where = f" from {found[0].name}" if found is not None else ", which come back as videos are seen"
        return bank, "; ".join([rows + where, *said])


def start_actors(spec: BankSpec) -> tuple[list[Any], list[int]]:
    """Ask Ray for the run's shards; returns at once, they come up by themselves. Handles, and first slots and N.

    Raises:
        BankError: more shards than slots.
    """
    cuts, cores = cut_points(spec.n_slots, spec.shards), spec.cpus_per_shard
    rows = max(np.diff(cuts)) * spec.dim * len(spec.views) * storage(spec.dtype).itemsize
    options: dict[str, Any] = {
        "num_cpus": cores,
        "memory": int((1.2 if spec.space == "raw" else 2.4) * rows) + _OWN_BYTES,
        "resources": {spec.shard_node: 0.001} if spec.shard_node else {},
        "scheduling_strategy": "SPREAD",
        "max_restarts": -1,
        "max_task_retries": 0,
        "concurrency_groups": {"io": 1, "read": 2, "mine": 1, "ctl": 2, "save": 2},
        "runtime_env": {"env_vars": thread_variables(max(1, cores))},
    }
    remote = ray.remote(**options)(ShardActor)
    return [remote.remote(spec, a, b - a) for a, b in pairwise(cuts)], cuts
