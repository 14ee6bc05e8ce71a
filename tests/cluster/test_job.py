"""`ray job submit`: the same words as on the command line, on a head that this test starts on loopback and ends itself."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.usefixtures("usual_signals"), pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
LOOPBACK = (
    "--node-ip-address=127.0.0.1",
    "--dashboard-host=127.0.0.1",
    "--num-cpus=3",
    "--object-store-memory=200000000",
)
PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--metrics-export-port",
    "--ray-client-server-port",
    "--runtime-env-agent-port",
)


RECIPE = """\
name: small
clips: {frames: 4, stride: 2, size: 32}
augment: {flip: false}
model: {backbone: tiny, dim: 16, width: 4}
method: {name: cpr, view: residual, second_view: rgb, warmup_steps: 4, queue: 24, momentum: 0.9}
mining: {where: actor, stages: 3, pool: 8, topk: 2}
trainer: {workers: 1, batch: 4, steps: 12, checkpoint_every_steps: 6, log_every_steps: 1}
"""


@dataclass(frozen=True)
class Head:
    """A head node that only this machine can reach."""

    url: str
    env: dict[str, str]

    def start(self, *words: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [ray_program(), "job", "submit", "--address", self.url, "--working-dir", "."]
        command += ["--runtime-env", "cluster/runtime_env.yaml", *options, "--", "python", "-m", "cluster", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, env=self.env, text=True, **pipes)

    def submit(self, *words: str, options: tuple[str, ...] = (), wait: float = 240) -> tuple[int, str]:
        process = self.start(*words, options=options)
        said, _ = process.communicate(timeout=wait)
        return process.returncode, said

    def job(self, verb: str, name: str) -> str:
        command = [ray_program(), "job", verb, "--address", self.url, name]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120).stdout


def ray_program() -> str:
    return str(Path(sys.executable).with_name("ray"))


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def head_environment(home: Path) -> dict[str, str]:
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return (
        env
        | {
            "HOME": str(home),  # runs of a job go below the home directory
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is that of `ray start`
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it Ray turns 127.0.0.1 into the machine's outer address
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
    )


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it is there and wants the token
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray's sockets lie below it
    env, ports = head_environment(home), free_ports(len(PORTS))
    options = [f"{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(
            [ray_program(), "start", "--head", "--block", f"--temp-dir={home}", *LOOPBACK, *options],
            env=env,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{ports[1]}"
    try:
        deadline = time.monotonic() + 90
        while not answers(url):
            assert process.poll() is None, (home / "head.log").read_text()
            assert time.monotonic() < deadline, (home / "head.log").read_text()
            time.sleep(0.3)
        yield Head(url, env)
    finally:
        process.terminate()  # a blocking `ray start` ends what it started, and only that
        process.wait(60)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_a_job_prints_what_the_verb_prints_and_succeeds(head):
    code, said = head.submit("recipes")
    assert code == 0, said
    assert re.search(r"^cpr-tiny$", said, re.M)
    assert re.search(r"^ +expected: ", said, re.M)
    assert "succeeded" in said


def test_a_wrong_key_fails_the_job_with_one_sentence(head):
    code, said = head.submit("train", "cpr-tiny", "trainer.wrkers=2", options=("--submission-id", "wrong-key"))
    assert code != 0
    assert "vidssl: unknown key 'trainer.wrkers'; did you mean 'trainer.workers'?" in said
    assert "Traceback" not in said
    status = head.job("status", "wrong-key")
    assert "failed" in status, status
    assert "exit code 2" in status, status


def test_without_auth_mode_token_a_client_is_refused_by_a_head_that_wants_one(head):
    env = {name: value for name, value in head.env.items() if name != "RAY_AUTH_MODE"}
    code, said = Head(head.url, env).submit("recipes")
    assert code != 0
    assert "oken authentication is enabled" in said


def test_a_training_job_succeeds_and_leaves_its_run_on_the_storage_it_was_given(head, packed, small, tmp_path):
    code, said = head.submit("train", str(small), f"data={packed}", f"trainer.storage={tmp_path}", "--no-evaluation")
    assert code == 0, said
    assert "trained 12 steps" in said
    assert "succeeded" in said
    logged = (tmp_path / "small" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in logged] == list(range(12))


@contextmanager
def streamed(process: subprocess.Popen[str]) -> Iterator[Iterator[str]]:
    """Lines as they come; ends with the process, or the process ends after four minutes."""
    assert process.stdout is not None
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    try:
        yield iter(process.stdout)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_a_job_streams_its_steps_and_when_stopped_writes_a_checkpoint_first(head, packed, small, tmp_path):
    words = ["train", str(small), f"data={packed}", f"trainer.storage={tmp_path}"]
    words += ["trainer.steps=100000", "trainer.checkpoint_every_steps=100000", "--no-evaluation"]
    with streamed(head.start(*words, options=("--submission-id", "long"))) as lines:
        steps = itertools.islice((line for line in lines if line.startswith("step ")), 6)
        assert len(list(steps)) == 6  # read while the job runs: it has no other end than the stop below
        assert "RUNNING" in head.job("status", "long")
        stopped = head.job("stop", "long")
    assert "was stopped" in stopped, stopped
    said = head.job("logs", "long")
    (checkpoint,) = (tmp_path / "small" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 6 <= step < 100000
    assert f"stopped after step {step} of 100000; to go on: vidssl train --resume" in said
