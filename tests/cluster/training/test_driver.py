"""Real Ray Train runs of two workers with the bank actor beside them, started and ended as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster.training.driver import train
from cluster.training.plan import plan_run
from tests.cluster.training.small_runs import RECIPE, small
from vidssl.errors import DeviceError
from vidssl.saved.run_folder import RunFolder


def run_cli(*words: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *words],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if (run / "log.jsonl").is_file() and len((run / "log.jsonl").read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.05)
    raise AssertionError(f"no {steps} steps in 120 s")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def straight(here: Path, packed: Path) -> Path:
    done = run_cli("train", "small.yaml", f"data={packed}", "name=straight", "--no-evaluation", cwd=here)
    said, _ = done.communicate(timeout=240)
    assert done.returncode == 0, said
    assert "step     24/24" in said
    assert "bank age 2.0 steps" in said
    return here / "runs" / "straight"


@pytest.mark.ray
def test_a_killed_and_resumed_run_equals_a_straight_one(here, packed, straight):
    process = run_cli("train", "small.yaml", f"data={packed}", "name=killed", "--no-evaluation", cwd=here)
    wait_for_steps(here / "runs" / "killed", 11, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = run_cli("train", "--resume", "runs/killed", "--no-evaluation", cwd=here)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    one, two = rows(straight), rows(here / "runs" / "killed")
    assert [row["step"] for row in two] == list(range(24))
    assert [row["data/seen"] for row in one] == [row["data/seen"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-6)
    assert any(row["mining/positives"] > 0 for row in one)


@pytest.mark.ray
def test_control_c_leaves_a_run_that_can_be_resumed(here, packed):
    words = [f"data={packed}", "name=stopped", "trainer.steps=5000", "trainer.workers=1", "trainer.log_every_steps=2"]
    process = run_cli("train", "small.yaml", *words, cwd=here)
    wait_for_steps(here / "runs" / "stopped", 4, process)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopping: a checkpoint is written first" in said
    assert "to go on: vidssl train --resume" in said
    folder = RunFolder(here / "runs" / "stopped")
    assert not folder.stop_flag.exists()
    from vidssl.saved.checkpoint import latest_step

    step = latest_step(folder)
    assert step is not None
    assert step > folder.read_log()[-1]["step"]


@pytest.mark.ray
def test_a_gpu_where_there_is_none_is_refused(packed, tmp_path, ray_cluster):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plan = plan_run(small(packed, tmp_path, "trainer.device=cuda", f"trainer.storage={tmp_path / 'new'}"))
    with pytest.raises(DeviceError, match=r"has no GPU; type trainer.device=cpu"):
        train(plan)
    assert not (tmp_path / "new").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_no_more(here, packed):
    process = run_cli("train", "small.yaml", f"data={packed}", "name=lost", "--no-evaluation", cwd=here)
    run = here / "runs" / "lost"
    wait_for_steps(run, 11, process)
    listing = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
    own = [line.split() for line in listing.splitlines() if "ray::RayTrainWorker" in line]
    ours = [int(pid) for pid, *_ in own if str(here) in environment_of(int(pid))]
    assert ours
    os.kill(ours[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "a worker was lost; all go on from step 8" in said
    assert [row["step"] for row in rows(run)] == list(range(24))


def environment_of(pid: int) -> str:
    """Where a worker of ours keeps its files; other Ray clusters of this machine are left alone."""
    try:
        return " ".join(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return ""
