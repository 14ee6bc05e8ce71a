"""Which videos did a training skip, and why? One JSON line each in the run folder, written when it is found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict

from pipelines.loading.stream import BadSample
from vidssl.saved.run_folder import RunFolder

__all__ = ["SkippedVideos"]


class SkippedVideos:
    """Writes `skipped.jsonl`; all ranks write the same file, each line in one piece.

    An attempt tries the videos again that an earlier one skipped, so a video that stays bad has a line per attempt.

    Args:
        folder: The run.
        rank: Who skips.
        say: Told of the first one.
    """

    def __init__(self, folder: RunFolder, rank: int, say: Callable[[str], None]) -> None:
        self._path, self._rank, self._say, self._told = folder.skipped, rank, say, False

    def __call__(self, bad: BadSample) -> None:
        """Note one bad sample; a disk that does not take the line costs the line and not the run."""
        if not self._told:
            self._told = True
            self._say(f"skipped {bad.key}: {bad.reason}; this one and all others are named in {self._path}")
        line = json.dumps(asdict(bad) | {"rank": self._rank}) + "\n"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError as error:
            self._say(f"skipped {bad.key}: {bad.reason}; {self._path} cannot be written ({error.strerror})")
