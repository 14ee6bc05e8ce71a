"""Does this video decode? One guarded child process that decodes and packs, and is replaced when it hangs or dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from types import TracebackType

from pipelines.packing.verdict import Fault, Outcome, Target, Verdict
from vidssl.errors import DataError, OurFault

__all__ = ["Guard"]

_START_S = 120
_TRIES = 2


class Guard:
    """Runs `pipelines.packing.normalise` on one video after another in a child process, under a watchdog.

    The child is started with the first video and kept: starting it costs 0.2 s, a short video a tenth of that. Use the
    guard from the thread that made it, and close it (or use it in a `with` block).

    Args:
        target: Form of the packed videos.
        timeout: Seconds without a new frame after which the child counts as hung.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
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

    def run(self, path: str, name: str) -> Outcome:
        """Decode and pack one file.

        Args:
            path: The file.
            name: What the verdict calls it.

        Returns:
            The outcome; a child that hangs or (twice) dies makes the verdict "rejected".

        Raises:
            DataError: the child process does not start at all (PyAV is missing or broken).
            OurFault: an error of our own, which says nothing about the file.
        """
        reason = ""
        for _ in range(_TRIES):  # a second try, since a healthy video may have met a machine short of memory
            wire = self._ready()
            try:
                wire.send((path, name))
                while wire.poll(self.timeout):
                    message = wire.recv()
                    if isinstance(message, Outcome):
                        return message
                    if isinstance(message, Fault):
                        raise _our_fault(message, name)
            except (EOFError, OSError):
                reason = f"the decoder crashed ({_cause(self._end())})"
                continue
            self._end()
            reason = f"decoding hung: no new frame within {self.timeout:g} s"
            break
        return Outcome(Verdict(name, "rejected", reason))

    def close(self) -> None:
        """End the child process."""
        self._end()

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
                self._wire.send(self.target)
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


def _our_fault(fault: Fault, name: str) -> OurFault:
    return OurFault(
        f"a fault of vidssl itself, not of '{name}', stops the pack (what is done is kept): {fault.error} ({fault.place});"
        f" please report this line and '{name}' with {fault.versions}"
    )


def _cause(code: int) -> str:
    if code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    return f"exit code {code}"
