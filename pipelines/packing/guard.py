"""Does this video decode? One guarded child process that decodes and packs, and is replaced when it hangs or dies."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from types import TracebackType

from pipelines.packing.far import Fetcher
from pipelines.packing.part import WHOLE, Cut, Part
from pipelines.packing.verdict import Fault, Limits, Outcome, Target, Verdict
from vidssl.errors import DataError, OurFault, StorageError

__all__ = ["Guard"]

_START_S = 120
_SLOW_S = 900.0
"""Seconds within which a frame of flow has to come: TV-L1 of the largest frames takes a minute."""
_TRIES = 2


class Guard:
    """Runs `pipelines.packing.normalise` on one video after another in a child process, under a watchdog.

    The child is started with the first video and kept: starting it costs 0.2 s, a short video a tenth of that. Use the
    guard from the thread that made it, and close it (or use it in a `with` block).

    Args:
        target: Form of the packed videos.
        limits: What one video may take; None: the defaults.

    Attributes:
        fetcher: Keeps the copy of a video that lies in a store, for as long as this guard.
    """

    def __init__(self, target: Target, limits: Limits | None = None) -> None:
        self.target, self.fetcher = target, Fetcher()
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Connection | None = None

    def __enter__(self) -> Guard:
        """The guard itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def run(self, path: str, name: str, part: Part = WHOLE) -> Outcome:
        """Decode and pack one file.

        Args:
            path: The file.
            name: What the verdict calls it.
            part: What of the file is the video.

        Returns:
            The outcome; a child that hangs or (twice) dies makes the verdict "rejected".

        Raises:
            DataError: the child process does not start at all (PyAV is missing or broken).
            OurFault: an error of our own, which says nothing about the file.
            StorageError: the store of the file does not answer, several times.
        """
        return self._run((path, name, part))

    def flow_of(self, root: str, instance: int, name: str) -> Outcome:
        """Make the optical flow of one packed video.

        Args:
            root: The packed folder.
            instance: Which video.
            name: What the verdict calls it.

        Returns:
            The outcome without an mp4; "rejected" where the packed bytes are damaged.

        Raises:
            DataError, OurFault, StorageError: as `run`.
        """
        return self._run((root, name, instance))

    def bounds_of(self, path: str, name: str, part: Part, cut: Cut) -> Outcome:
        """Look where a source is cut into clips.

        Args:
            path: The file.
            name: What the verdict calls it.
            part: Which of its bytes are the video.
            cut: How.

        Returns:
            An outcome without an mp4, with `bounds`; "rejected" as by `run`.

        Raises:
            DataError, OurFault, StorageError: as `run`.
        """
        return self._run((path, name, (part, cut)))

    def _run(self, wanted: tuple[str, str, Part | int | tuple[Part, Cut]]) -> Outcome:
        path, name, _ = wanted
        reason = ""
        for _ in range(_TRIES):  # a second try, since a healthy video may have met a machine short of memory
            wire = self._ready()
            try:
                wire.send(wanted)
                answer = self._answer(wire)
            except (EOFError, OSError):
                reason = f"the decoder crashed ({_cause(self._end())})"
                continue
            if isinstance(answer, Outcome):
                return answer
            if isinstance(answer, Fault):
                raise _stop(answer, path, name)
            self._end()
            reason = answer
            break
        return Outcome(Verdict(name, "rejected", reason))

    def _answer(self, wire: Connection) -> Outcome | Fault | str:
        """What the child says of a video; or, in words, that it hangs or takes too long."""
        limits, end = self.limits, time.monotonic() + self.limits.max_seconds
        timeout = limits.timeout
        while (left := end - time.monotonic()) > 0:
            if not wire.poll(min(timeout, left)):
                if left > timeout:
                    return f"decoding hung: no new frame within {timeout:g} s"
                break
            message = wire.recv()
            if isinstance(message, Outcome | Fault):
                return message
            if message == "flow":  # of frames that are packed and counted: it ends, and says nothing of the video
                timeout, end = max(timeout, _SLOW_S), math.inf
        return f"not done after {limits.max_seconds:g} s of work (max_seconds={limits.max_seconds:g})"

    def close(self) -> None:
        """End the child process, and remove what was fetched for it."""
        self._end()
        self.fetcher.close()

    def _ready(self) -> Connection:
        if self._wire is not None:
            return self._wire
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "pipelines.packing.child", str(theirs.fileno()), str(os.getpid())]
            # The parent may have found the packages by other means than the environment (a cluster's working folder).
            env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            quiet = subprocess.DEVNULL  # codecs write to stderr as they like
            self._process = subprocess.Popen(
                command, env=env, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(theirs.fileno(),)
            )
        self._wire = Connection(ours.detach())
        try:
            if self._wire.poll(_START_S) and self._wire.recv() == "ready":
                self._wire.send((self.target, self.limits.memory_mb))
                return self._wire
        except (EOFError, OSError):
            pass
        cause = _cause(self._end())
        raise DataError(f"the decoding process does not start ({cause}); try: {sys.executable} -c 'import av'")

    def _end(self) -> int:
        process, wire = self._process, self._wire
        self._process = self._wire = None
        if wire is not None:
            wire.close()
        if process is None:
            return 0
        try:
            return process.wait(timeout=0.5)  # it ends by itself when the connection is closed, or is dead already
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _stop(fault: Fault, path: str, name: str) -> OurFault | StorageError:
    """Why the pack goes no further; neither is a verdict on the video."""
    if not fault.place:
        return StorageError(
            f"{path} cannot be read now ({fault.error}; tried several times), so nothing is said of it and the pack stops;"
            " when the disk or store answers again, type the same command again: what is done is kept"
        )
    return OurFault(
        f"a fault of vidssl itself, not of '{name}', stops the pack (what is done is kept): {fault.error} ({fault.place});"
        f" please report this line and '{name}' with {fault.versions}"
    )


def _cause(code: int) -> str:
    if code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    return f"exit code {code}"
