"""How does a worker talk to the bank without waiting for it? One daemon thread owns every call; training only queues.

One call a step: the rows that were made, and the list of what will be needed; its answer brings what is known for that
list. A full queue drops the push and counts it. In a deterministic run nothing may be dropped: pushes wait for room and
`take` waits for exactly its result, which the thread asks for until it is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cluster.bank.asked import Asked, AskedStep
from cluster.bank.link import BankGone, Link
from cluster.bank.presence import Presence
from cluster.bank.saver import saved_by
from cluster.bank.spec import Answer, BankSpec, Began, Push, Wanted
from cluster.bank.tally import Tally
from vidssl.batch import Embeddings, Positives
from vidssl.errors import StorageError

__all__ = ["BankClient", "BankRestarted"]

STATS_S = 2.0
PAUSE_S = 0.2
"""Pause after the bank could not be reached."""
ASK_S = (0.002, 0.05)
"""Deterministic: shortest and longest pause between two questions for a result."""

_log = logging.getLogger(__name__)


class BankRestarted(RuntimeError):
    """A deterministic run lost its bank: not the user's mistake, and the last checkpoint holds everything to go on."""


class BankClient:
    """One rank's side of the bank.

    Args:
        link: Connection to the bank.
        spec: The run's bank.
        rank: This worker's rank.
        depth: Pushes that may wait here.
        in_flight: Pushes that may be unanswered.
        timeout_s: Longest wait for one result (deterministic) and for blocking calls.
        away_s: Seconds without an answer after which a bank that dropped pushes counts as away, and after which an outage
            is told before it ends.
        say: Told in a sentence, once each: that the bank was lost and is back, or is away for longer, and what the bank
            itself has to say. None: the log of this process.

    Attributes:
        counts: Totals: pushed, dropped, errors, taken_rows, fallback_rows, stale_rows, other_rows.
    """

    def __init__(
        self,
        link: Link,
        spec: BankSpec,
        rank: int,
        *,
        depth: int = 4,
        in_flight: int = 4,
        timeout_s: float = 120.0,
        away_s: float = 10.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.spec, self.rank, self.attempt = spec, rank, 0
        self._tally = Tally()
        self.counts = self._tally.totals
        self._link, self._timeout_s = link, timeout_s
        self._say: Callable[[str], None] = say or _log.warning
        # A deterministic run does not go on without its bank: the error that ends the attempt says so.
        self._presence = Presence((lambda line: None) if spec.deterministic else self._say, away_s)
        self._passed_on: set[tuple[float, str]] = set()
        self._depth, self._in_flight = depth, in_flight
        self._changed = threading.Condition()
        self._queue: deque[Embeddings] = deque()
        self._asked = Asked(spec)
        self._flying: dict[Future[Any], tuple[int, Push | None]] = {}  # number of the call; None: the bank's counters
        self._calls = self._newest_answered = 0
        self._done: deque[Future[Any]] = deque()
        self._step, self._last, self._lost, self._closed = -1, -1, "", False
        self._leaving = False  # a push is on its way from the queue to the bank
        self._question, self._asked_at, self._ask_s = False, 0.0, ASK_S[0]
        self._stats: dict[str, float | str] = {}
        self._stats_at = 0.0
        self._thread = threading.Thread(target=self._run, name="bank-client", daemon=True)
        self._thread.start()

    def reset(self, source: str | None, world: int, start_step: int) -> int:
        """Rank 0, at the start of an attempt. Returns its number for `join`.

        Args:
            source: None: an empty bank; one snapshot: exactly that one; a run's folder of snapshots: the newest whole one
                up to `start_step`, with a sentence where that is not the step's own.
            world: Ranks that push.
            start_step: Optimizer steps done.

        Raises:
            BankError: the snapshot is damaged or does not fit.
            StorageError: the bank cannot be reached.
        """
        began: Began = self._call("reset", source, world, start_step, patience=2)  # its process may still be starting
        if began.said:
            self._say(began.said)
        self.join(began.attempt)
        return self.attempt

    def join(self, attempt: int) -> None:
        """All ranks: belong to this attempt; what an earlier one still sends is ignored."""
        self.attempt = attempt

    def push(self, rows: Embeddings, next_ids: NDArray[np.int64] | Tensor | None, next_step: int) -> None:
        """Hand over a step's rows and say which will be needed at a later one, `spec.horizon` steps ahead.

        Never waits, except for room in the queue of a deterministic run.

        Raises:
            StorageError: deterministic, and the bank takes nothing any more.
        """
        began = time.perf_counter()
        with self._changed:
            if next_ids is not None:
                self._asked.add(next_step, np.array(next_ids, np.int64))
            if self.spec.deterministic:
                self._changed.wait_for(lambda: self._lost or len(self._queue) < self._depth, self._timeout_s)
            room = len(self._queue) < self._depth
            if room:
                self._queue.append(rows)
                self._changed.notify_all()
        if room:
            self._tally.count("pushed")
        else:
            self._drop()
        self._tally.pushed_for(time.perf_counter() - began)

    def take(self, step: int, rows: int | NDArray[np.int64] | Tensor) -> Positives:
        """Positives of this step's rows; -1 where nothing is there, too old, or mined for another video.

        Args:
            step: Step that begins.
            rows: B, or the instances [B] of the batch, which are then compared with those that were asked for.

        Raises:
            StorageError: deterministic, and the result did not come in time.
            BankRestarted: deterministic, and the bank lost its state.
        """
        with self._changed:
            self._step = step
            if self.spec.deterministic:
                self._wait_for(self._asked.get(step), step)
            asked = self._asked.pop(step)
        return self._usable(asked, step, rows)

    def drain(self) -> None:
        """Wait until everything pushed is written, and what was mined for the next steps is here (before a checkpoint).

        Raises:
            StorageError: deterministic, and the bank does not answer. Otherwise what is missing falls back.
            BankRestarted: deterministic, and the bank lost its state.
        """
        patience = self._timeout_s if self.spec.deterministic else min(self._timeout_s, 5.0)
        with self._changed:
            self._question, self._ask_s = True, ASK_S[0]
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._lost or self._quiet(), patience)
            self._raise_if_lost()
        if not done and self.spec.deterministic:
            raise StorageError(
                f"the bank did not answer within {patience:g} s; look at the run's Ray log and resume it"
            )

    def save(self, root: str, step: int, wait: bool = True) -> str:
        """As `cluster.bank.saver.saved_by`."""
        return saved_by(self._call, root, step, wait)

    def stats(self) -> dict[str, float | str]:
        """The bank's own counters, asked for now.

        Raises:
            StorageError: the bank cannot be reached.
        """
        return self._call("stats")

    def read(self) -> dict[str, float | None]:
        """Numbers for the log since the last read; always the same names, None where there is nothing to measure yet."""
        with self._changed:
            stats = dict(self._stats)
        return self._tally.read(stats, self.spec.labelled) | self._presence.read()

    def state_dict(self) -> dict[str, Any]:
        """What was asked for and not yet taken, with what is here of it; plain tensors, for a checkpoint."""
        with self._changed:
            return self._asked.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with results of a checkpoint."""
        with self._changed:
            self._asked.load_state_dict(state)

    def close(self) -> None:
        """Stop the thread; what is queued is not sent any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._done or self._to_send(), self._pause())
                done = [self._done.popleft() for _ in range(len(self._done))]
            for future in done:
                self._guarded(lambda future=future: self._collect(future))
            self._guarded(self._send)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BankGone as error:
            self._gone(str(error))
        except Exception as error:  # a client whose thread died would fall back for ever without a word
            self._tally.count("errors")
            _log.warning("bank: %s: %s", type(error).__name__, error)

    def _to_send(self) -> bool:
        return (bool(self._queue) and self._pushes() < self._in_flight) or (self._question and not self._pushes())

    def _pushes(self) -> int:
        return self._leaving + sum(push is not None for _, push in self._flying.values())

    def _send(self) -> None:
        with self._changed:
            rows = self._queue.popleft() if self._queue and self._pushes() < self._in_flight else None
            ask = rows is None and not self._pushes() and (self._question or self._is_due())
            push = self._message(rows) if rows is not None or ask else None
            if rows is None and push is not None:
                self._question, self._asked_at = False, time.monotonic()
                self._ask_s = min(1.5 * self._ask_s, ASK_S[1])
            self._leaving = push is not None
            self._changed.notify_all()  # there is room now
        if push is not None:
            try:  # rows of a GPU may still be under way: it is this thread that waits for them
                self._fly(self._link.serve(push.arrived(self.spec.dtype)), push)
            finally:
                self._leaving = False
        if time.monotonic() - self._stats_at > STATS_S:
            self._stats_at = time.monotonic()
            self._fly(self._link.stats(), None)

    def _message(self, rows: Embeddings | None) -> Push:
        self._last = self._last if rows is None else rows.step
        return Push(self.attempt, self.rank, self._last, rows, self._asked.wanted())

    def _fly(self, future: Future[Any], push: Push | None) -> None:
        with self._changed:
            self._calls += 1
            self._flying[future] = self._calls, push
        future.add_done_callback(self._landed)

    def _landed(self, future: Future[Any]) -> None:
        with self._changed:
            self._done.append(future)
            self._changed.notify_all()

    def _collect(self, future: Future[Any]) -> None:
        with self._changed:
            known, (call, push) = future in self._flying, self._flying.pop(future, (0, None))
            self._changed.notify_all()
        if not known:
            return  # it went down with a bank that is given up already
        try:
            value = self._link.value(future)
        except BankGone:
            if call > self._newest_answered or self.spec.deterministic:
                raise
            self._tally.count("errors")  # a later call was answered: this one went down with the process before
            return
        self._newest_answered = max(call, self._newest_answered)
        if self._presence.answered():
            self._stats_at = 0.0  # its next answer says what it came back with
        if push is None:
            self._stats = value
            self._presence.seen(int(value["process"]), str(value["restart"]))
            self._pass_on("trouble", value)
            if self.rank == 0:
                self._pass_on("space", value)
            return
        verdict, answer = value
        if verdict == "ok":
            self._received(push.wanted, answer)
            return
        self._tally.count(verdict)
        with self._changed:
            self._lost = "the bank was restarted" if verdict == "lost" else self._lost
            self._changed.notify_all()

    def _received(self, wanted: Wanted, answer: Answer | None) -> None:
        if answer is None:
            return
        with self._changed:
            self._asked.enter(wanted, answer)
            self._ask_s = ASK_S[0]
            self._changed.notify_all()

    def _is_due(self) -> bool:
        """Whether a deterministic run has a result to ask for again, now."""
        return self._unanswered() and time.monotonic() - self._asked_at >= self._ask_s

    def _unanswered(self) -> bool:
        return self.spec.deterministic and not self._lost and not self._asked.complete()

    def _pause(self) -> float:
        return self._ask_s if self._unanswered() else STATS_S

    def _pass_on(self, about: str, value: dict[str, float | str]) -> None:
        """Sentences of the bank's process, each once: another process may have to say the same again."""
        for sentence in str(value.get(about, "")).splitlines():
            key = (float(value["process"]), sentence)
            if key not in self._passed_on:
                self._passed_on.add(key)
                self._say(sentence)

    def _gone(self, why: str) -> None:
        self._tally.count("errors")
        self._presence.lost(why)
        with self._changed:
            self._flying.clear()
            self._lost = f"the bank was lost ({why})" if self.spec.deterministic else ""
            self._changed.notify_all()
        time.sleep(PAUSE_S)

    def _drop(self) -> None:
        self._tally.count("dropped")
        self._presence.dropped()
        if self.spec.deterministic:
            self._raise_if_lost()
            raise StorageError(
                f"the bank took no push for {self._timeout_s:g} s; look at the run's Ray log and resume it"
            )

    def _wait_for(self, asked: AskedStep | None, step: int) -> None:
        if asked is None or asked.here.all():
            return
        self._question, self._ask_s = True, ASK_S[0]
        self._changed.notify_all()
        here = self._changed.wait_for(lambda: asked.here.all() or self._lost or self._closed, self._timeout_s)
        if asked.here.all():
            return
        self._raise_if_lost()
        if not here:
            said = f"positives of step {step} did not come within {self._timeout_s:g} s"
            raise StorageError(f"{said}: every rank must push every step of a deterministic run; resume it")

    def _raise_if_lost(self) -> None:
        if self._lost and self.spec.deterministic:
            raise BankRestarted(f"{self._lost}; a deterministic run goes on from its last checkpoint")

    def _quiet(self) -> bool:
        return not (self._queue or self._pushes() or self._question or self._unanswered())

    def _usable(self, asked: AskedStep | None, step: int, rows: int | NDArray | Tensor) -> Positives:
        size = rows if isinstance(rows, int) else len(rows)
        if asked is None or len(asked.ids) != size:
            asked, found = None, self._asked.nothing(size)
        else:
            found = asked.found
        if asked is not None and not isinstance(rows, int):
            self._forget(found, asked.ids != np.asarray(rows), "other_rows")
        age = step - found.mined_at
        if self.spec.max_staleness_steps is not None:
            self._forget(found, (found.mined_at >= 0) & (age > self.spec.max_staleness_steps), "stale_rows")
        fallback = (found.ids < 0).all(1)
        self._tally.taken(age[~fallback], int(fallback.sum()), int((found.ids >= 0).sum()))
        self._presence.fell_back(int(fallback.sum()))
        return found

    def _forget(self, found: Positives, which_B: NDArray[np.bool_], name: str) -> None:
        found.ids[which_B], found.vectors[which_B], found.mined_at[which_B] = -1, 0, -1
        found.survivors[which_B] = 0
        self._tally.count(name, int(which_B.sum()))

    def _call(self, method: str, *args: Any, patience: float = 1) -> Any:
        try:
            return self._link.call(method, *args, timeout_s=patience * self._timeout_s)
        except BankGone as error:
            raise StorageError(
                f"the bank cannot be reached ({error}); resume the run from its last checkpoint"
            ) from error
