"""Which bank does a run that goes on begin with? The newest whole snapshot, and a sentence wherever that is not the step's own.

A run writes a snapshot right after its model checkpoint. So a checkpoint may lack its own (a full disk, a kill between the
two): `choose` then opens the newest whole one before it, and says so. What a user may ask for when a run is resumed,
`bank=empty` or `bank=SNAPSHOT`, is read by `source_of`; `BankServer.reset` takes what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import load_snapshot, read_info, snapshot_steps

__all__ = ["Load", "choose", "chosen", "newest_loaded", "newest_whole", "source_of"]

Say = Callable[[str], None]
Bank = TypeVar("Bank")
Load = Callable[[Path, Say], Bank]
"""A snapshot and whom to tell what the user has to know of it → a bank with its rows; raises `BankError`."""

_INSTEAD = "type bank=SNAPSHOT to name another one, or bank=empty to go on with an empty bank"


def newest_whole(
    roots: Sequence[Path],
    say: Say,
    *,
    upto: int | None = None,
    expect: EmbeddingBank | None = None,
    data_hash: str | None = None,
) -> tuple[Path, EmbeddingBank] | None:
    """As `newest_loaded`, of banks whose rows are here.

    Args:
        roots: Folders of snapshots.
        say: See there.
        upto: See there.
        expect: As in `load_snapshot`.
        data_hash: As in `load_snapshot`.

    Raises:
        BankError: there are snapshots, and none is whole and fits.
    """
    return newest_loaded(roots, say, lambda path, tell: load_snapshot(path, expect, data_hash, tell), upto)


def newest_loaded(
    roots: Sequence[Path], say: Say, load: Load[Bank], upto: int | None = None
) -> tuple[Path, Bank] | None:
    """The newest snapshot that is whole and fits; None when there is none at all.

    Args:
        roots: Folders of snapshots.
        say: Told in a sentence each: which newer one was passed over, and why; that its rows are kept in another dtype.
        load: Opens one.
        upto: Later ones are not looked at; None: all are.

    Raises:
        BankError: there are snapshots, and none is whole and fits.
    """
    there = [(step, root / f"snap-{step}") for root in roots for step in snapshot_steps(root)]
    faults: list[str] = []
    other: list[str] = []
    for _, path in sorted((pair for pair in there if upto is None or pair[0] <= upto), reverse=True):
        try:
            found = path, load(path, other.append)
        except BankError as error:
            faults.append(str(error))
            continue
        if faults:
            say(f"{'; '.join(faults)}: the older bank snapshot {path.name} is taken instead")
        for line in other:
            say(line)
        return found
    if faults:
        raise BankError(f"no bank snapshot can be used: {'; '.join(faults)}; {_INSTEAD}")
    return None


def choose(root: Path, step: int, say: Say, expect: EmbeddingBank, data_hash: str | None = None) -> EmbeddingBank:
    """As `chosen`, of banks whose rows are here.

    Args:
        root: See there.
        step: See there.
        say: See there.
        expect: An empty bank of the run's size, width, views and groups; returned where nothing was ever saved.
        data_hash: Of the run's data.

    Raises:
        BankError: there are snapshots, and none is whole and fits; names the words that go on without.
    """
    found = chosen(root, step, say, lambda path, tell: load_snapshot(path, expect, data_hash, tell))
    return expect if found is None else found


def chosen(root: Path, step: int, say: Say, load: Load[Bank]) -> Bank | None:
    """The bank for a run that goes on at `step`: that step's snapshot, or the newest whole one before it; None: there is none.

    Args:
        root: The run's folder of snapshots.
        step: Optimizer steps done.
        say: Told where the bank is older than the step, or empty.
        load: Opens one.

    Raises:
        BankError: there are snapshots, and none is whole and fits; names the words that go on without.
    """
    said: list[str] = []
    found = newest_loaded([root], said.append, load, step)
    if found is None:
        if step > 0:
            say(f"there is no bank snapshot of step {step} or before in {root}: the bank starts empty and fills again")
        return None
    path, bank = found
    if path.name != f"snap-{step}" and not any("taken instead" in line for line in said):
        say(f"the bank snapshot of step {step} is missing: the older one {path.name} is taken instead")
    for line in said:
        say(line)
    return bank


def source_of(word: str | None, root: Path) -> str | None:
    """What `bank=…` on resume means, as `BankServer.reset` takes it.

    Args:
        word: What was typed behind `bank=`: `empty`, a snapshot folder, or the name of one of this run's; None: nothing.
        root: The run's folder of snapshots.

    Returns:
        None for an empty bank, a snapshot's folder, or `root`, from which the newest whole one is chosen.

    Raises:
        BankError: no snapshot there.
    """
    if word is None:
        return str(root)
    if word == "empty":
        return None
    given = Path(word).expanduser()
    path = (root / word if not given.exists() and (root / word).exists() else given).resolve()
    read_info(path)
    return str(path)
