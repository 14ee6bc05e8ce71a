"""What of a file is one video? All of it, a range of its time, or a stretch of its bytes (a member of a tar)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WHOLE", "Part"]


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
