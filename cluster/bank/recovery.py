"""What does a bank begin with? Nothing, what a run was saved with, or (after its process died) what its disk still holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cluster.bank.rows import BankRows, Place, Say
from vidssl.errors import BankError, StorageError
from vidssl.files import storage_error, write_whole
from vidssl.mining.reopen import chosen, newest_loaded
from vidssl.mining.snapshots import is_snapshot, sweep

__all__ = ["LIVE", "Recovered", "clear_leftovers", "open_source", "recover", "store_attempt", "stored_attempt"]

LIVE = "live"
"""Folder, in that of the checkpoints' snapshots, of those written between checkpoints."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """What a restarted bank has.

    Attributes:
        bank: Its rows; empty where no snapshot could be used.
        note: Where they are from.
        said: The same for the user, with what had to be passed over.
    """

    bank: BankRows
    note: str
    said: str


def open_source(source: str | None, step: int, place: Place, say: Say) -> BankRows:
    """The bank of an attempt that begins at `step`; see `BankServer.reset`.

    Raises:
        BankError: a snapshot that is damaged or does not fit.
        StorageError: the processes that hold the rows do not answer.
    """
    if source is None:
        return place.empty()
    if is_snapshot(Path(source)):
        return place.load(Path(source), say)
    return chosen(Path(source), step, say, place.load) or place.empty()


def clear_leftovers(root: Path) -> None:
    """Remove what killed writers left; a bank that does not start at all would be worse than one that leaves them."""
    try:
        for folder in (root, root / LIVE):
            sweep(folder)
    except OSError as error:
        _log.warning("leftovers in %s stay: %s", root, error)


def recover(root: Path, place: Place) -> Recovered:
    """The newest whole snapshot of a run, whoever wrote it; never raises."""
    said: list[str] = []
    found, note = None, "started empty"
    try:
        found = newest_loaded([root, root / LIVE], said.append, place.load)
        note = "started empty" if found is None else f"restored from {found[0].name}"
    except (BankError, StorageError, OSError) as error:  # not to start at all would be worse than an empty bank
        said, note = [str(error)], f"started empty: {error}"
    bank = place.empty(wait=False) if found is None else found[1]
    has = f"{bank.filled} of {bank.n_slots} rows" + ("" if bank.filled else ", which come back as videos are seen")
    sentence = "; ".join([f"the bank's process was lost and started again with {has}", *said])
    _log.warning("%s", sentence)
    return Recovered(bank, note, sentence)


def stored_attempt(root: str) -> int:
    """Number of the attempt that this run's bank was in; 0 where that is not known."""
    path = Path(root) / "attempt"
    try:
        return int(path.read_text()) if root and path.is_file() else 0
    except (ValueError, OSError):
        return 0


def store_attempt(root: str, attempt: int) -> None:
    """Keep the number for a bank that is started again.

    Raises:
        StorageError: it cannot be written.
    """
    if not root:
        return
    path = Path(root) / "attempt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, str(attempt))
    except OSError as error:
        raise storage_error(error, path) from error
