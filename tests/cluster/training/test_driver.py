"""Real Ray Train runs of two workers with the bank actor beside them, started and ended as a user would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.cli import main
from cluster.training import checks
from cluster.training.driver import train
from cluster.training.plan import plan_resume, plan_run
from cluster.training.verb import TrainWords, run_train
from pipelines.dataset.manifest import load_manifest
from pipelines.loading.order import Order
from tests.cluster.training.small_runs import RECIPE, leftovers, small, tree
from vidssl.errors import DataError, DeviceError
from vidssl.lock import owner_of
from vidssl.marks import LOCK
from vidssl.mining.snapshots import load_snapshot, snapshot_at
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("usual_signals")

RAY_DATA = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train


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
def straight(here: Path, packed: Path, ray_cluster) -> tuple[Path, list[str]]:
    """A run of 24 steps without a break, and what it said."""
    said: list[str] = []
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Ray Data's own settings
        outcome = train(plan_run(small(packed, here, "name=straight", f"trainer.storage={here / 'runs'}")), said.append)
    assert (outcome.steps, outcome.stopped) == (24, False)
    return outcome.folder.path, said


def small_words(packed: Path, *words: str) -> list[str]:
    return ["train", "small.yaml", f"data={packed}", "--no-evaluation", *words]


@pytest.mark.ray
def test_a_run_says_its_steps_and_leaves_nothing_of_ray_behind(straight):
    run, said = straight
    assert any("step     24/24" in line for line in said)
    assert any("bank age 2 steps  fallback 0 %" in line for line in said)
    assert re.search(r"^(the step is|data is) the limit.* a batch is made in .* ms \(read .*decode", said[-1])
    assert {"data/read_ms", "data/decode_ms", "data/augment_ms", "data/queue"} <= rows(run)[-1].keys()
    assert not any("a worker was lost" in line for line in said)
    assert leftovers(run) == []


@pytest.fixture
def undisturbed(request: pytest.FixtureRequest, here: Path, packed: Path) -> tuple[list[str], Path]:
    """Words and folder of a run without a break: in this process (0), or of two workers of Ray."""
    if request.param:
        return [f"trainer.workers={request.param}"], request.getfixturevalue("straight")[0]
    words = ["trainer.workers=0"]
    outcome = train(plan_run(small(packed, here, "name=alone", f"trainer.storage={here / 'runs'}", *words)))
    return words, outcome.folder.path


@RAY_DATA
@pytest.mark.parametrize("undisturbed", [0, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.slow])], indirect=True)
def test_a_killed_run_goes_on_with_the_same_words_and_equals_a_straight_one(
    here, packed, undisturbed, monkeypatch, capsys
):
    monkeypatch.chdir(here)
    words, straight = undisturbed
    words = small_words(packed, f"name=killed-{straight.name}", *words)
    process = run_cli(*words, cwd=here)
    run = here / "runs" / f"killed-{straight.name}"
    wait_for_steps(run, 11, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert owner_of(run) is None
    assert (run / LOCK).is_file()  # its owner had no time to take it away
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"the lock of `vidssl train` (process {process.pid} on" in said
    assert "which is gone, is taken over" in said
    assert re.search(r"holds this run: it goes on from step (8|16) of 24", said)
    assert "a worker was lost" not in said
    one, two = rows(straight), rows(run)
    assert [row["step"] for row in two] == list(range(24))
    assert [row["data/seen"] for row in one] == [row["data/seen"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-6)
    assert any(row.get("mining/positives", 0) > 0 for row in one)
    assert leftovers(run) == []


@pytest.fixture(
    scope="module", params=[0, pytest.param(1, marks=[pytest.mark.ray, pytest.mark.slow])], ids=["alone", "ray"]
)
def live(
    request: pytest.FixtureRequest, here: Path, packed: Path
) -> Iterator[tuple[subprocess.Popen[str], list[str], Path]]:
    """A run that trains in another process, for long."""
    name, many = f"live-{request.param}", ("trainer.steps=50000", "trainer.log_every_steps=2")
    words = small_words(packed, f"name={name}", f"trainer.workers={request.param}", *many)
    process = run_cli(*words, cwd=here)
    run = here / "runs" / name
    wait_for_steps(run, 8, process)
    yield process, words, run
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_a_run_that_is_trained_elsewhere_is_left_alone(here, live, monkeypatch, capsys):
    process, words, run = live
    monkeypatch.chdir(here)
    files = [run / "recipe.yaml", run / "run.json", run / LOCK]
    before = [path.read_bytes() for path in files]
    for other in (words, [*words, "--fresh"], ["train", "--resume", str(run)]):
        assert main(other) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{run} is in use by `vidssl train` (process {process.pid} on" in said
        assert "wait for it, stop it, or give another folder" in said
    assert [path.read_bytes() for path in files] == before
    steps = len(rows(run))
    wait_for_steps(run, steps + 4, process)  # it has not even noticed


def test_control_c_leaves_a_run_that_can_be_resumed(live):
    process, _, run = live
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopping: a checkpoint is written first" in said
    assert "to go on: vidssl train --resume" in said
    folder = RunFolder(run)
    step = latest_step(folder)
    assert step is not None
    assert step > folder.read_log()[-1]["step"]
    assert leftovers(run) == []


def test_a_closed_terminal_stops_a_run_with_a_checkpoint_and_the_recipe_is_checked_once(packed, tmp_path, monkeypatch):
    looked: list[str] = []
    real = checks.check_recipe
    monkeypatch.setattr(
        checks, "check_recipe", lambda recipe, *a, **k: looked.append(recipe.name) or real(recipe, *a, **k)
    )
    words = ("trainer.workers=0", "trainer.steps=5000", "trainer.checkpoint_every_steps=5000")

    def hang_up(line: str) -> None:
        if line.startswith("step      6/"):
            os.kill(os.getpid(), signal.SIGHUP)

    stopped = train(plan_run(small(packed, tmp_path, *words)), hang_up)
    assert stopped.stopped
    assert stopped.steps >= 6
    assert latest_step(stopped.folder) == stopped.steps
    assert looked == ["small"]
    assert leftovers(stopped.folder.path) == []


def test_a_run_that_need_not_repeat_leaves_the_snapshot_of_every_checkpoint_it_keeps(packed, tmp_path):
    """The bank is written while training goes on: none is lost, none is of another moment, and the last is waited for."""
    words = ("trainer.workers=0", "trainer.steps=12", "trainer.checkpoint_every_steps=3", "trainer.keep=2")
    outcome = train(plan_run(small(packed, tmp_path, *words, "trainer.deterministic=false")), lambda line: None)
    assert outcome.steps == 12
    for step in (9, 12):
        snapshot = snapshot_at(outcome.folder.bank, step)
        assert snapshot is not None
        assert load_snapshot(snapshot).step == step - 1


def test_a_resumed_run_may_begin_with_an_empty_bank(packed, tmp_path):
    def stop_at(step: int) -> Callable[[str], None]:
        asked: list[int] = []

        def listen(line: str) -> None:
            at = int(line.split()[1].partition("/")[0]) if line.startswith("step ") else 0
            if at >= step and not asked:  # asking twice ends the process at once
                asked.append(at)
                os.kill(os.getpid(), signal.SIGHUP)

        return listen

    words = ("trainer.workers=0", "trainer.steps=5000", "trainer.checkpoint_every_steps=5000")
    first = train(plan_run(small(packed, tmp_path, *words, "trainer.batch=2")), stop_at(20))
    second = train(plan_resume(first.folder.path, ["bank=empty"]), stop_at(first.steps + 1))
    snapshot = snapshot_at(second.folder.bank, second.steps)
    assert snapshot is not None
    manifest, recipe = load_manifest(packed), second.folder.read_recipe()
    order = Order(manifest.training_rows(), 2, rank=0, world=1, seed=recipe.seed)
    expected = np.full(len(manifest), -1)  # of the rows that the first run left, none is there
    for step, taken in enumerate(islice(order.walk(), second.steps)):
        if step >= first.steps:
            expected[taken.instance] = step
    np.testing.assert_array_equal(load_snapshot(snapshot).version, expected)


def test_a_run_whose_reader_has_gone_writes_its_checkpoint_too(packed, tmp_path):
    def closed(line: str) -> None:
        if line.startswith("step      6/"):
            raise BrokenPipeError("closed")

    words = ("trainer.workers=0", "trainer.steps=5000", "trainer.checkpoint_every_steps=5000")
    with pytest.raises(BrokenPipeError):
        train(plan_run(small(packed, tmp_path, *words)), closed)
    step = latest_step(RunFolder(tmp_path / "small"))
    assert step is not None
    assert 6 <= step < 5000


@pytest.mark.ray
def test_a_finished_run_stays_finished_when_its_evaluation_fails(here, packed, straight, monkeypatch):
    monkeypatch.chdir(here)
    run, _ = straight
    before, said = tree(run), []

    def no_gpu_here(path: Path) -> None:
        raise DeviceError("trainer.device=cuda was asked for and this machine has no GPU; type trainer.device=cpu")

    words = TrainWords("small.yaml", [f"data={packed}", "name=straight"])
    assert run_train(words, said.append, no_gpu_here) == 0
    assert said == [
        f"{run} is finished (24 of 24 steps), there is nothing to train; to begin again, type --fresh",
        "trained, but not evaluated: trainer.device=cuda was asked for and this machine has no GPU; type "
        f"trainer.device=cpu; to evaluate: vidssl evaluate {run}",
    ]
    assert tree(run) == before


@pytest.mark.ray
def test_what_the_cluster_cannot_give_is_refused_before_anything_is_removed_or_made(packed, straight, ray_cluster):
    run, _ = straight
    before = tree(run.parent)
    for words, sentence in (
        (["trainer.cpus_per_worker=99"], r"needs 198 cores and there are 2; type trainer.workers=1"),
        (["trainer.device=cuda"], r"has no GPU; type trainer.device=cpu"),
        (
            ["loader.decode=dali-cpu", "trainer.device=cpu"],
            r"DALI does not decode h264 on a CPU; type loader.decode=py",
        ),
        (
            ["loader.decode=mixed", "trainer.device=cpu", "trainer.workers=0", "trainer.deterministic=false"],
            r"needs two decoders, and DALI does not",
        ),
        (["loader.decode=nvdec", "trainer.device=cpu"], r"needs a GPU, the clips go to cpu; type loader.decode=auto"),
    ):
        if torch.cuda.is_available() and "trainer.device=cuda" in words:
            continue
        for name in ("straight", "another"):
            recipe = small(packed, run.parents[1], f"trainer.storage={run.parent}", f"name={name}", *words)
            with pytest.raises((DeviceError, DataError), match=sentence):
                train(plan_run(recipe, fresh=True))
            assert tree(run.parent) == before


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
    assert re.search(r"rank [01] \(process \d+ on 127\.0\.0\.1\) was lost; all go on from step 8", said)
    assert [row["step"] for row in rows(run)] == list(range(24))


def environment_of(pid: int) -> str:
    """Where a worker of ours keeps its files; other Ray clusters of this machine are left alone."""
    try:
        return " ".join(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return ""
