"""What if a disk does not answer? It is asked again with growing pauses, named in a sentence, and given up after a bound.

"Cannot be reached" is never "bad": no read error says anything about the bytes behind it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vidssl.errors import StorageError

__all__ = ["ANSWERS", "Patience", "Say", "read_whole", "say_in_log"]

Answer = TypeVar("Answer")
Say = Callable[[str], None]

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
SMALL_FILE_S = 5.0
ANSWERS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors that say something for certain, to who has not seen the file before."""
SAY_AFTER_S = 1.0
"""An outage that lasts longer is a wait, and said when it begins and when it ends; a shorter one is a retry, and counted."""

RESUME = "when it is back go on with --resume (a run begun with a larger loader.patience waits longer)"
AGAIN = "when it is back type the same command again"

_log = logging.getLogger(__name__)


def say_in_log(sentence: str) -> None:
    """The listener where nobody else listens: a line on stderr, unless the program set up its logging."""
    _log.warning(sentence)


class Stopped(Exception):
    """The one who wanted the answer has gone."""


class Patience:
    """Asks until there is an answer.

    Args:
        limit_s: Seconds without an answer after which it gives up.
        say: Told in one sentence of the first retry, and of the begin and the end of every wait.
        stop: Set by who no longer wants the answer.
        advice: End of the sentence when it gives up.
        what: What was tried: `read` or `written`.

    Attributes:
        limit_s: As given.
        say: As given.
        retries: Attempts that failed and were made again.
        waited_s: Seconds between first failures and their answers.
    """

    def __init__(
        self,
        limit_s: float,
        say: Say = say_in_log,
        stop: threading.Event | None = None,
        advice: str = RESUME,
        what: str = "read",
    ) -> None:
        self.limit_s, self.say, self._stop, self._advice = limit_s, say, stop or threading.Event(), advice
        self._what, self.retries, self.waited_s = what, 0, 0.0
        self._told_of_retries = False

    def insist(self, name: str, ask: Callable[[], Answer], answers: tuple[type[OSError], ...] = ()) -> Answer:
        """What `ask` returns, asked again after every OSError.

        Args:
            name: What is asked, for the sentences: a file.
            ask: One attempt; opens what it needs itself, for what was open may be stale.
            answers: Errors that are no reason to ask again.

        Raises:
            StorageError: no answer for `limit_s` seconds.
            OSError: one of `answers`.
        """
        try:
            return ask()
        except answers:
            raise
        except OSError as error:
            return self._again(name, ask, error, answers)

    @property
    def stopped(self) -> bool:
        """Whether nobody wants an answer any more."""
        return self._stop.is_set()

    def _again(
        self, name: str, ask: Callable[[], Answer], error: OSError, answers: tuple[type[OSError], ...]
    ) -> Answer:
        began, pause, said = time.monotonic(), FIRST_PAUSE_S, False
        while True:
            self._tell_of_retries(name, error)
            gone = time.monotonic() - began
            if gone >= self.limit_s:
                self.waited_s += gone
                raise StorageError(
                    f"{name} could not be reached for {gone:.0f} s ({_reason(error)}); {self._advice}"
                ) from error
            if gone >= SAY_AFTER_S and not said:
                said = True
                self.say(f"{name} cannot be reached ({_reason(error)}): waiting for it, {self.limit_s:.0f} s at most")
            if self._stop.wait(min(pause, self.limit_s - gone)):
                raise Stopped
            pause = min(2 * pause, LONGEST_PAUSE_S)
            self.retries += 1
            try:
                answer = ask()
            except answers:
                raise
            except OSError as later:
                error = later
                continue
            gone = time.monotonic() - began
            self.waited_s += gone
            if said:
                self.say(f"{name} is back after {gone:.0f} s: going on")
            return answer

    def _tell_of_retries(self, name: str, error: OSError) -> None:
        if not self._told_of_retries:
            self._told_of_retries = True
            self.say(
                f"{name} could not be {self._what} ({_reason(error)}) and is tried again; later retries are counted, not said"
            )


def read_whole(name: str, ask: Callable[[], Answer]) -> Answer:
    """What is read of a small file, asked again for a few seconds when the disk or store does not answer.

    Args:
        name: The file, for the sentences.
        ask: As of `Patience.insist`.

    Raises:
        OSError: there is no such file, or it may not be read (`ANSWERS`).
        StorageError: the disk does not answer.
    """
    return Patience(SMALL_FILE_S, advice=AGAIN).insist(name, ask, ANSWERS)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
