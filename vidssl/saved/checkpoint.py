"""How does a run survive? Checkpoints written aside, brought to the disk, renamed: the last whole one always stays.

`model.pt` (rank 0) holds method and optimizer; `rank-R.pt` holds what differs between ranks: the loader's cursor, random
states and positives already mined but not yet used; `meta.json` says which recipe, data and bank snapshot belong to it,
and how long each file is and what its bytes hash to. What is not finite is never written, what does not match its hash is
never read, and nothing in a checkpoint can run code.

A run writes its model checkpoint first and its bank snapshot second (`vidssl.mining.snapshots`): where the disk is full
at the second, the weights are safe, and the resumed run takes the bank of the checkpoint before.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from vidssl.errors import CheckpointError, StorageError, VidsslError
from vidssl.files import storage_error, sync_folder, write_whole
from vidssl.saved.meta import (
    META,
    MODEL,
    Meta,
    as_json,
    check_same_recipe,
    checkpoint_path,
    checkpoint_steps,
    latest_step,
    rank_file,
    read_meta,
    stays,
    step_of_epoch,
    weights_hash,
)
from vidssl.saved.run_folder import RunFolder
from vidssl.saved.tensors import FileSum, check_sum, first_bad_number, plain, read_tensors, write_tensors

__all__ = [
    "Gather",
    "Meta",
    "check_same_recipe",
    "checkpoint_path",
    "choose_checkpoint",
    "latest_step",
    "random_state",
    "read_checkpoint",
    "read_meta",
    "read_ranks",
    "restore_random_state",
    "save_checkpoint",
    "step_of_epoch",
    "weights_hash",
]

_ASIDE = ".part"
"""How names end that are no checkpoint yet, or none any more."""

T = TypeVar("T")
Say = Callable[[str], None]
Gather = Callable[[Any], list[Any]]
"""A collective: what every rank brought, in the order of the ranks. It also makes all of them wait for each other."""


def choose_checkpoint(
    folder: RunFolder, say: Say, unless: Callable[[int], str | None] = lambda step: None
) -> int | None:
    """Steps done at the newest whole checkpoint: every file of every rank is compared with its hash.

    Called by one rank, which tells the others: two machines may see different files for some seconds.

    Args:
        folder: The run.
        say: Told in one sentence where the newest one is passed over, and why.
        unless: Step → why its checkpoint shall not be taken although it is whole, or None.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    faults: dict[int, str] = {}
    for step in sorted(checkpoint_steps(folder), reverse=True):
        fault = _fault(folder, step) or unless(step)
        if fault is None:
            if faults:
                said = "; ".join(f"step {bad}: {why}" for bad, why in faults.items())
                say(f"a newer checkpoint of {folder.path.name} cannot be used ({said}); going on from step {step}")
            return step
        faults[step] = fault
    if not faults:
        return None
    said = "; ".join(f"step {bad}: {why}" for bad, why in faults.items())
    raise CheckpointError(f"no checkpoint of {folder.path} is whole ({said}); begin again with --fresh")


def save_checkpoint(
    folder: RunFolder,
    meta: Meta,
    rank: int,
    rank_state: Mapping[str, Any],
    shared_state: Mapping[str, Any] | None,
    gather: Gather = lambda mine: [mine],
    keep: int = 2,
    unset: Collection[str] = (),
) -> None:
    """Write one checkpoint together: every rank its own file, rank 0 the shared one and the final rename.

    All ranks succeed or all raise the same error; what was written aside is then removed, and the checkpoints before
    this one stay.

    Args:
        folder: The run.
        meta: What it belongs to.
        rank: Rank of the caller.
        rank_state: Tensors, arrays, numbers, strings, lists and dicts.
        shared_state: The same; given by rank 0 only.
        gather: See `Gather`; one process needs none.
        keep: Checkpoints up to this step that are left in the folder afterwards; later ones stay until the run gets
            there again.
        unset: Last parts of names under which NaN means "not known yet" (`Method.unset`).

    Raises:
        CheckpointError: a number is not finite; nothing was written.
        StorageError: the disk is full or cannot be written, or the ranks do not share it.
    """
    own = {f"rank-{rank}.pt": plain(rank_state)} | ({} if shared_state is None else {MODEL: plain(shared_state)})
    _together(gather, lambda: _refuse_bad_numbers(folder, meta.step, own, unset))
    final = checkpoint_path(folder, meta.step)
    aside = final.with_name(f".{final.name}{_ASIDE}")
    try:
        _together(gather, lambda: _clear(aside.parent) if rank == 0 else None)
        parts = _together(gather, lambda: _write_parts(aside, own))
        whole = replace(meta, files={name: found for part in parts for name, found in part.items()})
        _together(gather, lambda: _finish(aside, final, whole, keep) if rank == 0 else None)
    except StorageError as error:
        _remove(aside if rank == 0 else None, [aside / name for name in own])
        raise type(error)(f"the checkpoint of step {meta.step} is not written: {error}; {_kept(folder)}") from error


def read_checkpoint(
    folder: RunFolder, step: int, rank: int | None = None
) -> tuple[Meta, dict[str, Any], dict[str, Any]]:
    """Meta, shared state and the state of `rank` (empty when None) of the checkpoint at `step`.

    Raises:
        CheckpointError: a file is missing or damaged; the sentence names it.
    """
    path = checkpoint_path(folder, step)
    with _advised(folder, step):
        meta = read_meta(folder, step)
    own_file = None if rank is None else rank_file(path, meta, rank)
    with _advised(folder, step):
        shared = _mapping(path / MODEL, meta)
        own = {} if own_file is None else _mapping(own_file, meta)
    return meta, shared, own


def read_ranks(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """The states of all ranks that wrote the checkpoint at `step`, in their order: for a run that has other ranks now.

    Raises:
        CheckpointError: a file is missing or damaged; the sentence names it.
    """
    path = checkpoint_path(folder, step)
    with _advised(folder, step):
        meta = read_meta(folder, step)
        return [_mapping(rank_file(path, meta, rank), meta) for rank in range(meta.world)]


def random_state() -> dict[str, Any]:
    """State of torch's and Python's global generators (numpy's is not used: all our draws have an address)."""
    version, words, gauss = random.getstate()
    return {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo of `random_state`."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _fault(folder: RunFolder, step: int) -> str | None:
    """Why the checkpoint at `step` cannot be resumed from; None when every file of every rank is whole."""
    try:
        meta, path = read_meta(folder, step), checkpoint_path(folder, step)
        for name in (path / MODEL, *(rank_file(path, meta, rank) for rank in range(meta.world))):
            if meta.files:
                check_sum(name, meta.files[name.name])
            else:  # of an older version, without hashes
                read_tensors(name)
    except CheckpointError as error:
        return str(error)
    return None


def _mapping(path: Path, meta: Meta) -> dict[str, Any]:
    tree = read_tensors(path, meta.files.get(path.name))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path.name} holds no state (a mapping of names)")
    return tree


@contextlib.contextmanager
def _advised(folder: RunFolder, step: int) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        older = [found for found in checkpoint_steps(folder) if found < step]
        instead = f"remove that folder to use the one of step {max(older)}" if older else "begin again with --fresh"
        raise CheckpointError(
            f"checkpoint {checkpoint_path(folder, step)} cannot be used: {error}; {instead}"
        ) from error


def _kept(folder: RunFolder) -> str:
    step = latest_step(folder)
    before = "there is none before it" if step is None else f"the one of step {step} is kept"
    return f"{before}; mend that and go on with: vidssl train --resume {folder.path}"


def _together(gather: Gather, act: Callable[[], T]) -> list[T]:
    """What `act` gave on each rank; where it failed on one, all raise that error."""
    mine: tuple[T | None, VidsslError | None]
    try:
        mine = act(), None
    except VidsslError as error:
        mine = None, error
    except OSError as error:
        mine = None, storage_error(error, Path(error.filename or "."))
    outcomes = gather(mine)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [value for value, _ in outcomes]


def _refuse_bad_numbers(
    folder: RunFolder, step: int, states: Mapping[str, Mapping[str, Any]], unset: Collection[str]
) -> None:
    for state in states.values():
        bad = first_bad_number(state, unset)
        if bad is not None:
            newest = latest_step(folder)
            rest = "" if newest is None else f"; the checkpoint of step {newest} is kept"
            raise CheckpointError(
                f"after step {step} {bad} is not a finite number, so no checkpoint is written{rest}; "
                "lower optim.lr or set trainer.precision=fp32, under another name=NAME"
            )


def _clear(checkpoints: Path) -> None:
    for left in checkpoints.glob(f".step-*{_ASIDE}"):  # of writers that were killed
        shutil.rmtree(left, ignore_errors=True)


def _write_parts(aside: Path, states: Mapping[str, Any]) -> dict[str, FileSum]:
    # Every rank makes the folder: on a shared file system that looks past what a machine remembers of it.
    aside.mkdir(parents=True, exist_ok=True)
    return {name: write_tensors(state, aside / name) for name, state in states.items()}


def _finish(aside: Path, final: Path, meta: Meta, keep: int) -> None:
    for name, expected in meta.files.items():
        part = aside / name
        if not part.is_file() or part.stat().st_size != expected.bytes:
            raise StorageError(
                f"{name} was written by its rank and cannot be seen by rank 0 in {aside.parent}; "
                "set trainer.storage to one folder that all machines share"
            )
    write_whole(aside / META, as_json(meta))
    sync_folder(aside)
    _discard(final)
    os.rename(aside, final)
    sync_folder(final.parent)
    former = sorted(path for path in final.parent.glob("step-*") if path.name <= final.name and not stays(path))
    for path in former[: -max(keep, 1)]:
        _discard(path)


def _discard(path: Path) -> None:
    # Renamed first: a kill halfway through removing it would leave a torn checkpoint under a whole one's name.
    old = path.with_name(f".{path.name}.old{_ASIDE}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path | None, files: Sequence[Path]) -> None:
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
