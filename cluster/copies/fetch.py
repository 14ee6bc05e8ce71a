"""A run whose folder is not here is fetched from its copy in a store; one that is here is never overwritten by it.

What is fetched is held against the checksum that its object says. The recipe comes last: until then the folder is no run,
and a fetch that was cut off goes on with what is not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cluster.copies.files import FACTS, RECIPE, begun, group_of, newest, on_disk
from pipelines.dataset.patience import AGAIN, ANSWERS, Patience
from pipelines.dataset.remote import RemoteStore
from pipelines.dataset.shards import file_sha256
from vidssl.errors import CheckpointError, DataError, StorageError
from vidssl.files import storage_error, written_aside
from vidssl.lock import held
from vidssl.marks import LOCK, MARK, is_mark, refuse_foreign
from vidssl.saved.meta import META
from vidssl.saved.run_folder import KIND

__all__ = ["bring_here", "step_there"]

Say = Callable[[str], None]

_PATIENCE_S = 240.0
_THREADS = 8
_PIECE = 2**25
_LINE_S = 5.0


def bring_here(store: RemoteStore, folder: Path, say: Say, *, fresh: bool = False, wanted: bool = False) -> None:
    """Fetch a run where its folder holds none; look whether both are the same run where it holds one.

    Args:
        store: The place of the copy.
        folder: Of the run.
        say: Told what is fetched.
        fresh: Whether the run begins again: then nothing is fetched, and only what lies at the store must be a run's.
        wanted: Whether there must be a run at the store.

    Raises:
        CheckpointError: no run is there and one is wanted; the folder holds another run than the copy, or an earlier state of it.
        DataError: the place holds what no run left there, the store does not let us read, or a file is not what it says.
        StorageError: the store cannot be reached, or the disk cannot be written.
    """
    patience = Patience(_PATIENCE_S, say, advice=AGAIN)
    try:
        names = _names(store, patience)
        there = RECIPE in names and FACTS in names
        if wanted and not there:
            raise CheckpointError(
                f"{store.address} holds no run; type vidssl train RECIPE name={folder.name} "
                f"trainer.copy_to={store.address.parent} to begin one"
            )
        if fresh or not there:
            return
        if (folder / RECIPE).is_file():
            _refuse_another(store, folder, begun(_asked(store, FACTS, patience)), newest(names))
            return
        refuse_foreign(folder, KIND, "type name=OTHER or trainer.storage=FOLDER")
        with held(folder, "train", say):
            _fetch(store, folder, _wanted(names), patience, say)
    except OSError as error:
        if isinstance(error, ANSWERS):
            raise _unread(store, error) from None
        raise storage_error(error, folder, instead="type trainer.storage=FOLDER, or make room") from error


def step_there(store: RemoteStore, say: Say) -> int | None:
    """Steps done at the newest checkpoint of the copy at a place; None: no run is there.

    Raises:
        DataError: the place holds what no run left there, or the store does not let us read.
        StorageError: the store cannot be reached.
    """
    try:
        names = _names(store, Patience(_PATIENCE_S, say, advice=AGAIN))
    except OSError as error:
        raise _unread(store, error) from None
    return max(newest(names).values(), default=0) if RECIPE in names else None


def _names(store: RemoteStore, patience: Patience) -> dict[str, int]:
    names = patience.insist(str(store.address), store.names, ANSWERS)
    names.pop(LOCK, None)
    if names and not (MARK in names and is_mark(_asked(store, MARK, patience), KIND)):
        raise DataError(
            f"{store.address} holds objects that no run left there, and they are left alone; type name=OTHER or "
            "trainer.copy_to=OTHER"
        )
    return names


def _unread(store: RemoteStore, error: OSError) -> DataError:
    return DataError(f"{store.address} cannot be read: {error.strerror}")


def _refuse_another(store: RemoteStore, folder: Path, there: tuple[str, ...], steps: dict[str, int]) -> None:
    facts = folder / FACTS
    if begun(facts.read_bytes() if facts.is_file() else b"") != there:
        raise CheckpointError(
            f"{store.address} holds another run of that name than {folder} (begun {' '.join(there[:1])}); type "
            "trainer.copy_to=OTHER, or --fresh to begin again here and there"
        )
    here = newest(on_disk(folder))
    ahead = [phase for phase, step in steps.items() if step > here.get(phase, 0)]
    if ahead:
        raise CheckpointError(
            f"{store.address} is at step {steps[ahead[0]]} of this run and {folder} at {here.get(ahead[0], 0)}: it went on "
            f"elsewhere; move {folder} away to go on from there, or type trainer.copy_to=OTHER to go on from here"
        )


def _wanted(names: dict[str, int]) -> dict[str, int]:
    """Without checkpoints that were being sent when their sender died: those that have no list."""
    torn = {
        group
        for group in map(group_of, names)
        if group is not None and "checkpoints/" in group and f"{group}/{META}" not in names
    }
    return {name: size for name, size in names.items() if group_of(name) not in torn}


def _fetch(store: RemoteStore, folder: Path, names: dict[str, int], patience: Patience, say: Say) -> None:
    total, done, told = sum(names.values()), 0, time.monotonic()
    step = max(newest(names).values(), default=0)
    say(
        f"{store.address} holds this run up to step {step}: {len(names)} files, {total / 1e6:.1f} MB, are fetched to {folder}"
    )
    first, last = [MARK, FACTS], [RECIPE]
    rest = sorted(name for name in names if name not in (*first, *last))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as pool:
        for part in (first, rest, last):
            for size in pool.map(partial(_one, store, folder, patience), part, [names[name] for name in part]):
                done += size
                if time.monotonic() - told >= _LINE_S:
                    told = time.monotonic()
                    say(f"fetched {done / 1e6:.0f} of {total / 1e6:.0f} MB")


def _one(store: RemoteStore, folder: Path, patience: Patience, name: str, size: int) -> int:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{store.address} holds the key '{name}', which leads out of a run folder; remove it there")
    said = patience.insist(store.said(name), partial(store.sha256, name), ANSWERS) if size else ""
    if path.is_file() and path.stat().st_size == size and (not size or file_sha256(path) == said):
        return size
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as stream:
        for begin in range(0, size, _PIECE):
            length = min(_PIECE, size - begin)
            stream.write(patience.insist(store.said(name), partial(store.read_range, name, begin, length), ANSWERS))
    if said and file_sha256(path) != said:
        path.unlink()
        raise StorageError(f"{store.said(name)} is not what it says it is (sha256), or was replaced just now; {AGAIN}")
    return size


def _asked(store: RemoteStore, name: str, patience: Patience) -> bytes:
    return patience.insist(store.said(name), partial(store.read, name), ANSWERS)
