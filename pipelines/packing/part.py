"""What of a file is one video? All of it, a range of its time, or a stretch of its bytes (a member of a tar)."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["WHOLE", "Cut", "Part", "parse_cut"]

_SECONDS = re.compile(r"(\d{1,5}(?:\.\d{1,3})?)s")
_SHORTEST = 0.5


@dataclass(frozen=True)
class Part:
    """Where a video lies within its file.

    Attributes:
        start: Seconds from the beginning of the file's timeline to the first frame; None: no range, all frames.
        stop: Seconds to the end of the range, which is not part of it.
        offset: First byte in the file.
        size: Bytes; None: to the end of the file.
    """

    start: float | None = None
    stop: float | None = None
    offset: int = 0
    size: int | None = None

    @property
    def is_range(self) -> bool:
        """Whether only some of the frames are wanted."""
        return self.start is not None and self.stop is not None


WHOLE = Part()
"""The file is the video."""


@dataclass(frozen=True)
class Cut:
    """How sources are cut.

    Attributes:
        every: Seconds of a clip; None: at changes of scene.
        least: Seconds; what is shorter becomes no clip.
        threshold: Score of FFmpeg's `scdet` from which two frames belong to two scenes.
    """

    every: float | None
    least: float
    threshold: float


def parse_cut(word: str) -> float | None:
    """Seconds of `10s`; None for `scenes`.

    Raises:
        ValueError: neither.
    """
    if word == "scenes":
        return None
    match = _SECONDS.fullmatch(word)
    if match is None or float(match[1]) < _SHORTEST:
        raise ValueError("input should be none, scenes, or the seconds of a clip from 0.5s on, e.g. 10s")
    return float(match[1])
