"""What does a bank begin with? Nothing, what a run was saved with, or (after its process died) what its disk still holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidssl.errors import BankError
from vidssl.files import storage_error, write_whole
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.reopen import choose, newest_whole
from vidssl.mining.snapshots import is_snapshot, load_snapshot, sweep

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

    bank: EmbeddingBank
    note: str
    said: str


def open_source(
    source: str | None, step: int, empty: EmbeddingBank, data_hash: str | None, say: Callable[[str], None]
) -> EmbeddingBank:
    """The bank of an attempt that begins at `step`; see `BankServer.reset`.

    Raises:
        BankError: a snapshot that is damaged or does not fit.
    """
    if source is None:
        return empty
    if is_snapshot(Path(source)):
        return load_snapshot(Path(source), empty, data_hash, say)
    return choose(Path(source), step, say, empty, data_hash)


def clear_leftovers(root: Path) -> None:
    """Remove what killed writers left; a bank that does not start at all would be worse than one that leaves them."""
    try:
        for folder in (root, root / LIVE):
            sweep(folder)
    except OSError as error:
        _log.warning("leftovers in %s stay: %s", root, error)


def recover(root: Path, empty: EmbeddingBank, data_hash: str | None) -> Recovered:
    """The newest whole snapshot of a run, whoever wrote it; never raises."""
    said: list[str] = []
    bank, note = empty, "started empty"
    try:
        found = newest_whole([root, root / LIVE], said.append, expect=empty, data_hash=data_hash)
        if found is not None:
            bank, note = found[1], f"restored from {found[0].name}"
    except (BankError, OSError) as error:  # a bank that does not start at all would be worse than an empty one
        said, note = [str(error)], f"started empty: {error}"
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
