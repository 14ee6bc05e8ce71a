"""What does the bank's process do? It writes what workers push, answers at once from its table, and mines what is needed next.

Nothing here knows Ray: `cluster.bank.actor` is the face, `cluster.bank.link.LocalLink` the same within one process.

No call waits, whatever the miners do: a push is written, what it names is put on the list of `Requests`, and it is answered
from the `PositiveTable` with what was mined by then. Deterministic: see `Lockstep`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.bank.desk import Desk
from cluster.bank.lockstep import Lockstep
from cluster.bank.mirror import Miner, MinerGone, OwnMiner
from cluster.bank.recovery import clear_leftovers, open_source, recover, store_attempt, stored_attempt
from cluster.bank.requests import LATE
from cluster.bank.rows import BankRows, OwnProcess, Place, Say
from cluster.bank.saver import Saver
from cluster.bank.spec import Answer, BankSpec, Began, Push, Verdict, Wanted
from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError, StorageError
from vidssl.mining.metrics import MiningMonitor

__all__ = ["BankServer"]

_log = logging.getLogger(__name__)

AT_ONCE = (16, 1024)
"""Fewest and most rows of one call of the engine."""
PAUSE_S = 0.5
"""Pause after a miner could not be reached."""
AT_ONCE_S = 0.03
"""About how long a call of the engine may take: what becomes urgent meanwhile waits for it, and what it takes longer for
than a step comes too late for its step."""

_COUNTERS = [
    "written_rows",
    "needed_rows",
    "unseen_rows",
    "mined_rows",
    "kept_rows",
    "miners_lost",
    "mined_late_rows",
    "late",
    "lost",
    "rejected",
]


class BankServer:
    """Bank, table of positives and a miner thread. Every method may be called from any thread, and none waits for mining.

    Args:
        spec: The run's bank.
        group: int64 [N] or None, see `EmbeddingBank`.
        label: int64 [N] or None, read by the monitor only.
        restarted: This process replaces one that died; its rows come from the newest whole snapshot.
        miners: Who mines, a thread each. None, or a deterministic run: this process.
        place: Where its rows lie, given whom to tell what the user has to know; None: in this process.

    Attributes:
        note: What last happened to its rows, for the log of the process.
        troubles: What the user has to know, a sentence for each cause, the last few; the clients pass each on once.
        restart: The sentence about a process before this one that was lost; "" where there was none.
    """

    def __init__(
        self,
        spec: BankSpec,
        group: NDArray[np.int64] | None = None,
        label: NDArray[np.int64] | None = None,
        restarted: bool = False,
        miners: Sequence[Miner] = (),
        place: Callable[[Say], Place] | None = None,
    ) -> None:
        self.spec, self.note, self.restart = spec, "started empty", ""
        self.troubles: deque[str] = deque(maxlen=8)
        self._place = OwnProcess(spec, group) if place is None else place(self._told)
        self._monitor = None if label is None else MiningMonitor(np.array(label, np.int64))
        self._lock = threading.Lock()
        self._attempt = stored_attempt(spec.root)
        self._lost = restarted and spec.deterministic
        self._unsure = restarted and not spec.deterministic
        self._counts: Counter[str] = Counter()
        if spec.root:
            clear_leftovers(Path(spec.root))
        if spec.root and restarted:
            found = recover(Path(spec.root), self._place)
            bank, self.note, self.restart = found.bank, found.note, found.said
        else:
            bank = self._place.empty(wait=False)
        self._saver = Saver(spec, self._told)
        self._saver.begins(bank.step + 1 if bank.filled else None)
        self._desk = Desk.open(spec, bank, spec.world, 0)
        self._closed = False
        crew = [OwnMiner(spec)] if spec.deterministic or not miners else miners
        self._threads = [threading.Thread(target=self._run, args=(one,), name=one.name, daemon=True) for one in crew]
        for thread in self._threads:
            thread.start()

    def reset(self, source: str | None, world: int, start_step: int) -> Began:
        """Begin a training attempt: `start_step` comes next.

        Args:
            source: Where its rows come from: None, nowhere; one snapshot, exactly that one; a folder of snapshots, the
                newest whole one up to `start_step`. See `vidssl.mining.reopen.source_of`.
            world: Ranks that push.
            start_step: Optimizer steps done.

        Raises:
            BankError: the snapshot is damaged or does not fit this run.
            StorageError: the run's folder cannot be written, or the processes that hold the rows do not answer.
        """
        said: list[str] = []
        bank = open_source(source, start_step, self._place, said.append)
        try:
            bank.rewind(
                start_step
            )  # a snapshot of a later step may be asked for; its rows are not newer than what comes
        except MinerGone as error:
            raise StorageError(f"the bank cannot begin: {error}; look at the run's Ray log and resume it") from error
        desk = Desk.open(self.spec, bank, world, start_step)
        self._saver.begins(bank.step + 1 if bank.filled else None)
        with self._lock:
            if source is not None:  # what this process mined before is as good as the rows that it goes on with
                desk.table.inherit(self._desk.table, start_step, bank.version >= 0)
            old, self._desk = self._desk, desk
            self.note = f"from {source}" if source else "started empty"
            self._attempt += 1
            store_attempt(self.spec.root, self._attempt)
            self._lost, self._unsure = False, False
            began = self._attempt
        old.close()
        self._place.only(bank)
        if said and self.spec.deterministic:
            said.append("so this deterministic run goes on, and is not the straight one bit for bit")
        return Began(began, "; ".join(said))

    def serve(self, push: Push) -> tuple[Verdict, Answer | None]:
        """Take one worker's rows and the list of what it needs; answer with what is known for that list now.

        The same message twice changes nothing. A deterministic bank answers for whole steps, once they are mined from
        the state that belongs to them; who waits asks again.
        """
        with self._lock:
            if verdict := self._refusal(push):
                self._counts[verdict] += 1
                return verdict, None
            desk = self._desk
            if self._unsure and push.rows is not None:
                # What a restarted bank found may be of a later step: of before this attempt was started.
                try:
                    desk.bank.rewind(push.step)
                except MinerGone:  # its shards are not there yet, so there is nothing that these rows could be added to
                    return "ok", None
                self._unsure = False
        if desk.steps is not None:
            return self._serve_in_order(desk.steps, push)
        desk.requests.come(push.rank, push.step)
        if push.rows is not None:
            self._write(desk.bank, push.rows)
        answer = self._answer(desk, push.wanted)
        self._note(desk, push)
        return "ok", answer

    def settle(self, step: int, timeout_s: float = 60.0) -> bool:
        """Deterministic: wait until every step before `step` is written. Returns whether that is so."""
        steps = self._desk.steps
        return steps is None or steps.settle(step, timeout_s)

    def begin_save(self, root: str, step: int, told: bool = False) -> bool:
        """Begin a snapshot of this moment as `root/snap-<step>`; false while the one before is still being written.

        Args:
            root: Folder of the run's snapshots.
            step: Optimizer steps done.
            told: Whether the user is told what goes wrong; otherwise `saved` raises it.

        Raises:
            StorageError: deterministic, and steps before `step` never arrived.
        """
        if self._lost or not self.settle(step):
            raise StorageError(f"the bank misses pushes before step {step}, so it cannot be saved as of that step")
        return self._saver.begin(self._desk.bank, root, step, told)

    def saved(self, step: int) -> str | None:
        """Path of the snapshot that was begun last; None while it is being written; "" where none was, of this step.

        Raises:
            BankError: a row is no finite unit row.
            StorageError: the folder cannot be written.
        """
        if not self._saver.knows(step):
            return ""
        path = self._saver.result(step)
        return None if path is None else str(path)

    def stats(self) -> dict[str, float | str]:
        """Counters since the start, how full the bank is, and (with labels) how well it mines."""
        with self._lock:
            counts, desk, note, trouble = Counter(self._counts), self._desk, self.note, "\n".join(self.troubles)
        soon, late = desk.requests.counts()
        quality = self._monitor.read() if self._monitor else {}
        age = self._saver.age(desk.bank.step)
        return {
            "step": float(desk.bank.step),
            "seconds": time.monotonic(),
            "filled": desk.bank.filled / desk.bank.n_slots,
            **({} if age is None else {"snapshot_age_steps": age}),
            **{name: float(counts[name]) for name in _COUNTERS},
            "waiting_rows": float(soon),
            "late_rows": float(late),
            "oldest_steps": float(self._oldest(desk)),
            "mine_cpu_s": counts["mine_cpu_us"] / 1e6,
            "mine_ms": counts["mine_us"] / 1e3 / max(counts["mined_batches"], 1),
            "note": note,
            "trouble": trouble,
            "restart": self.restart,
            "process": float(os.getpid()),
            "space": desk.bank.mapped.news,
            **quality,
        }

    def process_id(self) -> int:
        """Of the process that holds the bank."""
        return os.getpid()

    def close(self) -> None:
        """Stop the miners."""
        self._closed = True
        self._desk.close()
        for thread in self._threads:
            thread.join(10)
        self._saver.close()

    def _refusal(self, push: Push) -> Verdict | None:
        if self._lost:
            return "lost"
        if push.attempt > self._attempt and not self.spec.deterministic:
            self._attempt = push.attempt  # a restarted bank without stored attempt learns it from the workers
        return "late" if push.attempt != self._attempt else None

    def _serve_in_order(self, steps: Lockstep, push: Push) -> tuple[Verdict, Answer | None]:
        if push.rows is not None and not steps.arrive(push):
            with self._lock:
                self._counts["late"] += 1
            return "late", None
        here = [(at, steps.result(push.rank, at)) for at in push.wanted.steps]
        ready = [(np.flatnonzero(push.wanted.at == at), found) for at, found in here if found is not None]
        if not ready:
            return "ok", None
        return "ok", Answer(
            np.concatenate([place for place, _ in ready]), Positives.joined([found for _, found in ready])
        )

    def _answer(self, desk: Desk, wanted: Wanted) -> Answer | None:
        found = desk.table.newer(wanted.ids, wanted.have, wanted.at - self._oldest(desk))
        if not len(found.place):
            return None
        try:
            vectors = desk.bank.vectors(found.ids, self.spec.aux)
        except MinerGone:  # who asks again is answered when the rows are back
            return None
        return Answer(found.place, Positives(found.ids, vectors, found.mined_at, found.survivors))

    def _oldest(self, desk: Desk) -> int:
        given = self.spec.max_staleness_steps
        return desk.pace.bound(desk.bank.step) if given is None else given

    def _note(self, desk: Desk, push: Push) -> None:
        for step in push.wanted.steps:
            if not desk.requests.is_new(push.rank, step):
                continue
            ids = push.wanted.ids[push.wanted.at == step]
            seen = ids[desk.bank.version[ids] >= 0]  # who has no row of its own cannot be compared with others
            urgency = desk.table.urgency(seen, step, self.spec.epoch_steps)
            desk.requests.note(push.rank, step, seen, urgency)
            with self._lock:
                self._counts["needed_rows"] += len(seen)
                self._counts["unseen_rows"] += len(ids) - len(seen)

    def _run(self, miner: Miner) -> None:
        row_s, gone = AT_ONCE_S / AT_ONCE[0], 0
        while not self._closed:
            desk = self._desk
            try:
                if desk.steps is None:
                    row_s += 0.2 * (self._mine_rows(miner, desk, row_s) - row_s)
                else:
                    self._mine_step(miner, desk, desk.steps)
                self._saver.between(desk.bank)
            except MinerGone as error:
                if desk is not self._desk:
                    continue  # a new attempt began meanwhile, with rows of its own
                with self._lock:
                    self._lost |= desk.steps is not None
                if miner.losses > gone:
                    with self._lock:
                        self._counts["miners_lost"] += miner.losses - gone
                    lost = f"{miner.name} was lost ({error}), time {miner.losses}"
                    self._told(f"{lost}: its rows are mined when it is back, or by the others")
                gone = miner.losses
                time.sleep(PAUSE_S)
            except Exception as error:  # a miner that dies would leave workers without anything: it is said instead
                _log.exception("mining failed")
                self._told(f"mining failed: {type(error).__name__}: {error}")
                with self._lock:
                    self._counts["rejected"] += 1
                    self._lost = self.spec.deterministic

    def _mine_rows(self, miner: Miner, desk: Desk, row_s: float) -> float:
        """Seconds of a row, where one was mined."""
        parts = desk.requests.take(int(np.clip(AT_ONCE_S / row_s, *AT_ONCE)))
        # What was mined since it was asked for (another rank asked too) need not be mined again.
        since = [desk.bank.step if part.rank == LATE else part.noted for part in parts]
        still = [part.ids[desk.table.mined_at(part.ids) < step] for part, step in zip(parts, since, strict=True)]
        ids = np.unique(np.concatenate(still)) if parts else np.zeros(0, np.int64)
        if not len(ids):
            return row_s
        began = time.perf_counter()
        try:
            kept = desk.table.keep(ids, self._mine(miner, desk.bank, ids))
        except MinerGone:
            desk.requests.again(parts)
            raise
        desk.pace.mined(kept, desk.bank.step, desk.bank.filled)
        with self._lock:
            self._counts["mined_rows"] += len(ids)
            self._counts["kept_rows"] += kept
            self._counts["mined_late_rows"] += len(ids) if parts[0].rank == LATE else 0
        return (time.perf_counter() - began) / len(ids)

    def _mine_step(self, miner: Miner, desk: Desk, steps: Lockstep) -> None:
        pushes = steps.take()
        if not pushes:
            return
        for push in pushes:
            assert push.rows is not None
            self._write(desk.bank, push.rows)
        for push in pushes:
            at = push.step + self.spec.lookahead
            ids = push.wanted.ids[push.wanted.at == at]
            if len(ids):
                steps.publish(push.rank, at, self._mine(miner, desk.bank, ids))
                with self._lock:
                    self._counts["mined_rows"] += len(ids)
        steps.done()

    def _write(self, bank: BankRows, rows: Embeddings) -> None:
        try:
            taken = bank.push(rows)
            bad, why = taken.bad, f"left out {taken.bad} rows of rank {rows.rank} that are no finite unit rows"
            why += f" (first: {taken.first})"
        except BankError as error:
            taken, bad, why = None, len(rows.instance), f"left out a whole push of rank {rows.rank}: {error}"
        with self._lock:
            self._counts["written_rows"] += taken.written if taken else 0
            self._counts["rows_out_of_order"] += taken.late if taken else 0
            first = not self._counts["rejected"]
            self._counts["rejected"] += bad
        if bad and first:  # once in words, then only counted
            self._told(f"the bank {why}; more are counted in bank/rejected")
            _log.warning("%s", self.note)

    def _mine(self, miner: Miner, bank: BankRows, ids: NDArray[np.int64]) -> Positives:
        began = time.perf_counter()
        mined = miner.mine(bank, ids)
        if self._monitor is not None:
            self._monitor.note(ids, mined.found.ids)
        seconds = time.perf_counter() - began
        with self._lock:
            self._counts["mined_batches"] += 1
            self._counts["mine_us"] += int(1e6 * seconds)
            self._counts["mine_cpu_us"] += int(1e6 * mined.cpu_s)
        return mined.found

    def _told(self, sentence: str) -> None:
        line = sentence.replace("\n", " ")
        with self._lock:
            self.note = line
            if line not in self.troubles:
                self.troubles.append(line)
