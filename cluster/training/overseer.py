"""Is this attempt still wanted? Its driver holds the run's lock: where that is gone, or another's, nobody watches these workers.

A head node that dies takes the driver with it, and workers on other nodes live on for a minute. Without a driver they end with
a checkpoint; when another driver has gone on with the run, they write nothing more.
"""

from __future__ import annotations

import time

from vidssl.errors import BusyError
from vidssl.lock import STALE_S, quiet_s, token_of
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
        self._folder, self._token, self._looked = folder, token, time.monotonic()

    def gone(self) -> bool:
        """Whether the driver has died, or another has the run now; looked at every few seconds."""
        if not self._token or time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        return self._another() or quiet_s(self._folder.path) > STALE_S

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
