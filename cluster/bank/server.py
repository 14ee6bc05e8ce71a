"""What does the bank's process do? It writes what workers push and mines, one step ahead, what they will need next.

Nothing here knows Ray: `cluster.bank.actor` is the face, `cluster.bank.link.LocalLink` the same within one process.

Asynchronous: a push is written at once; a miner thread serves the newest request first and forgets requests whose step
has come. Deterministic: the pushes of step s are written in rank order once all ranks have sent theirs, then every
rank's rows for a later step are mined from exactly that state, before any push of step s+1 is written.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.bank.recovery import LIVE, clear_leftovers, open_source, recover, store_attempt, stored_attempt
from cluster.bank.spec import BankSpec, Began, Push, Verdict
from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError, StorageError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.metrics import MiningMonitor
from vidssl.mining.moments import Moment
from vidssl.mining.snapshots import save_snapshot

__all__ = ["BankServer"]

_log = logging.getLogger(__name__)

Work = list[Push] | tuple[int, int, NDArray[np.int64]]
"""All ranks' pushes of one step, or one request: rank, step, ids."""


class BankServer:
    """Bank, miner thread and results that wait to be fetched. Every method may be called from any thread.

    Args:
        spec: The run's bank.
        group: int64 [N] or None, see `EmbeddingBank`.
        label: int64 [N] or None, read by the monitor only.
        restarted: This process replaces one that died; its rows come from the newest whole snapshot.

    Attributes:
        note: What last happened to its rows, for the log of the process.
        trouble: What the user has to know, said once for each cause; the clients pass it on.
    """

    def __init__(
        self,
        spec: BankSpec,
        group: NDArray[np.int64] | None = None,
        label: NDArray[np.int64] | None = None,
        restarted: bool = False,
    ) -> None:
        self.spec, self.note, self.trouble = spec, "started empty", ""
        self._group = group
        self._monitor = None if label is None else MiningMonitor(np.array(label, np.int64))
        self._changed = threading.Condition()
        self._bank = self._empty()
        self._attempt = stored_attempt(spec.root)
        self._lost = restarted and spec.deterministic
        self._unsure = restarted and not spec.deterministic
        self._world, self._expected = spec.world, 0
        self._clear()
        self._counts: Counter[str] = Counter()
        if spec.root:
            clear_leftovers(Path(spec.root))
        if spec.root and restarted:
            found = recover(Path(spec.root), self._bank, spec.data_hash)
            self._bank, self.note, self.trouble = found.bank, found.note, found.trouble
        self._closed = False
        self._writer: threading.Thread | None = None
        self._miner = threading.Thread(target=self._run, name="miner", daemon=True)
        self._miner.start()

    def reset(self, source: str | None, world: int, start_step: int) -> Began:
        """Begin a training attempt: `start_step` comes next.

        Args:
            source: Where its rows come from: None, nowhere; one snapshot, exactly that one; a folder of snapshots, the
                newest whole one up to `start_step`. See `vidssl.mining.reopen.source_of`.
            world: Ranks that push.
            start_step: Optimizer steps done.

        Raises:
            BankError: the snapshot is damaged or does not fit this run.
            StorageError: the run's folder cannot be written.
        """
        said: list[str] = []
        bank = open_source(source, start_step, self._empty(), self.spec.data_hash, said.append)
        bank.rewind(start_step)  # a snapshot of a later step may be asked for; its rows are not newer than what comes
        with self._changed:
            self._bank, self.note = bank, f"from {source}" if source else "started empty"
            self._attempt += 1
            store_attempt(self.spec.root, self._attempt)
            self._lost, self._unsure, self._world, self._expected = False, False, world, start_step
            self._clear()
            self._changed.notify_all()
            if said and self.spec.deterministic:
                said.append("so this deterministic run goes on, and is not the straight one bit for bit")
            return Began(self._attempt, "; ".join(said))

    def push(self, message: Push) -> Verdict:
        """Take one worker's rows and its request; the same message twice changes nothing."""
        with self._changed:
            if verdict := self._refusal(message):
                self._counts["late" if verdict == "late" else "lost"] += 1
                return verdict
            if self.spec.deterministic:
                self._arrived.setdefault(message.rows.step, {})[message.rows.rank] = message
                self._changed.notify_all()
                return "ok"
            bank = self._bank
            if self._unsure:  # what a restarted bank found may be of a later step: of before this one was started
                bank.rewind(message.rows.step)
                self._unsure = False
        self._write(bank, message.rows)
        with self._changed:
            self._request(message)
            self._changed.notify_all()
        return "ok"

    def serve(self, message: Push, timeout_s: float = 20.0) -> tuple[Verdict, Positives | None]:
        """`push`, then `wait` for what it asked for: one call instead of two, since calls are what a push costs."""
        verdict = self.push(message)
        if verdict != "ok" or message.next_ids is None:
            return verdict, None
        return verdict, self.wait(message.attempt, message.rows.rank, message.next_step, timeout_s)

    def wait(self, attempt: int, rank: int, step: int, timeout_s: float = 20.0) -> Positives | None:
        """The positives of one rank's rows of one step, as soon as they are mined; None when they are not in time."""
        key = (rank, step)
        with self._changed:
            self._changed.wait_for(lambda: key in self._results or self._over(attempt, rank, step), timeout_s)
            return None if attempt != self._attempt else self._results.get(key)

    def settle(self, step: int, timeout_s: float = 60.0) -> bool:
        """Deterministic: wait until every step before `step` is written. Returns whether that is so."""
        with self._changed:
            done = lambda: not self.spec.deterministic or self._expected >= step  # noqa: E731
            return self._changed.wait_for(done, timeout_s)

    def save(self, root: str, step: int) -> str:
        """Snapshot of this moment as `root/snap-<step>`; returns its path.

        Raises:
            StorageError: the folder cannot be written, or (deterministic) steps before `step` never arrived.
        """
        if self._lost or not self.settle(step):
            raise StorageError(f"the bank misses pushes before step {step}, so it cannot be saved as of that step")
        with self._changed:
            bank = self._bank
        return str(save_snapshot(bank, Path(root), step, self.spec.keep, self._extra()))

    def stats(self) -> dict[str, float | str]:
        """Counters since the start, how full the bank is, and (with labels) how well it mines."""
        with self._changed:
            counts, bank, note = Counter(self._counts), self._bank, self.note
        mined = max(counts["mined_batches"], 1)
        quality = self._monitor.read() if self._monitor else {}
        return {
            "step": float(bank.step),
            "filled": bank.filled / bank.n_slots,
            "written_rows": float(counts["written_rows"]),
            "mined_rows": float(counts["mined_rows"]),
            "mine_ms": counts["mine_us"] / 1e3 / mined,
            "requests_dropped": float(counts["requests_dropped"]),
            "late": float(counts["late"]),
            "lost": float(counts["lost"]),
            "rejected": float(counts["rejected"]),
            "note": note,
            "trouble": self.trouble,
            **quality,
        }

    def process_id(self) -> int:
        """Of the process that holds the bank."""
        return os.getpid()

    def close(self) -> None:
        """Stop the miner."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._miner.join(10)
        if self._writer is not None:
            self._writer.join(60)

    def _clear(self) -> None:
        self._arrived: dict[int, dict[int, Push]] = {}
        self._requests: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._results: dict[tuple[int, int], Positives] = {}
        self._newest: dict[int, int] = {}

    def _refusal(self, message: Push) -> Verdict | None:
        if self._lost:
            return "lost"
        if message.attempt > self._attempt and not self.spec.deterministic:
            self._attempt = message.attempt  # a restarted bank without stored attempt learns it from the workers
        if message.attempt != self._attempt:
            return "late"
        return "late" if self.spec.deterministic and message.rows.step < self._expected else None

    def _request(self, message: Push) -> None:
        rank, step = message.rows.rank, message.rows.step
        if message.attempt != self._attempt:
            return
        self._newest[rank] = max(self._newest.get(rank, -1), step)
        if message.next_ids is not None:
            self._requests[rank, message.next_step] = message.next_ids
        for key in [key for key in self._requests if key[0] == rank and key[1] <= step]:
            del self._requests[key]
            self._counts["requests_dropped"] += 1
        for key in [key for key in self._results if key[0] == rank and key[1] <= step]:
            del self._results[key]

    def _over(self, attempt: int, rank: int, step: int) -> bool:
        return self._closed or self._lost or attempt != self._attempt or self._newest.get(rank, -1) >= step

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return
                attempt, bank = self._attempt, self._bank
                work = self._next_work()
            try:
                for rank, step, ids in self._written(bank, work):
                    self._publish(attempt, rank, step, self._mine(bank, ids))
                self._done(attempt, work)
            except Exception as error:  # a miner that dies would leave workers waiting: the failure is said instead
                _log.exception("mining failed")
                with self._changed:
                    self._counts["rejected"] += 1
                    self.note = self.trouble = f"mining failed: {type(error).__name__}: {error}"
                    self._lost = self.spec.deterministic
                    self._changed.notify_all()

    def _has_work(self) -> bool:
        if self.spec.deterministic:
            return not self._lost and len(self._arrived.get(self._expected, ())) == self._world
        return bool(self._requests)

    def _next_work(self) -> Work:
        if self.spec.deterministic:
            arrived = self._arrived.pop(self._expected)
            return [arrived[rank] for rank in sorted(arrived)]
        rank, step = max(self._requests, key=lambda key: (key[1], -key[0]))
        return rank, step, self._requests.pop((rank, step))

    def _written(self, bank: EmbeddingBank, work: Work) -> list[tuple[int, int, NDArray[np.int64]]]:
        if isinstance(work, tuple):
            return [work]
        for message in work:
            self._write(bank, message.rows)
        return [(one.rows.rank, one.next_step, one.next_ids) for one in work if one.next_ids is not None]

    def _done(self, attempt: int, work: Work) -> None:
        with self._changed:
            if isinstance(work, list) and attempt == self._attempt:
                self._expected += 1
            self._changed.notify_all()
        self._maybe_save()

    def _write(self, bank: EmbeddingBank, rows: Embeddings) -> None:
        try:
            taken = bank.push(rows)
            bad, why = taken.bad, f"left out {taken.bad} rows of rank {rows.rank} that are no finite unit rows"
            why += f" (first: {taken.first})"
        except BankError as error:
            taken, bad, why = None, len(rows.instance), f"left out a whole push of rank {rows.rank}: {error}"
        with self._changed:
            self._counts["written_rows"] += taken.written if taken else 0
            self._counts["rows_out_of_order"] += taken.late if taken else 0
            if not bad:
                return
            if not self._counts["rejected"]:  # once in words, then only counted
                self.note = self.trouble = f"the bank {why}; more are counted in bank/rejected"
                _log.warning("%s", self.trouble)
            self._counts["rejected"] += bad

    def _mine(self, bank: EmbeddingBank, ids: NDArray[np.int64]) -> Positives:
        spec, began = self.spec, time.perf_counter()
        found = bank.mine(ids, spec.plan, spec.main, spec.aux, backend=spec.backend, threads=spec.threads)
        if self._monitor is not None:
            self._monitor.note(ids, found.ids)
        with self._changed:
            self._counts["mined_batches"] += 1
            self._counts["mined_rows"] += len(ids)
            self._counts["mine_us"] += int(1e6 * (time.perf_counter() - began))
        return found

    def _publish(self, attempt: int, rank: int, step: int, found: Positives) -> None:
        with self._changed:
            if attempt != self._attempt:
                return  # a new attempt began meanwhile
            if not self.spec.deterministic and self._newest.get(rank, -1) >= step:
                self._counts["late"] += 1
                return
            self._results[rank, step] = found
            for key in [key for key in self._results if key[0] == rank and key[1] < step - 8 * self.spec.lookahead]:
                del self._results[key]  # nobody came for it
            self._changed.notify_all()

    def _maybe_save(self) -> None:
        every, root = self.spec.snapshot_every_steps, self.spec.root
        if not every or not root or (self._writer is not None and self._writer.is_alive()):
            return
        bank = self._bank
        done = bank.step + 1
        if done // every <= self._counts["live_saves"]:
            return
        self._counts["live_saves"] = done // every
        self._writer = threading.Thread(
            target=self._save_live, args=(bank.moment(), Path(root) / LIVE, done), name="saver", daemon=True
        )
        self._writer.start()

    def _save_live(self, moment: Moment, folder: Path, step: int) -> None:
        try:
            with moment:
                save_snapshot(moment, folder, step, 1, self._extra())
        except (BankError, StorageError) as error:
            self.note = self.trouble = f"{error}; the run goes on"
            _log.warning("%s", error)

    def _empty(self) -> EmbeddingBank:
        spec = self.spec
        views = tuple(dict.fromkeys((spec.main, spec.aux)))
        return EmbeddingBank(spec.n_slots, spec.dim, views, self._group, spec.dtype)

    def _extra(self) -> Mapping[str, object]:
        plan = self.spec.plan
        return {
            "data_hash": self.spec.data_hash,
            "main": self.spec.main,
            "aux": self.spec.aux,
            "plan": plan.describe(),
            "stages": plan.stages,
            "ratio": plan.ratio,
            "topk": plan.k,
            "last_view": plan.last_view,
            "strategy": plan.strategy,
        }
