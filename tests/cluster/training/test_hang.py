"""A step that does not end: ranks leave their stacks, and the driver says who stands where."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import threading
import time

import pytest

import cluster.training.hang as hang
from cluster.training.hang import HangReport, HangWatch, stacks_of
from tests.cluster.training.test_driver import run_cli
from vidssl.saved.run_folder import RunFolder

LOOP = """
import time

def wait_for_a_disk():
    time.sleep({seconds})

def train(watch):
    watch.step()
    wait_for_a_disk()
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(hang, "_GATHER_S", 0.2)


def train(tmp_path, seconds):
    """The loop of a worker, that waits so long in a step."""
    path = tmp_path / "vidssl" / "worker.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(LOOP.format(seconds=seconds))
    spec = importlib.util.spec_from_file_location("worker_that_waits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train


def said_by(report, seconds=3.0):
    until, said = time.monotonic() + seconds, []
    while time.monotonic() < until and not said:
        said += report.lines()
        time.sleep(0.05)
    return said


def test_a_step_that_does_not_end_is_said_once_with_the_place_where_it_stands(tmp_path):
    folder = RunFolder(tmp_path)
    report = HangReport(folder, lambda: 2)
    with HangWatch(folder, 0, 0.3) as watch:
        train(tmp_path, 1.0)(watch)
        (said,) = said_by(report)
        assert said == (
            "no step ends: rank 0 is in wait_for_a_disk (worker.py:5), called from vidssl/worker.py:5 wait_for_a_disk; "
            f"rank 1 says nothing, its process does not run; the stacks of all threads are in {stacks_of(folder)}"
        )
        watch.step()
        assert said_by(report)[0].startswith("no step ends: rank 0 is outside of its steps; rank 1 says nothing")
    assert not said_by(report, 0.5)


def test_every_hang_of_a_run_is_said_and_those_of_a_former_command_are_not(tmp_path):
    folder = RunFolder(tmp_path)
    report = HangReport(folder, lambda: 1)
    with HangWatch(folder, 0, 0.2) as watch:
        for _ in range(2):
            train(tmp_path, 0.6)(watch)
            assert "wait_for_a_disk" in said_by(report)[0]
    later = HangReport(folder, lambda: 1)
    assert not said_by(later, 0.6)
    with HangWatch(folder, 0, 0.2) as watch:
        assert not said_by(later, 0.6)  # emptied by the new attempt
        train(tmp_path, 0.6)(watch)
        assert len(said_by(later)) == 1


def test_steps_that_end_leave_nothing_and_a_folder_that_takes_nothing_ends_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    with HangWatch(folder, 0, 0.5) as watch:
        for _ in range(20):
            watch.step()
            time.sleep(0.05)
    assert (stacks_of(folder) / "rank-0.txt").read_text() == ""
    (tmp_path / "file").touch()
    with HangWatch(RunFolder(tmp_path / "file"), 0, 0.1) as watch:
        train(tmp_path, 0.3)(watch)


@pytest.mark.ray
@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_and_the_one_that_waits_for_it_says_where(packed, tmp_path):
    (tmp_path / "small.yaml").write_text(
        "name: small\nclips: {frames: 4, stride: 2, size: 32}\nmodel: {backbone: tiny, dim: 16, width: 4}\n"
        "method: {name: infonce, queue: 16}\nmining: {where: 'off'}\n"
        "trainer: {workers: 2, batch: 4, steps: 4000, log_every_steps: 1, hang_s: 3, device: cpu}\n"
    )
    process = run_cli("train", "small.yaml", f"data={packed}", "--no-evaluation", cwd=tmp_path)
    lines, stopped, ended = [], [], threading.Timer(240, process.kill)
    ended.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step ") and not stopped:
                stopped.append(worker_of(1, tmp_path))
                os.kill(stopped[0], signal.SIGSTOP)
            if "rank 1 says nothing" in line:  # on a busy machine the first step may be taken for a hang of both
                break
        said = lines[-1]
        assert "rank 0 is in " in said, "".join(lines)
        assert "rank 1 says nothing, its process does not run" in said
        assert re.search(r"rank 0 is in \w+ \(\w+\.py:\d+\), called from (vidssl|cluster)/", said)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=200)
        ended.cancel()
    assert process.returncode == 130


def worker_of(rank, home):
    """The process of a rank: the one that has opened its file of stacks."""
    listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    pids = [line.split()[0] for line in listing.splitlines() if "ray::RayTrainWorker" in line]
    for pid in pids:
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        if any(name == str(home / "runs" / "small" / "hang" / f"rank-{rank}.txt") for name in files):
            return int(pid)
    raise AssertionError("no such worker")
