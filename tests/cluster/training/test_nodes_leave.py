"""Nodes that leave, come back, or come late: on a real cluster of processes, one node each; every sample of an epoch exactly once."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults import RECIPE, STEPS, TOGETHER, VIDEOS, Run, samples
from benchmarks.faults_cluster import LocalCluster, free_port, kill_tree, traced
from cluster.training.lost import read_ranks_of
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
def typed(home: Path, cluster: LocalCluster) -> Iterator[Callable[..., Run]]:
    """Types a training; ends it with the test."""
    runs: list[Run] = []

    def type_it(name: str, *words: str) -> Run:
        runs.append(Run(cluster, home, name, *words))
        return runs[-1]

    yield type_it
    for run in runs:
        run.close()


@pytest.fixture
def cluster(home: Path) -> Iterator[LocalCluster]:
    """A head without cores; nodes are the test's."""
    made = LocalCluster(home)
    made.begin(0)
    yield made
    made.close()


def ended(run: Run, seconds: float = 300) -> list[str]:
    code = run.ended(seconds)
    said = [line for _, line in run.said]
    assert code == 0, said
    return said


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(folder).read_log()]


def test_two_workers_become_one_and_then_three_and_every_sample_of_an_epoch_comes_once(cluster, typed):
    """Loss beside a run that nothing happened to: of the same batches, so it goes the same way."""
    first, second = cluster.add(), cluster.add()
    words = ("trainer.workers=[1,3]", f"trainer.batch={TOGETHER // 3}", f"trainer.steps={4 * STEPS}")
    run = typed("grows", *words)
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
    undisturbed = typed("still", *words)
    ended(undisturbed)
    one, two = losses(run.folder), losses(undisturbed.folder)
    assert len(one) == len(two) == 4 * STEPS
    last = slice(-40, None)
    assert sum(one[last]) == pytest.approx(sum(two[last]), rel=0.1)
    del first


def test_a_node_that_dies_while_there_is_a_spare_one_is_named_with_its_rank(cluster, typed):
    for _ in range(3):
        cluster.add()
    run = typed("spare")
    assert run.wait_for(25), run.said
    before = read_ranks_of(RunFolder(run.folder))
    cluster.kill(before[1].node)
    said = ended(run)
    wanted = f"rank 1 (process {before[1].pid} on {before[1].node}, with its node) was lost; all go on from step "
    assert [line for line in said if line.startswith(wanted)], said


def test_a_run_waits_for_its_nodes_as_long_as_it_may_and_is_refused_where_it_may_not(cluster, typed):
    began = time.monotonic()
    refused = typed("refused")
    assert refused.ended(60) == 2
    assert time.monotonic() - began < 30
    assert [line for _, line in refused.said] == [
        "vidssl: trainer.workers=2 with 1 core(s) each needs 2 cores and there are 0; type trainer.workers=1"
    ]
    assert not refused.folder.exists()
    waits = typed("waits", "trainer.wait_for_nodes=8")
    assert waits.ended(90) == 2
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
    comes = typed("comes", "trainer.wait_for_nodes=240", "trainer.steps=20")
    time.sleep(20)
    cluster.add()
    cluster.add()
    ended(comes)
    busy = typed("busy", "trainer.steps=2000")
    assert busy.wait_for(5), busy.said
    other = typed("other", "trainer.wait_for_nodes=5")  # what is there is taken
    assert other.ended(90) == 2
    assert "0 of 2 worker(s) with 1 core(s) fit" in other.said[-1][1]
    assert busy.process.poll() is None
    before = busy.step()
    assert busy.wait_for(before + 5), busy.said  # it has not even noticed
    busy.process.terminate()
    assert busy.ended(60) == 130


def test_three_nodes_find_what_one_finds_and_two_runs_at_once_do_not_meet(cluster, typed):
    """The same ranks, wherever they are, and whoever else trains there: the same losses, out of the same bank."""
    words = ("trainer.workers=3", f"trainer.batch={TOGETHER // 3}", "trainer.deterministic=true", "trainer.steps=60")
    alone = cluster.add(cores=3)
    one = typed("one-node", *words)
    ended(one)
    assert {rank.node for rank in read_ranks_of(RunFolder(one.folder))} == {alone}
    cluster.kill(alone)
    while cluster.living() > 1:  # the head notices within half a minute
        time.sleep(1)
    nodes = {cluster.add() for _ in range(3)}
    three = typed("three-nodes", *words)
    ended(three)
    assert {rank.node for rank in read_ranks_of(RunFolder(three.folder))} == nodes
    assert losses(three.folder) == pytest.approx(losses(one.folder), rel=1e-5)
    assert any(row.get("mining/positives", 0) > 0 for row in RunFolder(one.folder).read_log())
    for _ in range(3):
        cluster.add()
    pair = [typed(f"pair-{number}", *words, "seed=1" if number else "seed=0") for number in range(2)]
    for run in pair:
        ended(run, 400)
    assert losses(pair[0].folder) == pytest.approx(losses(one.folder), rel=1e-5)
    assert losses(pair[1].folder) != pytest.approx(losses(one.folder), rel=1e-2)
    left = cluster.left()
    assert [name for name in left.actors if "Autoscaling" not in name] == []
    assert left.groups == ()


@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace takes root")
def test_a_node_that_joins_without_the_storage_gets_no_worker_and_a_whole_one_does(cluster, typed, home):
    cluster.add()
    run = typed("joined", "trainer.workers=[1,2]", f"trainer.batch={TOGETHER // 2}", f"trainer.steps={6 * STEPS}")
    assert run.wait_for(10), run.said
    blind = cluster.add(without=home / "runs")
    until = time.monotonic() + 120
    while not any(line.startswith(f"node {blind}, which joined, does not see") for _, line in run.said):
        assert time.monotonic() < until, run.said
        time.sleep(0.5)
    before = run.step()
    assert run.wait_for(before + 10), run.said
    assert {row["world"] for row in traced(cluster.trace, "joined")} == {1}
    cluster.add()
    said = ended(run, 400)
    rows = traced(cluster.trace, "joined")
    assert rows[-1]["world"] == 2
    assert samples(rows, 6 * STEPS)[1:] == (0, 0)
    assert sum("which joined, does not see" in line for line in said) == 1
    assert f"{home / 'runs' / 'joined'}: No such file or directory): no worker begins there" in "\n".join(said)


AUTOSCALED = {
    "cluster_name": "scaled",
    "max_workers": 2,
    "provider": {"type": "fake_multinode"},
    "auth": {"ssh_user": "nobody"},
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 5,
    "head_node_type": "ray.head.default",
    **{
        key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    },
    **{
        key: []
        for key in ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_filter")
    },
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "one": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
}
"""Ray's own autoscaler, whose machines are processes of this one."""


def test_an_autoscaler_is_asked_for_the_nodes_that_are_missing(home, tmp_path):
    """What it then does is Ray's: its fake machines do not come up everywhere."""
    (tmp_path / "scaled.yaml").write_text(json.dumps(AUTOSCALED))
    port = free_port()
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    env = os.environ | told | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="ray-") as place:  # sockets want a short path
        words = ["--head", f"--port={port}", "--num-cpus=0", f"--autoscaling-config={tmp_path / 'scaled.yaml'}"]
        words += ["--include-dashboard=false", f"--temp-dir={place}"]
        head = subprocess.Popen([ray, "start", "--block", *words], env=env, start_new_session=True)
        try:
            train = [sys.executable, "-W", "ignore", "-m", "cluster", "train", str(home / "faults.yaml"), "name=scaled"]
            train += [f"data={home / 'packed'}", f"trainer.storage={home / 'runs'}", "trainer.wait_for_nodes=25"]
            time.sleep(20)
            there = env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
            done = subprocess.run(
                [*train, "--no-evaluation"], env=there, capture_output=True, text=True, timeout=200, check=False
            )
        finally:
            kill_tree(head)
        (log,) = Path(place).glob("session_2*/logs/monitor.log")
        heard = log.read_text()
    said = done.stdout.splitlines()
    assert done.returncode == 2, [*said, done.stderr]
    assert any(line.startswith("waiting for nodes since ") and "0 core(s) are free" in line for line in said)
    assert "{'CPU': 1}: 2 from request_resources()" in heard
    assert "Queue 2 new nodes for launch" in heard
