"""Nodes that leave, come back, or come late: on a real cluster of processes, one node each; every sample of an epoch exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import RECIPE, STEPS, TOGETHER, VIDEOS, Run, samples
from benchmarks.faults_cluster import LocalCluster, traced
from pipelines.pack import PackOptions, pack
from pipelines.synthetic import make_motion_set
from vidssl.saved.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder whose training split is a whole number of steps, and a recipe."""
    place = tmp_path_factory.mktemp("nodes")
    table = make_motion_set(place / "videos", videos=VIDEOS * 3 // 2, frames=24, size=128, seed=0)
    pack("csv", table, place / "packed", PackOptions())
    (place / "faults.yaml").write_text(RECIPE)
    (place / "runs").mkdir()
    return place


@pytest.fixture
def cluster(home: Path) -> Iterator[LocalCluster]:
    """A head without cores; nodes are the test's."""
    made = LocalCluster(home)
    made.begin(0)
    yield made
    made.close()


def ended(run: Run, seconds: float = 300) -> list[str]:
    code = run.process.wait(seconds)
    said = [line for _, line in run.said]
    assert code == 0, said
    return said


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(folder).read_log()]


def test_two_workers_become_one_and_then_three_and_every_sample_of_an_epoch_comes_once(cluster, home):
    """Loss beside a run that nothing happened to: of the same batches, so it goes the same way."""
    first, second = cluster.add(), cluster.add()
    words = ("trainer.workers=[1,3]", f"trainer.batch={TOGETHER // 3}", f"trainer.steps={4 * STEPS}")
    run = Run(cluster, home, "grows", *words)
    assert run.wait_for(30), run.said
    assert {row["world"] for row in traced(cluster.trace, "grows")} == {2}
    cluster.kill(second)
    assert run.wait_for(60), run.said
    assert traced(cluster.trace, "grows")[-1]["world"] == 1
    cluster.add()
    cluster.add()
    said = ended(run)
    rows = traced(cluster.trace, "grows")
    assert rows[-1]["world"] == 3
    replayed, lost, twice = samples(rows, 4 * STEPS)
    assert (lost, twice) == (0, 0)
    assert replayed <= 3 * 20
    assert any(line.startswith("1 node(s) left the cluster (127.0.0.") for line in said)
    assert any(
        "with 1 worker(s) instead of 2, 12 videos in 3 parts each: a step still takes 12" in line for line in said
    )
    assert any(line.startswith("there is room for 3 workers now") or "room for 2 workers now" in line for line in said)
    undisturbed = Run(cluster, home, "still", *words)
    ended(undisturbed)
    one, two = losses(run.folder), losses(undisturbed.folder)
    assert len(one) == len(two) == 4 * STEPS
    last = slice(-40, None)
    assert sum(one[last]) == pytest.approx(sum(two[last]), rel=0.1)
    del first


def test_a_run_waits_for_its_nodes_as_long_as_it_may_and_is_refused_where_it_may_not(cluster, home):
    began = time.monotonic()
    refused = Run(cluster, home, "refused")
    assert refused.process.wait(60) == 2
    assert time.monotonic() - began < 30
    assert [line for _, line in refused.said] == [
        "vidssl: trainer.workers=2 with 1 core(s) each needs 2 cores and there are 0; type trainer.workers=1"
    ]
    assert not refused.folder.exists()
    waits = Run(cluster, home, "waits", "trainer.wait_for_nodes=8")
    assert waits.process.wait(90) == 2
    said = [line for _, line in waits.said]
    assert any(
        line.startswith("waiting for nodes since ")
        and "0 of 2 worker(s) with 1 core(s) fit, 0 core(s) are free" in line
        for line in said
    )
    assert said[-1].startswith("vidssl: no room for the workers after ")
    assert (
        "type trainer.wait_for_nodes=SECONDS to wait longer, or trainer.workers=[MIN,MAX] to begin with fewer"
        in said[-1]
    )
    comes = Run(cluster, home, "comes", "trainer.wait_for_nodes=240", "trainer.steps=20")
    time.sleep(20)
    cluster.add()
    cluster.add()
    ended(comes)
    busy = Run(cluster, home, "busy", "trainer.steps=2000")
    assert busy.wait_for(5), busy.said
    other = Run(cluster, home, "other", "trainer.wait_for_nodes=5")  # what is there is taken
    assert other.process.wait(90) == 2
    assert "0 of 2 worker(s) with 1 core(s) fit" in other.said[-1][1]
    assert busy.process.poll() is None
    before = busy.step()
    assert busy.wait_for(before + 5), busy.said  # it has not even noticed
    busy.process.terminate()
    assert busy.process.wait(60) == 130


AUTOSCALED = """
import json, os, subprocess, sys
from ray.cluster_utils import AutoscalingCluster
cluster = AutoscalingCluster(
    head_resources={"CPU": 0},
    worker_node_types={"one": {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}, "min_workers": 0, "max_workers": 2}},
    idle_timeout_minutes=1,
)
cluster.start()
try:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "cluster", *sys.argv[1:]],
                          env=os.environ | {"RAY_ADDRESS": "127.0.0.1:6379"}, capture_output=True, text=True)
    print(json.dumps([done.returncode, (done.stdout + done.stderr).splitlines()]))
finally:
    cluster.shutdown()
"""


def test_an_autoscaled_cluster_that_starts_without_nodes_gets_them(home):
    words = [
        "train",
        str(home / "faults.yaml"),
        "name=scaled",
        f"data={home / 'packed'}",
        f"trainer.storage={home / 'runs'}",
    ]
    words += ["trainer.wait_for_nodes=200", "trainer.steps=20", "--no-evaluation"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AUTOSCALED, *words],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    code, said = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("[")))
    assert code == 0, said
    assert any(line.startswith("waiting for nodes since ") for line in said)
