"""A tiny reproduction, all of it, killed with SIGKILL in every step and every phase: it goes on, and the table is the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.reproduce.names import REPRODUCTIONS
from vidssl.recipe import load_recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("usual_signals")]

PATIENCE_S = 900.0
INSIDE_S = 2.0
"""After a step has said that it begins."""
TWINS = [name for name, one in REPRODUCTIONS.items() if one.twin]


class Reproducing:
    """A `vidssl reproduce` in its own process, and what it says."""

    def __init__(self, name: str, home: Path, *words: str) -> None:
        self.output = home.parent / f"{home.name}-{time.monotonic_ns()}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "reproduce", name, "--out", str(home), *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def until(self, pattern: str) -> bool:
        """Whether it came to say that; False: it ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.said, re.M):
            assert time.monotonic() < deadline, f"{pattern}: not within {PATIENCE_S:g} s\n{self.said}"
            if self.process.poll() is not None:
                return bool(re.search(pattern, self.said, re.M))
            time.sleep(0.05)
        return True

    def kill(self) -> None:
        """What a power cut does to it and to all that it started."""
        for pid in [*descendants(self.process.pid)][::-1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def end(self) -> str:
        assert self.process.wait(PATIENCE_S) == 0, self.said
        return self.said


def descendants(root: int) -> Iterator[int]:
    """All that a process started: other Ray clusters of this machine are left alone."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()[1:]]
    ours, grown = {root}, True
    while grown:
        more = {pid for pid, parent in rows if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return iter(sorted(ours))


def moments(name: str, steps: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(step, what is said when it is in the middle of it) of every step; the training has one in every phase."""
    for step in steps:
        begun = rf"^\[\d+/\d+\] {re.escape(step)}: (?!done)"
        if step == "run":
            phases = [phase.name for phase in load_recipe(REPRODUCTIONS[name].recipe).phases] or ["run"]
            yield from ((step, rf"^{phase}: .* → .*\n(.*\n)*?step +20/") for phase in phases)
        elif step.startswith("finetune") and "-both-" not in step:  # which is arithmetic
            yield step, begun + r".*\n(.*\n)*?epoch +1/"
        elif step.startswith("pack") and "fold" not in step:
            yield step, begun + r".*\n(.*\n)*?packing [1-9]"
        else:
            yield step, begun


def steps_of(home: Path) -> list[str]:
    return list(json.loads((home / "ledger.json").read_text())["steps"])


def table(home: Path) -> list[dict[str, Any]]:
    return json.loads((home / "table.json").read_text())["lines"]


def killed_in_every_step(name: str, home: Path, steps: Sequence[str]) -> int:
    """Kill it once in the middle of every step, then let it end; how often it was killed."""
    kills = 0
    for step, moment in moments(name, steps):
        run = Reproducing(name, home)
        if not run.until(moment):
            assert run.process.returncode == 0, run.said
            continue  # over in less than a look at it
        time.sleep(0 if step in ("run", "videos") else INSIDE_S)
        if run.process.poll() is not None:
            continue
        run.kill()
        kills += 1
        before = steps[: steps.index(step)]
        assert [one for one in before if not re.search(rf"\] {re.escape(one)}: done", run.said)] == [], run.said
    Reproducing(name, home).end()
    return kills


@pytest.mark.parametrize("name", TWINS)
def test_killed_in_every_step_and_phase_it_ends_with_the_table_of_a_straight_run(name, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    Reproducing(name, straight).end()
    steps = steps_of(straight)
    assert killed_in_every_step(name, killed, steps) >= len(steps) - 2  # arithmetic alone is too fast to be met
    assert table(killed) == table(straight)
    assert {line["split"] for line in table(straight)} >= {"1", "mean of 2"}
    again = Reproducing(name, killed).end()
    assert len(re.findall(r"^\[\d+/\d+\] .*: done before$", again, re.M)) == len(steps)
    assert [str(path) for path in killed.rglob("*") if path.name.endswith((".part", ".tmp", ".vidssl.lock"))] == []
