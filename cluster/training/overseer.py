"""Is this attempt still wanted? Its driver holds the run's lock: where that is gone, or another's, nobody watches these workers.

A head node that dies takes the driver with it, and workers on other nodes live on for a minute. Without a driver they end with
a checkpoint; when another driver has gone on with the run, they write nothing more.
"""

from __future__ import annotations

import time

from vidssl.errors import BusyError
from vidssl.lock import STALE_S, heartbeat, token_of
from vidssl.saved.run_folder import RunFolder

__all__ = ["Overseer"]

LOOK_S = 5.0


class Overseer:
    """Of rank 0; the other ranks hear of it.

    Args:
        folder: Of the run.
        token: Of the lock under which this attempt was begun; "": none is looked for.
    """

    def __init__(self, folder: RunFolder, token: str) -> None:
        self._folder, self._token = folder, token
        self._looked = self._beat_at = time.monotonic()
        self._beat = 0.0

    def gone(self) -> bool:
        """Whether the driver has died, or another has the run now; looked at every few seconds."""
        if not self._token or time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        beat = heartbeat(self._folder.path)
        if beat is None or beat != self._beat:  # a clock that stands still while a machine sleeps, as this process does
            self._beat, self._beat_at = beat or self._beat, self._looked
        return self._another() or self._looked - self._beat_at > STALE_S

    def refuse_another(self) -> None:
        """Before anything is written.

        Raises:
            BusyError: another driver has gone on with the run.
        """
        if self._token and self._another():
            raise BusyError(
                f"another process goes on with {self._folder.path} now: these workers, whose own driver is gone, write nothing more"
            )

    def _another(self) -> bool:
        return token_of(self._folder.path) not in ("", self._token)  # "": a store that is away for a moment
