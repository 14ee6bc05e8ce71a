"""The process in which foreign bytes are decoded: it may hang or die, and takes nothing with it.

Started by `pipelines.packing.guard.Guard` as `python -m pipelines.packing.child FD`; FD is one end of a socket pair that carries pickled
messages: (`Target`, megabytes of memory) first, then (path, name, part) per video, (path, name, (part, `Cut`)) to look where one is cut,
or (pack, name, instance) for the flow of a packed one; back go "ready", "alive" now and then, "flow" when only flow is left to make, and an `Outcome`, or a `Fault` where
something other than the video is to blame.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from vidssl.errors import StorageError

if TYPE_CHECKING:
    from pipelines.packing.verdict import Fault, Outcome

__all__ = ["main"]

_BEAT_S = 0.2
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serve one parent until it closes the connection or dies."""
    _die_with(parent)
    wire = Connection(descriptor)
    from pipelines.packing.normalise import normalise  # brings PyAV; a failure here ends the process before "ready"
    from pipelines.packing.part import Part
    from pipelines.packing.stored import flow_of_stored
    from pipelines.packing.survey import survey

    wire.send("ready")
    target, memory_mb = wire.recv()
    _limit_memory(memory_mb)
    beat = _Beat(wire)
    while True:
        try:
            path, name, what = wire.recv()
        except EOFError:
            return
        if isinstance(what, Part):
            work = partial(normalise, path, name, target, beat, what, lambda: wire.send("flow"))
        elif isinstance(what, tuple):
            work = partial(survey, path, name, what[1], beat, what[0])
        else:
            wire.send("flow")
            work = partial(flow_of_stored, path, what, name, target, beat)
        wire.send(_answer(work, beat))


def _answer(work: Callable[[], Outcome], beat: _Beat) -> Outcome | Fault:
    """The outcome; asked again with growing pauses where the store of the file does not answer."""
    from pipelines.packing.foreign import PAUSES_S, cannot_be_reached

    pauses = list(PAUSES_S)
    while True:
        try:
            return work()
        except Exception as error:  # normalise() makes a verdict of whatever the video is to blame for
            if isinstance(error, StorageError):  # asked again by the reader of packs
                return _no_answer(error)
            if not cannot_be_reached(error):
                return _fault(error)
            if not pauses:
                return _no_answer(error)
            beat.through(pauses.pop(0))


class _Beat:
    """Tells the parent that frames go on coming, a few times per second."""

    def __init__(self, wire: Connection) -> None:
        self._wire = wire
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last > _BEAT_S:
            self._last = now
            self._wire.send("alive")

    def through(self, seconds: float) -> None:
        """Wait, and say so."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self()
            time.sleep(min(left, _BEAT_S))


def _no_answer(error: Exception) -> Fault:
    from pipelines.packing.verdict import Fault

    return Fault(str(getattr(error, "strerror", None) or error))


def _limit_memory(megabytes: int) -> None:
    """A file may claim any size; the kernel then refuses this process, and no other one has to die for it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _fault(error: Exception) -> Fault:
    import platform

    import av

    from pipelines.packing.verdict import Fault
    from vidssl import __version__

    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipelines/" in frame.filename]
    place = f"pipelines/{ours[-1].filename.rpartition('/pipelines/')[2]}:{ours[-1].lineno}" if ours else "?"
    versions = f"vidssl {__version__}, PyAV {av.__version__}, Python {platform.python_version()}"
    return Fault(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", place, versions)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, even while a codec hangs (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
