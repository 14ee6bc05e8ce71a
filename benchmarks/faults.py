"""What does a run survive? Everything that a cluster does to it, done for real on a head and three nodes of this machine.

    python -m benchmarks.faults [--times 5] [--only worker node-spare …] [--seed 0]

Each fault strikes a training of two workers at a random step. The run then has to get past that step, and to end; what its
workers were given in every step is traced, so that a sample that an epoch lost or brought twice would be seen. After each
run nothing of it may be left: no actor, no placement group, no process. Prints a table and writes results/faults-….json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults_cluster import LocalCluster, free_port, kill_tree, traced
from benchmarks.hardware import RESULTS, result_path, write_result
from cluster.training.lost import read_ranks_of
from pipelines.pack import PackOptions, pack
from pipelines.synthetic import make_motion_set
from vidssl.saved.run_folder import RunFolder

VIDEOS, TOGETHER = 60, 12
"""Of the training split, and of a step: so an epoch is a whole number of steps."""
STEPS, EVERY = 160, 20
LONG_S = 240.0
RECIPE = f"""\
name: faults
clips: {{frames: 4, stride: 2, size: 32}}
augment: {{flip: false}}
loader: {{patience: 120}}
model: {{backbone: tiny, dim: 16, width: 4}}
method: {{name: cpr, view: residual, second_view: rgb, warmup_steps: 5, queue: 24, momentum: 0.9}}
mining: {{where: actor, stages: 3, pool: 8, topk: 2}}
trainer: {{workers: 2, batch: {TOGETHER // 2}, steps: {STEPS}, checkpoint_every_steps: {EVERY}, log_every_steps: 1, device: cpu}}
"""


@dataclass
class Trial:
    """One fault and what came of it.

    Attributes:
        fault: Its name.
        at: Step at which it struck.
        recovered: Whether the run got past that step and to its end.
        seconds: From the fault to the first step that had not been done before; None: there was none.
        replayed: Steps that were done again.
        lost: Samples that an epoch did not bring.
        twice: Samples that an epoch brought twice.
        left: What was left of the run on the cluster afterwards.
        read: What the user read from the fault on, beside the steps.
    """

    fault: str
    at: int = 0
    recovered: bool = False
    seconds: float | None = None
    replayed: int = 0
    lost: int = 0
    twice: int = 0
    left: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


class Run:
    """A `vidssl train` on a cluster, in a process of its own, with all that it says."""

    store: subprocess.Popen[bytes]

    def __init__(self, cluster: LocalCluster, home: Path, name: str, *words: str, stored: bool = False) -> None:
        self.cluster, self.folder, self.name = cluster, home / "runs" / name, name
        self.words = [
            *(sys.executable, "-W", "ignore", "-m", "cluster", "train", str(home / "faults.yaml"), f"name={name}"),
            *(f"trainer.storage={home / 'runs'}", "--no-evaluation", *words),
        ]
        self.port = free_port() if stored else 0
        if stored:
            self.store = _store(home / "packed", self.port)
            time.sleep(2)
        self.words.append(f"data=http://127.0.0.1:{self.port}" if stored else f"data={home / 'packed'}")
        self.said: list[tuple[float, str]] = []
        self.type()

    def type(self) -> None:
        """The same words (again)."""
        self.process = subprocess.Popen(
            self.words,
            env=self.cluster.env | {"RAY_ADDRESS": self.cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.said.append((time.time(), line.rstrip()))

    def ended(self, seconds: float = LONG_S) -> int:
        """Its exit code, once all that it said was heard.

        Raises:
            TimeoutExpired: it goes on.
        """
        code = self.process.wait(seconds)
        self._listener.join()
        return code

    def close(self) -> None:
        """End it, if it goes on."""
        if self.process.poll() is None:
            kill_tree(self.process)
        self._listener.join()

    def step(self) -> int:
        """The last step that was logged; −1: none."""
        with suppress(OSError, IndexError, ValueError):
            return int(json.loads((self.folder / "log.jsonl").read_text().splitlines()[-1])["step"])
        return -1

    def wait_for(self, step: int, seconds: float = LONG_S) -> bool:
        """Until a step is logged; False: the time is over, or the process ended before."""
        until = time.monotonic() + seconds
        while self.step() < step:
            if time.monotonic() > until or (self.process.poll() is not None and self.step() < step):
                return False
            time.sleep(0.1)
        return True

    def rank(self, rank: int) -> int:
        """Process of a rank of the attempt that goes on."""
        return read_ranks_of(RunFolder(self.folder))[rank].pid


@dataclass(frozen=True)
class Fault:
    """One row of the matrix.

    Attributes:
        strike: Does it; what it returns is done once the run has got over it.
        words: Of the training.
        nodes: Nodes beside the head.
        resources: Ray resources of single ones.
        again: Whether the user types the same words again afterwards.
        steps: Of the run.
        stored: Whether its data lies in a store, a web server on loopback.
    """

    strike: Callable[[Run], Callable[[], None] | None]
    words: tuple[str, ...] = ()
    nodes: int = 2
    resources: dict[int, dict[str, float]] = field(default_factory=dict)
    again: bool = False
    steps: int = STEPS
    stored: bool = False


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _worker(run: Run) -> None:
    _kill(run.rank(random.randrange(2)))


def _node_of(run: Run, pid: int) -> str:
    """Address of the node that a process belongs to."""
    raylet = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    words = Path(f"/proc/{raylet}/cmdline").read_bytes().decode().replace("\0", " ")
    return next(at for at in (*run.cluster.nodes, "127.0.0.2") if f"node_ip_address={at} " in words)


def _workers_node(run: Run) -> None:
    run.cluster.kill(_node_of(run, run.rank(random.randrange(2))))


def _node_and_back(run: Run) -> Callable[[], None]:
    _workers_node(run)
    return lambda: print(f"    a node is back: {run.cluster.add()}", flush=True)


def _node_later(run: Run) -> None:
    _workers_node(run)
    threading.Timer(60.0, run.cluster.add).start()


def _bank_node(run: Run) -> None:
    at = _node_of(run, run.cluster.actor("BankActor"))
    run.cluster.kill(at)
    run.cluster.add({"bank": 1})


def _head(run: Run) -> None:
    run.cluster.kill_head()
    run.process.wait(120)
    nodes = list(run.cluster.nodes)
    for address in nodes:
        run.cluster.kill(address)
    run.cluster.begin(len(nodes))


def _signal(number: signal.Signals) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        os.kill(run.process.pid, number)
        run.process.wait(120)

    return strike


def _store_away(run: Run) -> None:
    """The store's server dies, and is there again half a minute later."""
    run.store.kill()
    run.store.wait()

    def back() -> None:
        run.store = _store(run.folder.parents[1] / "packed", run.port)

    threading.Timer(30.0, back).start()


def _store(folder: Path, port: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "benchmarks.stores", "serve", str(folder), "--port", str(port)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def _full_disk(run: Run) -> None:
    """The run's disk fills, a checkpoint fails, room is made, the same words again."""
    filler = run.folder / "filler.part-of-others"
    with suppress(OSError), filler.open("wb") as file:
        while file.write(bytes(2**16)):
            file.flush()
    run.process.wait(120)
    filler.unlink()


FAULTS = {
    "worker": Fault(_worker),
    "bank": Fault(lambda run: _kill(run.cluster.actor("BankActor"))),
    "miner": Fault(lambda run: _kill(run.cluster.actor("Miner")), ("mining.miners=1",), nodes=3),
    "node-spare": Fault(_workers_node, nodes=3),
    "node-fewer": Fault(_workers_node, ("trainer.workers=[1,2]",)),
    "node-back": Fault(_node_and_back, ("trainer.workers=[1,2]",), steps=4 * STEPS),
    "node-60s": Fault(_node_later),
    "bank-node": Fault(_bank_node, ("mining.bank_node=bank",), nodes=3, resources={0: {"bank": 1}}),
    "head": Fault(_head, again=True),
    "driver-TERM": Fault(_signal(signal.SIGTERM), again=True),
    "driver-HUP": Fault(_signal(signal.SIGHUP), again=True),
    "driver-KILL": Fault(_signal(signal.SIGKILL), again=True),
    "disk": Fault(_full_disk, again=True),
    "store": Fault(_store_away, stored=True),
}


def main(words: Sequence[str] | None = None) -> int:
    """All faults, a table, JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    random.seed(given.seed)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        table = make_motion_set(home / "videos", videos=VIDEOS * 3 // 2, frames=24, size=128, seed=0)
        pack("csv", table, home / "packed", PackOptions())
        (home / "faults.yaml").write_text(RECIPE)
        for name in given.only or FAULTS:
            for number in range(given.times):
                trials.append(_tried(name, number, home))
                told = asdict(trials[-1]) | {"read": len(trials[-1].read)}
                print(json.dumps(told), flush=True)
                for line in trials[-1].read:
                    print(f"    {line[:200]}", flush=True)
    print("\n".join(_table(trials)))
    write_result(result_path("faults", given.out), {"trials": [asdict(trial) for trial in trials]})
    return 0


def _tried(name: str, number: int, home: Path) -> Trial:
    fault, trial = FAULTS[name], Trial(name)
    cluster = LocalCluster(home)
    (home / "runs").mkdir(exist_ok=True)
    small = home / "runs" / f"{name}-{number}"
    if name == "disk":
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], check=True)
    try:
        cluster.begin(fault.nodes, fault.resources)
        words = (f"trainer.steps={fault.steps}", *fault.words)
        run = Run(cluster, home, small.name, *words, stored=fault.stored)
        _through(run, fault, trial)
        if fault.stored:
            run.store.kill()
        trial.left = _left(cluster)
    finally:
        cluster.close()
        if name == "disk":
            subprocess.run(["umount", "-l", str(small)], check=True)
        shutil.rmtree(small, ignore_errors=True)
    return trial


def _through(run: Run, fault: Fault, trial: Trial) -> None:
    if not run.wait_for(random.randrange(EVERY + 5, STEPS // 2)):
        trial.read = [line for _, line in run.said]
        kill_tree(run.process)
        return
    struck = time.time()
    after = fault.strike(run)
    trial.at = max(row["step"] for row in traced(run.cluster.trace, run.name) if row["t"] < struck + 1)
    since = struck
    if fault.again:
        time.sleep(1.0)
        run.type()
        since = time.time()  # workers that outlive their driver go on for a while
    over = run.wait_for(trial.at + 2)
    rows = [row for row in traced(run.cluster.trace, run.name) if row["t"] > since and row["step"] > trial.at]
    first = rows[0]["t"] if over and rows else float("nan")
    trial.seconds = first - struck
    if after is not None and over:
        after()
    with suppress(subprocess.TimeoutExpired):
        trial.recovered = over and run.ended() == 0 and run.step() == fault.steps - 1
    run.close()
    trial.replayed, trial.lost, trial.twice = samples(traced(run.cluster.trace, run.name), fault.steps)
    trial.read = [line for at, line in run.said if struck - 0.5 < at and not line.startswith("step ")]


def samples(rows: Sequence[dict[str, Any]], steps: int) -> tuple[int, int, int]:
    """Steps done again; samples that epochs lack, and bring twice, in the steps that count: the last of each number."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    replayed = sum(sum(row["rank"] == 0 for row in done) - 1 for done in by_step.values())
    seen: dict[int, Counter[int]] = {}
    for step, done in by_step.items():
        last, ranks = done[-1], {}
        for row in done:
            if row["world"] == last["world"]:
                ranks[row["rank"]] = row["videos"]
        taken = [video for videos in ranks.values() for video in videos]
        seen.setdefault(step // (VIDEOS // TOGETHER), Counter()).update(taken)
    epochs = steps // (VIDEOS // TOGETHER)
    lost = sum(VIDEOS - len(seen.get(epoch, ())) for epoch in range(epochs))
    return replayed, lost, sum(count - 1 for counts in seen.values() for count in counts.values())


def _left(cluster: LocalCluster) -> list[str]:
    """What is still there some seconds after the end: Ray lets go of things one after the other."""
    until = time.monotonic() + 20
    while True:
        left = cluster.left()
        found = [f"actor {name}" for name in left.actors if "Autoscaling" not in name]
        found += [f"placement group {group}" for group in left.groups]
        if not found or time.monotonic() > until:
            return found
        time.sleep(1.0)


def _table(trials: Sequence[Trial]) -> list[str]:
    lines = [
        "| fault | recovered | s, median (most) | steps replayed | lost | twice | left |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(trial.fault for trial in trials):
        own = [trial for trial in trials if trial.fault == name]
        took = [trial.seconds for trial in own if trial.recovered and trial.seconds is not None]
        spent = f"{statistics.median(took):.0f} ({max(took):.0f})" if took else "-"
        lines.append(
            f"| {name} | {sum(trial.recovered for trial in own)} of {len(own)} | {spent} | "
            f"{statistics.median(trial.replayed for trial in own):.0f} | {sum(trial.lost for trial in own)} | "
            f"{sum(trial.twice for trial in own)} | {'; '.join(sorted({one for trial in own for one in trial.left})) or 'nothing'} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
