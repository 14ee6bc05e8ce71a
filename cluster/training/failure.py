"""What ended a training, as a sentence that crosses processes, and whether beginning again can help.

A mistake of the user is met again by the same command: it ends the run. A disk that is full stays full. Everything else (a
store that does not answer, a process that was killed) is what Ray Train's retries are for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vidssl import errors
from vidssl.errors import StorageError, VidsslError
from vidssl.files import storage_error, write_json
from vidssl.saved.run_folder import RunFolder

__all__ = ["Failure", "Halt", "after_all_retries", "failure_of", "read_failure", "write_failure"]


@dataclass(frozen=True)
class Failure:
    """How a training ended, or an attempt of it.

    Attributes:
        kind: Class of `vidssl.errors`.
        sentence: For the user.
        again: Whether another attempt may succeed.
    """

    kind: str
    sentence: str
    again: bool

    def error(self) -> VidsslError:
        """As the exception that the command line prints."""
        kind = getattr(errors, self.kind, VidsslError)
        return kind(self.sentence)


class Halt(Exception):
    """All ranks end this attempt together, for one reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


def failure_of(error: Exception, folder: RunFolder) -> Failure:
    """What an exception of a worker means for the run in `folder`."""
    if isinstance(error, OSError):
        error = storage_error(error, Path(error.filename or folder.path))
    if isinstance(error, VidsslError):
        return Failure(type(error).__name__, str(error), not error.final)
    return Failure(VidsslError.__name__, f"{type(error).__name__}: {error}", True)


def write_failure(folder: RunFolder, failure: Failure) -> None:
    """Tell the driver, and attempts that follow, that this run has ended; a full disk must not hide why."""
    with suppress(OSError):
        write_json(folder.failure, asdict(failure))


def read_failure(folder: RunFolder) -> Failure | None:
    """What `write_failure` wrote; None where there is nothing, or it is torn."""
    try:
        return Failure(**json.loads(folder.failure.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def after_all_retries(
    error: Exception, folder: RunFolder, max_failures: int, last: int | None, again: str | None = None
) -> Exception:
    """The exception for the user once Ray Train has given up; one that is a fault of our own keeps its traceback.

    Args:
        error: What `fit` raised.
        folder: The run.
        max_failures: The recipe's.
        last: Step of the last checkpoint.
        again: The end of the sentence, how to go on; None: that of a training.
    """
    causes: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    kept = f"the run stands at step {last}" if last else "there is no checkpoint yet"
    rest = f"; {kept}, to go on: vidssl train --resume {folder.path}" if again is None else again
    for rank, cause in sorted(causes.items()):
        inner = getattr(cause, "_base_exc", cause)  # Ray keeps the traceback beside it
        if isinstance(inner, VidsslError | OSError):
            failure = failure_of(inner, folder)
            tried = f" (rank {rank}, {max_failures + 1} attempts)" if failure.again else ""
            return type(failure.error())(failure.sentence + tried + rest)
    lost = [
        rank for rank, cause in causes.items() if "Actor" in type(cause).__name__ or "Health" in type(cause).__name__
    ]
    if lost:
        return StorageError(
            f"the process of rank {min(lost)} was lost {max_failures + 1} times (trainer.max_failures={max_failures}); "
            f"was its memory enough?{rest}"
        )
    if isinstance(error, OSError) and error.filename is not None:  # no pipe that was closed
        return storage_error(error, Path(error.filename), instead=rest.removeprefix("; "))
    return error
