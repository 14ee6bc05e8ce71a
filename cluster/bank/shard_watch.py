"""Which shards are there? One that is lost is one sentence, when it is back: with what rows, and how long nothing was mined.

An absence that lasts is told before it ends, as with the bank itself (`cluster.bank.presence`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from cluster.bank.mirror import MinerGone
from cluster.bank.rows import Say
from cluster.bank.shard_actor import RECOVER, Opened, ShardIsNew

__all__ = ["ShardGone", "ShardWatch"]

ANSWER_S = 120.0
POLL_S = 0.2
LONG_S = 10.0
"""Seconds of an absence after which it is told although it goes on."""


class ShardGone(MinerGone):
    """A shard cannot be reached just now, so nothing can be mined."""


@dataclass
class _Absence:
    why: str
    source: str | None
    since: float
    told: bool = False


class ShardWatch:
    """The shards of one bank, as far as they are known to be there. Methods may be called from any thread.

    Args:
        actors: Handles, in the order of their slots.
        number: Of the bank.
        say: Told the sentences.
        back: Called with what a shard has, once it is there; before anything else is sent to it.
        returns: Whether a shard that was lost is to go on with what is on disk; a deterministic run ends instead.
    """

    def __init__(
        self, actors: Sequence[Any], number: int, say: Say, back: Callable[[int, Opened], None], returns: bool
    ) -> None:
        self.actors, self.number = list(actors), number
        self._say, self._back, self._returns = say, back, returns
        self._lock = threading.Lock()
        self._absent: dict[int, _Absence] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def absent(self) -> set[int]:
        """Shards that are not there."""
        return set(self._absent)

    def expect(self, source: str | None) -> None:
        """All shards are to begin the bank when they come up."""
        for shard in range(len(self.actors)):
            self._miss(shard, _Absence("it was not there yet", source, time.monotonic()))

    def lost(self, shard: int, why: str) -> None:
        """A call failed because this one cannot be reached."""
        self._miss(shard, _Absence(why, RECOVER, time.monotonic()))

    def check(self) -> None:
        """Nothing to say while all are there.

        Raises:
            ShardGone: one is not.
        """
        if shards := sorted(self.absent):
            raise ShardGone(f"{self._name(shards[0])} is away")

    def ask(self, method: str, *arguments: object, timeout_s: float = ANSWER_S) -> list[Any]:
        """The same of all; answers in the order of the slots.

        Raises:
            ShardGone: one does not answer.
            VidsslError: what one raises.
        """
        self.check()
        calls = {shard: getattr(actor, method).remote(*arguments) for shard, actor in enumerate(self.actors)}
        return self.answers(calls, timeout_s)

    def answers(self, calls: Mapping[int, Any], timeout_s: float = ANSWER_S, patient: bool = False) -> list[Any]:
        """What calls to some shards return.

        Args:
            calls: Shard → reference.
            timeout_s: For all of them together.
            patient: A shard that is late is not taken for lost.

        Raises:
            ShardGone: one does not answer.
            VidsslError: what one raises.
        """
        until, found = time.monotonic() + timeout_s, []
        for shard, call in calls.items():
            try:
                found.append(ray.get(call, timeout=max(0.0, until - time.monotonic())))
            except GetTimeoutError as error:
                if not patient:
                    self.lost(shard, f"no answer for {timeout_s:g} s")
                raise ShardGone(f"{self._name(shard)} did not answer within {timeout_s:g} s") from error
            except (RayActorError, RayTaskError) as error:
                raise self.failed(shard, error) from error
        return found

    def failed(self, shard: int, error: BaseException) -> Exception:
        """What a failed call means, as the exception to raise."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, (RayActorError, ShardIsNew)):
            self.lost(shard, type(cause).__name__)
            return ShardGone(f"{self._name(shard)} is away")
        return cause if isinstance(cause, Exception) else RuntimeError(str(error))

    def close(self) -> None:
        """Bring nothing back any more."""
        self._closed = True

    def _miss(self, shard: int, absence: _Absence) -> None:
        with self._lock:
            if shard in self._absent or self._closed:
                return
            self._absent[shard] = absence
            if (absence.source != RECOVER or self._returns) and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._bring_back, name="shards", daemon=True)
                self._thread.start()

    def _bring_back(self) -> None:
        calls: dict[int, Any] = {}
        while not self._closed:
            with self._lock:
                absent = dict(self._absent)
                if not absent:
                    self._thread = None
                    return
            for shard, absence in absent.items():
                if shard not in calls:
                    calls[shard] = self.actors[shard].open.remote(self.number, absence.source)
                self._look(shard, absence, calls)
            time.sleep(POLL_S / 4)

    def _look(self, shard: int, absence: _Absence, calls: dict[int, Any]) -> None:
        away_s = time.monotonic() - absence.since
        if away_s > LONG_S and absence.source == RECOVER and not absence.told:
            absence.told = True
            self._say(
                f"{self._name(shard)} is away ({absence.why}): training goes on, nothing is mined until it is back, and "
                "rows without mined positives fall back to their own instance"
            )
        try:
            opened: Opened = ray.get(calls[shard], timeout=POLL_S)
        except GetTimeoutError:
            return
        except RayError:
            calls.pop(shard)
            return
        calls.pop(shard)
        self._back(shard, opened)
        with self._lock:
            self._absent.pop(shard)
        if absence.source == RECOVER:
            self._say(
                f"{self._name(shard)} was lost ({absence.why}) and started again with {opened.said}; nothing was mined "
                f"for {away_s:.0f} s"
            )

    def _name(self, shard: int) -> str:
        return f"shard {shard + 1} of {len(self.actors)} of the bank"
