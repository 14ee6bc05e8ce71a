"""When is the bank brought to disk? At checkpoints, when asked; between them by itself; and how old is what is there?

Nothing here holds up a push: a snapshot is of the moment at which it is begun and written while others push. Nor does
training wait for a large one, but at its end (or where it must repeat bit for bit): what goes wrong later is said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.bank.recovery import LIVE
from cluster.bank.rows import BankRows, PartedMoment
from cluster.bank.spec import BankSpec
from vidssl.errors import BankError, StorageError
from vidssl.mining.moments import Moment
from vidssl.mining.snapshots import save_snapshot

__all__ = ["Saver", "saved_by"]

POLL_S = 0.02

_log = logging.getLogger(__name__)


class Saver:
    """Writes the snapshots of one bank's process.

    Args:
        spec: The run's bank.
        tell: Told in a sentence what the user has to know: that a snapshot failed, or takes longer than it may.
    """

    def __init__(self, spec: BankSpec, tell: Callable[[str], None]) -> None:
        self._spec, self._tell = spec, tell
        self._saved: int | None = None
        self._due = 0
        self._slow = ""
        self._writer: threading.Thread | None = None
        self._checkpoint: threading.Thread | None = None
        self._results: dict[int, Path | BankError | StorageError | None] = {}

    def begins(self, step: int | None) -> None:
        """An attempt begins with rows that are on disk as of so many steps done; None: with none."""
        self._saved = step
        every = self._spec.snapshot_every_steps
        self._due = 0 if not every or step is None else step // every

    def age(self, bank_step: int) -> float | None:
        """Steps that were pushed since the newest snapshot; None where there is none.

        Args:
            bank_step: The bank's newest step.
        """
        return None if self._saved is None else float(max(0, bank_step + 1 - self._saved))

    def begin(self, bank: BankRows, root: str, step: int, told: bool) -> bool:
        """Begin a checkpoint's snapshot of this moment, `root/snap-<step>`; false while the one before is being written.

        Args:
            bank: The bank.
            root: Folder of the run's snapshots.
            step: Optimizer steps done.
            told: Whether the user is told what goes wrong; otherwise it is for who asks for the result.
        """
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return False
        self._results = {step: None}
        try:
            moment = bank.moment()
        except StorageError as error:
            self._results[step] = error
            if told:
                self._failed(error)
            return True
        arguments = (moment, Path(root), step, told)
        self._checkpoint = threading.Thread(target=self._write_checkpoint, args=arguments, name="saver", daemon=True)
        self._checkpoint.start()
        return True

    def knows(self, step: int) -> bool:
        """Whether this step's was the last that was begun here."""
        return step in self._results

    def result(self, step: int) -> Path | None:
        """The snapshot that was begun for this step; None while it is being written.

        Raises:
            BankError: a row is no finite unit row.
            StorageError: it cannot be written.
        """
        result = self._results[step]
        if isinstance(result, Exception):
            raise result
        return result

    def between(self, bank: BankRows) -> None:
        """Begin a snapshot under `root/live` where one is due (`mining.snapshot_every_steps`)."""
        every, done = self._spec.snapshot_every_steps, bank.step + 1
        if not every or not self._spec.root or done // every <= self._due:
            return
        if self._writer is not None and self._writer.is_alive():
            self._say_slow(self._due * every, done, every)
            return
        self._due = done // every
        try:
            moment, folder = bank.moment(), Path(self._spec.root) / LIVE
        except StorageError as error:
            self._failed(error)
            return
        self._writer = threading.Thread(target=self._write_live, args=(moment, folder, done), name="saver", daemon=True)
        self._writer.start()

    def close(self, timeout_s: float = 60.0) -> None:
        """Wait for what is being written."""
        for writer in (self._writer, self._checkpoint):
            if writer is not None:
                writer.join(timeout_s)

    def _write_live(self, moment: Moment | PartedMoment, folder: Path, step: int) -> None:
        try:
            with moment:
                self._write(moment, folder, step, 1)
        except (BankError, StorageError) as error:
            self._failed(error)

    def _write_checkpoint(self, moment: Moment | PartedMoment, root: Path, step: int, told: bool) -> None:
        try:
            with moment:
                self._results[step] = self._write(moment, root, step, self._spec.keep)
        except (BankError, StorageError) as error:
            self._results[step] = error
            if told:
                self._failed(error)
        except Exception as error:  # our mistake, and who waits must not wait for ever
            _log.exception("saving failed")
            self._results[step] = BankError(f"the bank snapshot of step {step} failed: {type(error).__name__}: {error}")

    def _failed(self, error: BankError | StorageError) -> None:
        _log.warning("%s", error)
        since = "there is none yet" if self._saved is None else f"the newest is of step {self._saved}"
        self._tell(f"{error} ({since}); the run goes on")

    def _write(self, moment: Moment | PartedMoment, root: Path, step: int, keep: int) -> Path:
        path = save_snapshot(moment, root, step, keep, self._extra())
        self._saved = step if self._saved is None else max(self._saved, step)
        _log.info("%s: %.0f MB beside the bank, %d rows set aside", path, moment.most_bytes / 1e6, moment.kept_rows)
        return path

    def _say_slow(self, begun: int, done: int, every: int) -> None:
        if self._slow:
            return
        self._slow = (
            f"the bank snapshot begun at step {begun} is still being written at step {done}: snapshots come later than "
            f"asked for; type a mining.snapshot_every_steps above {every}"
        )
        _log.warning("%s", self._slow)
        self._tell(self._slow)

    def _extra(self) -> Mapping[str, object]:
        plan = self._spec.plan
        return {
            "data_hash": self._spec.data_hash,
            "main": self._spec.main,
            "aux": self._spec.aux,
            "plan": plan.describe(),
            "stages": plan.stages,
            "ratio": plan.ratio,
            "topk": plan.k,
            "last_view": plan.last_view,
            "strategy": plan.strategy,
        }


def saved_by(call: Callable[..., Any], root: str, step: int, wait: bool) -> str:
    """Have the bank's process save as of `step` steps done; returns the path, `root/snap-<step>`.

    Args:
        call: Name of a method of `BankServer` and its arguments → its answer.
        root: Folder of the run's snapshots.
        step: Optimizer steps done.
        wait: Until it is on disk. Otherwise only for the one before; what goes wrong is said later.

    Raises:
        BankError: a row in it is not finite (only with `wait`).
        StorageError: it cannot be written (only with `wait`), or the bank cannot be reached.
    """
    path = ""
    while not path:  # a bank that was restarted meanwhile knows nothing of it
        while not call("begin_save", root, step, not wait):
            time.sleep(POLL_S)
        if not wait:
            return f"{root}/snap-{step}"
        while (path := call("saved", step)) is None:
            time.sleep(POLL_S)
    return path
