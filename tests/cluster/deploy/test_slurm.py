"""The Slurm script run for real: two Ray nodes on this machine, a training over both, USR1, queued again, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cluster.deploy
from tests.cluster.deploy.slurm_stubs import JOB, install
from tests.cluster.test_job import RECIPE, free_ports

pytestmark = pytest.mark.usefixtures("usual_signals")

ROOT = Path(__file__).parents[3]
SCRIPT = Path(cluster.deploy.__path__[0]) / "slurm.sh"
PORTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")
HEAD_PORTS = ("dashboard-port", "ray-client-server-port")


@dataclass(frozen=True)
class Slurm:
    """A cluster of stubs: where they are, what to give to `sbatch`, how to know its processes."""

    folder: Path
    env: dict[str, str]
    mark: str

    def asked(self, name: str) -> list[list[str]]:
        lines = map(json.loads, (self.folder / "asked.jsonl").read_text().splitlines())
        return [words for caller, *words in lines if caller == name]

    def left(self) -> list[str]:
        """Processes that began below this `sbatch` and live."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
            except OSError:
                continue
        return found


@pytest.fixture
def slurm(tmp_path) -> Iterator[Slurm]:
    install(tmp_path / "slurm")
    mark, ports = uuid.uuid4().hex, free_ports(2 * len(PORTS) + len(HEAD_PORTS))
    names = [*HEAD_PORTS, *PORTS, *PORTS]
    words = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    more, memory = len(HEAD_PORTS) + len(PORTS), ["--object-store-memory=100000000"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    env |= {
        "PATH": os.pathsep.join([str(tmp_path / "slurm"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the head's address is 127.0.0.1, and nothing listens elsewhere
        "STUB_RAY_WORDS": json.dumps({"n1": words[:more] + memory, "n2": words[more:] + memory}),
        "STUB_MARK": mark,
    }
    made = Slurm(tmp_path / "slurm", env, mark)
    yield made
    for place in Path("/proc").glob("[0-9]*"):  # of a test that failed half-way
        try:
            if mark.encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
        except OSError:
            continue


def batch(slurm: Slurm, *words: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            ["sbatch", "--nodes=2", str(SCRIPT), *words],
            cwd=slurm.folder,
            env=slurm.env,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def until(true: Callable[[], object], process: subprocess.Popen[bytes], log: Path, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_over_two_nodes_that_runs_out_of_time_stops_with_a_checkpoint_queues_again_and_finishes(
    slurm, packed, tmp_path
):
    recipe, log = tmp_path / "small.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    words = [str(recipe), f"data={packed}", f"trainer.storage={tmp_path}", "trainer.workers=2", "trainer.steps=60"]
    words += ["trainer.checkpoint_every_steps=1000", "optim.warmup_steps=0", "--no-evaluation"]
    run = tmp_path / "small"
    process = batch(slurm, *words, log=log)
    until(lambda: (run / "log.jsonl").is_file() and (run / "log.jsonl").read_text().count("\n") > 5, process, log)
    os.kill(int((slurm.folder / "batch.pid").read_text()), signal.SIGUSR1)
    until(lambda: ["requeue", str(JOB)] in slurm.asked("scontrol"), process, log)
    (stopped,) = (run / "checkpoints").iterdir()  # no other than the one of the stop was due
    step = int(stopped.name.removeprefix("step-"))
    assert 6 <= step < 60
    assert process.wait(400) == 0, log.read_text()
    said = log.read_text()
    assert said.count("2 of 2 nodes") == 2
    assert f"stopped after step {step} of 60" in said
    assert "queues again" in said
    assert "queued again 1 time(s)" in said
    assert f"it goes on from step {step} of 60" in said
    assert [json.loads(row)["step"] for row in (run / "log.jsonl").read_text().splitlines()] == list(range(60))
    deadline = time.monotonic() + 30
    while slurm.left() and time.monotonic() < deadline:  # Ray's forkserver notices that its parent is gone
        time.sleep(0.5)
    assert not slurm.left()
    assert not Path(f"/tmp/ray-{JOB}").exists()


def test_slurm_is_asked_for_what_a_run_that_goes_on_needs():
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert "requeue" in options
    assert options["signal"] == "B:USR1@300"
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "no recipe named; type sbatch slurm.sh"), (("cpr-tiny", "--fresh"), "--fresh begins again")],
)
def test_words_that_a_queued_again_job_must_not_have_are_refused_before_anything_starts(slurm, tmp_path, words, said):
    log = tmp_path / "out"
    assert batch(slurm, *words, log=log).wait(30) == 2
    assert said in log.read_text()
    assert len((slurm.folder / "asked.jsonl").read_text().splitlines()) == 1  # sbatch itself


def test_the_script_says_in_its_head_how_it_is_started():
    first, second = SCRIPT.read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("# sbatch --nodes=2 ")
    assert os.access(SCRIPT, os.X_OK)
