"""What does the driver do while the workers train? It says their lines and passes on who wants the run to stop.

Ray Train runs on a second thread, because on the main thread it would take the signals for itself and abort without a
checkpoint. Ctrl-C, SIGTERM and SIGHUP (a closed terminal) become a stop flag in the run folder, which the workers answer
with a checkpoint; so does a reader that went away.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from cluster.training.hang import HangReport
from cluster.training.lost import LostWorkers
from cluster.training.runlog import live_line
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.run_folder import RunFolder

__all__ = ["Say", "watch"]

Say = Callable[[str], None]
T = TypeVar("T")


def watch(fit: Callable[[], T], folder: RunFolder, total: int, say: Say, world: Callable[[], int] = lambda: 0) -> T:
    """Run `fit` on a thread; meanwhile say the new log rows, what hangs, and pass on stop requests.

    Args:
        fit: What is run.
        folder: Of the run.
        total: Its steps.
        say: Prints a line.
        world: Says how many ranks there are that write where they hang; 0: none do.

    Raises:
        Exception: what `fit` raised, or `say` (the run is stopped with a checkpoint first).
    """
    voice, work = _Voice(say, folder), _Work(fit)
    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    with _stop_on_signal(folder, voice):
        tail, hang = _Tail(folder, total), HangReport(folder, world)
        thread.start()
        alive = True
        while alive:
            alive = thread.is_alive()
            for line in (*tail.lines(), *hang.lines()):
                voice(line)
            thread.join(0.3)
    if work.error is None and voice.error is not None:
        raise voice.error
    return work.result()


class _Work(Generic[T]):
    """A call on another thread, and what became of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call, self._value = call, []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self._value[0]


class _Voice:
    """Says lines until nobody can hear them; then the run is asked to stop, once, and the rest is silence."""

    def __init__(self, say: Say, folder: RunFolder) -> None:
        self._say, self._folder = say, folder
        self.error: Exception | None = None

    def __call__(self, line: str) -> None:
        if self.error is not None:
            return
        try:
            self._say(line)
        except Exception as error:  # a closed pipe, a terminal that is gone: `watch` raises it after the checkpoint
            self.error = error
            with suppress(OSError):
                self._folder.stop_flag.touch()


class _Tail:
    """New lines of log.jsonl and events.jsonl; a restarted attempt rewrites the log, its repeated steps are not said again."""

    def __init__(self, folder: RunFolder, total: int) -> None:
        self._folder, self._total = folder, total
        self._seen = (latest_step(folder) or 0) - 1
        self._inode, self._offset = _inode(folder.log), 0
        self._attempts = 0
        self._told = _size(folder.events)
        self._why = False
        self._lost = LostWorkers(folder)

    def lines(self) -> Iterator[str]:
        yield from self._events()
        if not self._folder.log.is_file():
            return
        inode = _inode(self._folder.log)
        if inode != self._inode:
            self._inode, self._offset = inode, 0
            self._attempts += 1
            if self._attempts > 1:
                yield from self._again()
            self._lost.look()
        if self._attempts:  # before that it is the log of a former run, which the workers are about to cut
            yield from self._rows()

    def _again(self) -> Iterator[str]:
        yield from self._events()
        lost = "" if self._why else f"{self._lost.words()}; "
        self._why = False
        yield f"{lost}all go on from step {latest_step(self._folder) or 0}"

    def _rows(self) -> Iterator[str]:
        whole, self._offset = _whole_lines(self._folder.log, self._offset)
        for row in map(json.loads, whole):
            if row["step"] > self._seen:
                self._seen = row["step"]
                yield live_line(row, self._total)

    def _events(self) -> Iterator[str]:
        whole, self._told = _whole_lines(self._folder.events, self._told)
        for row in map(json.loads, whole):
            self._why |= bool(row.get("restart"))
            yield row["sentence"]


def _whole_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Lines from a byte on that are finished, and where the next begins."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            whole = file.read().rpartition(b"\n")[0]
    except OSError:
        return [], offset
    return whole.decode(errors="replace").splitlines(), offset + (len(whole) + 1 if whole else 0)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def _stop_on_signal(folder: RunFolder, say: Say) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if folder.stop_flag.exists():
            say("stopped at once; the run can be resumed from its last checkpoint")
            os._exit(128 + number)
        try:
            folder.stop_flag.touch()
        except OSError as error:  # then the workers cannot be asked, nor write a checkpoint
            say(f"stopped at once, {folder.path} cannot be written ({error.strerror}); its last checkpoint is kept")
            os._exit(128 + number)
        say("stopping: a checkpoint is written first (again to stop at once)")

    wanted = [signal.SIGINT, signal.SIGTERM]
    if (
        signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ):  # nohup: who starts a run so wants it to outlive the terminal
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
