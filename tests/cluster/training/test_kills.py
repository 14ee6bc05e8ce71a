"""Twenty times a process of mining is killed in one training: no step fails, each loss is one sentence, all comes back."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.training.small_runs import RECIPE, leftovers
from vidssl.mining.snapshots import is_snapshot, load_snapshot

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("usual_signals")]

KILLS = 20
BANK = "the bank's process was lost and started again with "
MINER = "miner 1 was lost "
PATIENCE_S = 180.0
WORDS = (
    "trainer.workers=1",  # the miner asks for the other core
    "trainer.deterministic=false",
    "trainer.steps=1000000",
    "trainer.checkpoint_every_steps=200",
    "mining.miners=1",
    "mining.snapshot_every_steps=40",
)


class Training:
    """A `vidssl train` in its own process, and what it says."""

    def __init__(self, folder: Path, packed: Path) -> None:
        (folder / "small.yaml").write_text(RECIPE)
        self.run, self.output = folder / "runs" / "small", folder / "said.txt"
        words = ["train", "small.yaml", f"data={packed}", "--no-evaluation", *WORDS]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", *words],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,
            )

    def said(self, start: str) -> list[str]:
        """The lines that begin so; Ray repeats them with the name of a process in front, which are not counted."""
        return [line for line in self.output.read_text().splitlines() if line.startswith(start)]

    def rows(self) -> list[dict[str, float]]:
        path = self.run / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]

    def until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s\n{self.output.read_text()}"
            time.sleep(0.05)

    def until_nothing_falls_back(self, steps: int = 5) -> None:
        """Train on until so many new steps in a row had no row without positives."""
        first = len(self.rows())

        def served() -> bool:
            new = self.rows()[first:][-steps:]
            return len(new) == steps and not any(row.get("bank/fallback_ratio", 1.0) for row in new)

        self.until("fallback back to 0", served)

    def kill(self, actor: str) -> None:
        (pid,) = [pid for pid, words in descendants(self.process.pid) if words.startswith(f"ray::{actor}")]
        os.kill(pid, signal.SIGKILL)


def descendants(root: int) -> Iterator[tuple[int, str]]:
    """(process, its words) of all that a process started: other Ray clusters of this machine are left alone."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    ours, grown = {root}, True
    while grown:
        more = {int(pid) for pid, parent, *_ in rows if int(parent) in ours} - ours
        ours |= more
        grown = bool(more)
    return ((int(pid), " ".join(words)) for pid, _, *words in rows if int(pid) in ours)


@pytest.fixture
def training(packed: Path, tmp_path: Path) -> Iterator[Training]:
    started = Training(tmp_path, packed)
    yield started
    if started.process.poll() is None:
        os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()


def test_twenty_kills_of_the_bank_and_of_its_miner_in_one_training_cost_no_step(training):
    training.until("the log", (training.run / "log.jsonl").is_file)
    training.until_nothing_falls_back()
    for kill in range(KILLS):
        actor, sentence = ("MinerActor", MINER) if kill % 2 else ("BankActor", BANK)
        before = len(training.said(sentence))
        training.kill(actor)
        training.until(f"kill {kill}: '{sentence}'", lambda: len(training.said(sentence)) > before)  # noqa: B023
        training.until_nothing_falls_back()
    os.kill(training.process.pid, signal.SIGINT)
    assert training.process.wait(PATIENCE_S) == 130, training.output.read_text()
    everything = training.output.read_text()
    assert len(training.said(BANK)) == len(training.said(MINER)) == KILLS // 2, everything
    assert not training.said("the bank is")  # away, back: what a restart says already
    assert all(" s, in which " in line for line in training.said(BANK))
    assert "begin again" not in everything
    assert "a worker was lost" not in everything
    rows = training.rows()
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert all(math.isfinite(row["loss"]) for row in rows)
    snapshots = [path for path in training.run.rglob("snap-*") if is_snapshot(path)]
    assert snapshots
    for path in snapshots:
        assert all(np.isfinite(view).all() for view in load_snapshot(path).views.values())
    assert leftovers(training.run) == []
