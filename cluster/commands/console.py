"""Lines for a person: into any terminal, a full disk or a closed pipe, without a traceback."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

__all__ = ["OutputGone", "complain", "forget_output", "prepare_streams", "say"]

_PLAIN: Final = {
    "→": "->",
    "…": "...",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "−": "-",
    "–": "-",
    "·": "*",
}
"""What is written for our own signs where the terminal's encoding does not have them."""


class OutputGone(Exception):
    """Standard output cannot be written any more (closed pipe, full disk); the cause is the `OSError`."""


def say(line: str) -> None:
    """Print a line at once.

    Raises:
        OutputGone: nobody can read it.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        raise OutputGone(str(error)) from error


def complain(line: str) -> None:
    """A line on standard error; where even that cannot be written, the exit code has to say it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        forget_output()


def prepare_streams() -> None:
    """Let both streams take every character: what their encoding lacks is written plainly (`→` as `->`)."""
    codecs.register_error("vidssl-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vidssl-plain")


def forget_output() -> None:
    """Send what is still in the buffers nowhere: Python would try again at its end, and fail with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    said = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing)
    return "".join(said), error.end
