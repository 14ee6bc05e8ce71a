"""How does a worker talk to the bank without waiting for it? One daemon thread owns every call; training only queues.

A full queue drops the push and counts it. In a deterministic run nothing may be dropped: pushes wait for room and
`take` waits for exactly its result.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.bank.link import BankGone, Link
from cluster.bank.presence import Presence
from cluster.bank.spec import BankSpec, Began, Push
from cluster.bank.tally import Tally
from vidssl.batch import Embeddings, Positives
from vidssl.errors import StorageError
from vidssl.mining.rows import stored

__all__ = ["BankClient", "BankRestarted"]

POLLS_PER_STEP = 3
POLL_S = (0.002, 0.05)
STATS_S = 2.0
PAUSE_S = 0.2
"""Pause after the bank could not be reached."""

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
        in_flight: Pushes that may be unanswered; an answer brings what was asked for, so it takes up to the lookahead.
            None: two more than the lookahead, at least 4.
        timeout_s: Longest wait for one result (deterministic) and for blocking calls.
        away_s: Seconds without an answer after which a bank that dropped pushes counts as away.
        say: Told in a sentence, once each: that the bank is away, that it is back, and what the bank itself has to say.
            Called from the client's own thread. None: the log of this process.

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
        in_flight: int | None = None,
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
        self._trouble = ""
        self._in_flight = in_flight or max(4, spec.lookahead + 2)
        self._queue: queue.Queue[Push] = queue.Queue(depth)
        self._changed = threading.Condition()
        self._asked: dict[int, NDArray[np.int64]] = {}
        self._found: dict[int, Positives] = {}
        self._step, self._lost, self._closed = -1, "", False
        self._poll_s, self._pushed_at = POLL_S[0], 0.0
        self._pushes: dict[Any, Push] = {}
        self._waits: dict[Any, int] = {}
        self._stats: dict[str, float | str] = {}
        self._stats_ref, self._stats_at = None, 0.0
        self._unsent = 0  # queued, or taken from the queue and not yet answered
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
        began: Began = self._call("reset", source, world, start_step)
        if began.said:
            self._say(began.said)
        self.join(began.attempt)
        return self.attempt

    def join(self, attempt: int) -> None:
        """All ranks: belong to this attempt; what an earlier one still sends is ignored."""
        self.attempt = attempt

    def push(self, rows: Embeddings, next_ids: NDArray[np.int64] | Tensor | None, next_step: int) -> None:
        """Hand over a step's rows and ask for the positives of a later one.

        Never waits, except for room in the queue of a deterministic run.

        Raises:
            StorageError: deterministic, and the bank takes nothing any more.
        """
        began = time.perf_counter()
        ids = None if next_ids is None else np.array(next_ids, np.int64)
        views = {view: stored(np.asarray(values), self.spec.dtype) for view, values in rows.views.items()}
        message = Push(self.attempt, replace(rows, views=views), ids, next_step)
        with self._changed:
            self._unsent += 1
            if ids is not None:
                self._asked[next_step] = ids
        try:
            self._queue.put(message, block=self.spec.deterministic, timeout=self._timeout_s)
            self._tally.count("pushed")
        except queue.Full:
            self._drop(next_step)
        # Looking costs CPU that training may need: a few looks a step are enough to be in time for the next.
        step_s, self._pushed_at = began - self._pushed_at, began
        self._poll_s = 0.005 if self.spec.deterministic else min(max(step_s / POLLS_PER_STEP, POLL_S[0]), POLL_S[1])
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
            if self.spec.deterministic and step in self._asked:
                self._wait_for(step)
            found, asked = self._found.pop(step, None), self._asked.pop(step, None)
            for old in [key for key in self._asked | self._found if key < step]:
                self._asked.pop(old, None)
                self._found.pop(old, None)
        return self._usable(found, asked, step, rows)

    def drain(self) -> None:
        """Wait until everything pushed is written and everything asked for is here (before a checkpoint).

        Raises:
            StorageError: deterministic, and the bank does not answer. Otherwise what is missing falls back.
            BankRestarted: deterministic, and the bank lost its state.
        """
        patience = self._timeout_s if self.spec.deterministic else min(self._timeout_s, 5.0)
        with self._changed:
            done = self._changed.wait_for(lambda: self._lost or self._quiet(), patience)
            self._raise_if_lost()
        if not done and self.spec.deterministic:
            raise StorageError(
                f"the bank did not answer within {patience:g} s; look at the run's Ray log and resume it"
            )

    def save(self, root: str, step: int) -> str:
        """Snapshot of the bank as of `step` steps; returns its path.

        Raises:
            BankError: a row in it is not finite.
            StorageError: it cannot be written, or the bank cannot be reached.
        """
        return self._call("save", root, step)

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
        return self._tally.read(stats, self.spec.labelled)

    def state_dict(self) -> dict[str, Any]:
        """Results that are here and not yet taken; plain tensors, for a checkpoint."""
        with self._changed:
            return {
                "asked": {
                    step: torch.from_numpy(self._asked[step].copy()) for step in self._found if step in self._asked
                },
                "found": {step: _as_tensors(found) for step, found in self._found.items() if step in self._asked},
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with results of a checkpoint."""
        with self._changed:
            self._asked = {int(step): ids.numpy().copy() for step, ids in state["asked"].items()}
            self._found = {int(step): _as_positives(found) for step, found in state["found"].items()}

    def close(self) -> None:
        """Stop the thread; what is queued is not sent any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._send_one()
                self._collect()
            except BankGone as error:
                self._gone(str(error))
            except Exception as error:  # a client whose thread died would fall back for ever without a word
                self._tally.count("errors")
                _log.warning("bank: %s: %s", type(error).__name__, error)

    def _send_one(self) -> None:
        if len(self._pushes) >= self._in_flight:
            time.sleep(self._poll_s)
            return
        with contextlib.suppress(queue.Empty):
            message = self._queue.get(timeout=self._poll_s)
            self._pushes[self._link.push(message)] = message

    def _collect(self) -> None:
        if self._stats_ref is None and time.monotonic() - self._stats_at > STATS_S:
            self._stats_ref, self._stats_at = self._link.stats(), time.monotonic()
        extra = [] if self._stats_ref is None else [self._stats_ref]
        for reference in self._link.finished([*self._pushes, *self._waits, *extra]):
            if reference is self._stats_ref:
                self._stats_ref = None
                self._stats = self._link.value(reference)
                self._presence.answered()
                self._pass_on(str(self._stats.get("trouble", "")))
            elif reference in self._waits:
                step = self._waits.pop(reference)
                with self._forgotten_on_fault(step):
                    self._received(step, self._link.value(reference))
            else:
                self._answered(reference)

    @contextlib.contextmanager
    def _forgotten_on_fault(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception:
            with self._changed:
                self._asked.pop(step, None)  # it will not come, so nobody should wait for it
            raise

    def _received(self, step: int, found: Positives | None) -> None:
        with self._changed:
            wanted = step in self._asked and not self._lost
            if found is not None and wanted:
                self._found[step] = _writable(found)
            self._changed.notify_all()
        if found is None and wanted:  # the call gave up, the step has not come: ask again
            self._waits[self._link.wait(self.attempt, self.rank, step)] = step

    def _answered(self, reference: Any) -> None:
        message = self._pushes.pop(reference)
        with self._changed:
            self._unsent -= 1
        with self._forgotten_on_fault(message.next_step):
            verdict, found = self._link.value(reference)
        self._presence.answered()
        if verdict == "ok":
            self._received(message.next_step, found)
            return
        self._tally.count(verdict)
        with self._changed:
            self._asked.pop(message.next_step, None)
            if verdict == "lost":
                self._lost = "the bank was restarted"
            self._changed.notify_all()

    def _pass_on(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._trouble = trouble
            self._say(trouble)

    def _gone(self, why: str) -> None:
        self._tally.count("errors")
        self._presence.lost(why)
        with self._changed:
            self._unsent -= len(self._pushes)
            self._pushes.clear()
            self._waits.clear()
            self._stats_ref = None
            self._asked = {step: ids for step, ids in self._asked.items() if step in self._found}
            self._lost = f"the bank was lost ({why})" if self.spec.deterministic else ""
            self._changed.notify_all()
        time.sleep(PAUSE_S)

    def _drop(self, next_step: int) -> None:
        with self._changed:
            self._unsent -= 1
            self._asked.pop(next_step, None)
        self._tally.count("dropped")
        self._presence.dropped()
        if self.spec.deterministic:
            self._raise_if_lost()
            raise StorageError(
                f"the bank took no push for {self._timeout_s:g} s; look at the run's Ray log and resume it"
            )

    def _wait_for(self, step: int) -> None:
        here = self._changed.wait_for(lambda: step in self._found or self._lost or self._closed, self._timeout_s)
        if step in self._found:
            return
        self._raise_if_lost()
        if not here:
            said = f"positives of step {step} did not come within {self._timeout_s:g} s"
            raise StorageError(f"{said}: every rank must push every step of a deterministic run; resume it")

    def _raise_if_lost(self) -> None:
        if self._lost and self.spec.deterministic:
            raise BankRestarted(f"{self._lost}; a deterministic run goes on from its last checkpoint")

    def _quiet(self) -> bool:
        return self._unsent <= 0 and all(step in self._found for step in self._asked if step > self._step)

    def _usable(
        self, found: Positives | None, asked: NDArray[np.int64] | None, step: int, rows: int | NDArray | Tensor
    ) -> Positives:
        plan = self.spec.plan
        size = rows if isinstance(rows, int) else len(rows)
        if found is None or len(found.ids) != size:
            found = Positives.none(size, plan.k, self.spec.dim, plan.depth)
        elif not isinstance(rows, int) and asked is not None:
            self._forget(found, asked != np.asarray(rows), "other_rows")
        age = step - found.mined_at
        self._forget(found, (found.mined_at >= 0) & (age > self.spec.max_staleness_steps), "stale_rows")
        fallback = (found.ids < 0).all(1)
        self._tally.served(float(age[~fallback].sum()))
        self._tally.count("taken_rows", size)
        self._tally.count("fallback_rows", int(fallback.sum()))
        self._presence.fell_back(int(fallback.sum()))
        self._tally.count("positives", int((found.ids >= 0).sum()))
        return found

    def _forget(self, found: Positives, which_B: NDArray[np.bool_], name: str) -> None:
        found.ids[which_B], found.vectors[which_B], found.mined_at[which_B] = -1, 0, -1
        found.survivors[which_B] = 0
        self._tally.count(name, int(which_B.sum()))

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return self._link.call(method, *args, timeout_s=self._timeout_s)
        except BankGone as error:
            raise StorageError(
                f"the bank cannot be reached ({error}); resume the run from its last checkpoint"
            ) from error


def _writable(found: Positives) -> Positives:
    # Arrays out of Ray's store are read-only, which torch warns about.
    return Positives(**{field.name: np.array(getattr(found, field.name)) for field in fields(found)})


def _as_tensors(found: Positives) -> dict[str, Tensor]:
    return {field.name: torch.from_numpy(getattr(found, field.name).copy()) for field in fields(found)}


def _as_positives(state: dict[str, Tensor]) -> Positives:
    return Positives(**{name: values.numpy().copy() for name, values in state.items()})
