"""The bank's actor under simulated workers: who is served, how old, and what a push costs (`benchmarks.bank --load`).

Workers are simulated by one process that sends what real clients send, at a set rate, and keeps what they would keep; the
bank's process has a core of its own where there are two. Rows are drawn; the order is the seeded one of epochs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bank.asked import Asked
from cluster.bank.spec import BankSpec, Push, Wanted
from vidssl.batch import Embeddings
from vidssl.mining.plan import CascadePlan

VIEWS = ("residual", "rgb")
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Load:
    """What is simulated: W ranks of B rows, N videos, D columns."""

    world: int = 8
    batch: int = 32
    n_slots: int = 16384
    dim: int = 128
    stages: int = 7
    ratio: float = 0.5
    k: int = 5
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Steps of one."""
        return self.n_slots // (self.world * self.batch)

    def spec(self) -> BankSpec:
        """The bank of such a run."""
        slots = self.options.get("pool_slots") or self.n_slots
        plan = CascadePlan(slots, self.stages, self.ratio, self.k)
        bank = {"n_slots": self.n_slots, "dim": self.dim, "main": VIEWS[0], "aux": VIEWS[1], "plan": plan}
        return BankSpec(**bank, world=self.world, epoch_steps=self.epoch, **self.options)


class Workers:
    """All ranks of a simulated run, in one thread."""

    def __init__(self, load: Load, actor: Any) -> None:
        self.load, self.spec, self.step = load, load.spec(), 0
        self._actor, self._asked = actor, [Asked(self.spec) for _ in range(load.world)]
        self._answers: deque[tuple[int, Wanted, Future[Any]]] = deque()
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((8, load.batch, load.dim), dtype=np.float32)
        self._rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        self._orders: dict[int, np.ndarray] = {}

    def fill(self) -> None:
        """Every video gets a row: the first pass over the data."""
        import ray

        for start in range(0, self.load.n_slots, 4096):
            slots = np.arange(start, min(start + 4096, self.load.n_slots))
            rng = np.random.default_rng(start)
            views = {view: _unit(rng.standard_normal((len(slots), self.load.dim), dtype=np.float32)) for view in VIEWS}
            push = Push(0, self.load.world, 0, Embeddings(views, slots, 0, 0), Wanted(NONE, NONE, NONE))
            assert ray.get(self._actor.serve.remote(push))[0] == "ok"

    def run(self, seconds: float, step_s: float) -> Took:
        """Train for so long, `step_s` from the beginning of a step to that of the next, as a step takes its time."""
        took, end = Took(self.load.world), time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            self.one_step(took)
            time.sleep(max(0.5 * step_s, began + step_s - time.monotonic()))  # who was late does not catch up
        return took

    def one_step(self, took: Took) -> None:
        """Every rank takes its positives and pushes."""
        self._hear()
        self.step += 1
        soon = self.step + self.spec.horizon
        for rank, asked in enumerate(self._asked):
            took.note(rank, self.step, asked.pop(self.step), self.load.batch)
            asked.add(soon, self._ids(soon, rank))
            views = {view: self._rows[self.step % len(self._rows)] for view in VIEWS}
            rows = Embeddings(views, self._ids(self.step, rank), self.step, rank)
            push = Push(0, rank, self.step, rows, asked.wanted())
            self._answers.append((rank, push.wanted, self._actor.serve.remote(push).future()))
        took.pushes += len(self._asked)

    def settle(self) -> None:
        """Wait for all answers."""
        while self._answers:
            self._answers[-1][2].result(60)
            self._hear()

    def _hear(self) -> None:
        while self._answers and self._answers[0][2].done():
            rank, wanted, future = self._answers.popleft()
            _, answer = future.result()
            if answer is not None:
                self._asked[rank].enter(wanted, answer)

    def _ids(self, step: int, rank: int) -> np.ndarray:
        epoch, at = divmod(step, self.load.epoch)
        if epoch not in self._orders:
            self._orders = {key: value for key, value in self._orders.items() if key >= epoch - 1}
            self._orders[epoch] = np.random.default_rng((7, epoch)).permutation(self.load.n_slots)
        begin = (at * self.load.world + rank) * self.load.batch
        return self._orders[epoch][begin : begin + self.load.batch]


class Took:
    """What the ranks were served in one phase."""

    def __init__(self, world: int) -> None:
        self.rows, self.missing, self.pushes = np.zeros(world, np.int64), np.zeros(world, np.int64), 0
        self.ages: list[np.ndarray] = []

    def note(self, rank: int, step: int, asked: Any, batch: int) -> None:
        """One rank's batch of one step."""
        there = np.zeros(batch, bool) if asked is None else asked.found.mined_at >= 0
        self.rows[rank] += batch
        self.missing[rank] += batch - int(there.sum())
        if asked is not None:
            self.ages.append(step - asked.found.mined_at[there])

    def add(self, other: Took) -> None:
        """What was served next."""
        self.rows, self.missing = self.rows + other.rows, self.missing + other.missing
        self.pushes += other.pushes
        self.ages += other.ages

    def figures(self) -> dict[str, Any]:
        """Fallback of all and of the worst and best rank, ages."""
        ages, by_rank = np.concatenate([NONE, *self.ages]), self.missing / np.maximum(self.rows, 1)
        served = 1 - by_rank
        return {
            "rows": int(self.rows.sum()),
            "fallback": float(self.missing.sum() / max(self.rows.sum(), 1)),
            "fallback_by_rank": by_rank.round(4).tolist(),
            "served_best_to_worst_rank": float(served.max() / served.min()) if served.min() else None,
            "age_p50": float(np.percentile(ages, 50)) if len(ages) else None,
            "age_p99": float(np.percentile(ages, 99)) if len(ages) else None,
            "age_max": int(ages.max()) if len(ages) else None,
        }


@contextlib.contextmanager
def loaded_bank(load: Load) -> Iterator[tuple[Workers, int]]:
    """A filled bank with its simulated workers and its process; on a core of its own where there are two."""
    import ray

    from cluster.bank.actor import start_bank

    actor = start_bank(load.spec())
    pid: int = ray.get(actor.process_id.remote())  # type: ignore[assignment]
    cores = sorted(os.sched_getaffinity(0))
    own = cores[0]
    try:
        if len(cores) > 1:
            _pin(pid, {own})
            _pin(os.getpid(), set(cores) - {own})
        workers = Workers(load, actor)
        workers.fill()
        yield workers, pid
    finally:
        _pin(os.getpid(), set(cores))
        ray.kill(actor)


def phase(
    workers: Workers, pid: int, seconds: float, step_s: float, passes: float = 0.0, times: float | None = None
) -> dict[str, Any]:
    """Train at one step per `step_s`: first for so many passes of the miner over the rows, then `seconds` that count.

    Args:
        workers: Who trains.
        pid: Of the bank.
        seconds: That count.
        step_s: Of a step, or of the first ones.
        passes: Before that.
        times: Ask for so many times what was mined in the seconds before, whatever else the machine does: 4 stays 4.
    """
    stats = lambda: _stats(workers)  # noqa: E731
    first = now = stats()
    while (now["mined_rows"] - first["mined_rows"]) < passes * workers.load.n_slots:
        workers.run(1.0, step_s)
        now, step_s = _paced(workers, now, step_s, times)
    before, cpu, began, took = stats(), cpu_s(pid), time.monotonic(), Took(workers.load.world)
    while (left := began + seconds - time.monotonic()) > 0:
        took.add(workers.run(min(left, 2.0), step_s))
        now, step_s = _paced(workers, now, step_s, times)
    workers.settle()
    after, cpu, took_s = stats(), cpu_s(pid) - cpu, time.monotonic() - began
    since = {name: after[name] - before[name] for name in ("mined_rows", "kept_rows", "needed_rows", "mine_cpu_s")}
    found = {
        "step_s": step_s,
        "steps_per_s": took.pushes / workers.load.world / took_s,
        "epoch_steps": workers.load.epoch,
        "needed_per_s": since["needed_rows"] / took_s,
        "mined_per_s": since["mined_rows"] / took_s,
        "mined_and_thrown_away": int(since["mined_rows"] - since["kept_rows"]),
        "oldest_allowed_steps": after["oldest_steps"],
        "cpu_ms_per_push": 1e3 * (cpu - since["mine_cpu_s"]) / max(took.pushes, 1),
        "bank_mb": memory_mb(pid),
    }
    return found | took.figures()


def _paced(
    workers: Workers, before: dict[str, float], step_s: float, times: float | None
) -> tuple[dict[str, float], float]:
    now = _stats(workers)
    mined, seconds = (now[name] - before[name] for name in ("mined_rows", "seconds"))
    if times is None or mined <= 0:
        return now, step_s
    wanted = workers.load.world * workers.load.batch * seconds / (times * mined)
    return now, 0.5 * (step_s + wanted)


def capacity(workers: Workers, seconds: float) -> float:
    """Rows per second that the bank mines: most of what it did while more and more steps a second asked for more.

    Steps that ask for far too much would be a wrong measure: taking their pushes then costs more than mining.
    """
    best, step_s = 0.0, 0.4
    while step_s > 0.01:
        workers.run(1.0, step_s)  # the engine's rate is known by then
        before = _stats(workers)
        workers.run(seconds / 2, step_s)
        since = {name: value - before[name] for name, value in _stats(workers).items() if name in before}
        best = max(best, since["mined_rows"] / since["seconds"])
        if since["mined_rows"] < 0.8 * since["needed_rows"]:
            break
        step_s /= 2
    return best


def memory_of_pushes(workers: Workers, pid: int, pushes: int) -> dict[str, Any]:
    """Memory of the bank's process at every tenth of so many pushes, sent as fast as they are answered."""
    sizes = []
    for _ in range(10):
        for _ in range(max(1, pushes // 10 // workers.load.world)):
            workers.one_step(Took(workers.load.world))
            workers.settle()
        sizes.append(memory_mb(pid))
    return {"pushes": pushes, "mb": sizes, "grown": sizes[-1] / sizes[0] - 1}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _stats(workers: Workers) -> dict[str, float]:
    import ray

    found: Any = ray.get(workers._actor.stats.remote())
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _pin(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
