"""Nodes that see other data, or another storage, are named before a run is made; on real nodes, one in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETUP = """
import json, os, subprocess, sys, time
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from cluster.nodes import Newcomers, refuse_blind_nodes
from vidssl.errors import VidsslError

data, other, storage = (Path(word) for word in sys.argv[1:4])
answers, said = [], []

def node(*mounts):
    script = "; ".join([*mounts, f"exec {ray_program} start --address={cluster.address} --num-cpus=1 --object-store-memory=100000000 --block"])
    started = subprocess.Popen(["unshare", "-m", "bash", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(2)
    return started

def wait(count):
    until = time.monotonic() + 90
    while sum(one["Alive"] for one in ray.nodes()) != count:
        assert time.monotonic() < until
        time.sleep(0.2)

def end(process):
    process.terminate()
    process.wait(60)
    wait(1)

ray_program = str(Path(sys.executable).with_name("ray"))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
ray.init(address=cluster.address, log_to_driver=False)
"""

ASK = (
    SETUP
    + """
def ask(where):
    try:
        refuse_blind_nodes(where, data, said.append)
        answers.append("")
    except VidsslError as error:
        answers.append(type(error).__name__ + ": " + str(error))

ask(storage)  # the driver's own node alone: nobody is asked
for mounts in ([], [f"mount -t tmpfs none {storage}"], [f"mount -t tmpfs none {data}"], [f"mount --bind {other} {data}"],
               [f"mount --bind {storage} {storage}", f"mount -o remount,ro,bind {storage}"]):
    second = node(*mounts)
    ask(storage)
    if mounts and storage.name in mounts[0] and len(mounts) == 1:
        ask(None)  # who only reads does not mind
    end(second)
print(json.dumps([answers, said, sorted(os.listdir(storage))]))
ray.shutdown()
cluster.shutdown()
"""
)

JOIN = (
    SETUP
    + """
newcomers = Newcomers(storage, data, again_s=3.0)
late = node(f"mount -t tmpfs none {data}")
joined = [one["NodeID"] for one in ray.nodes() if one["Alive"]]

def look():
    newcomers.look(joined, said.append)
    answers.append([len(newcomers.blind), newcomers.selector is None, len(said)])

look()
subprocess.run(["nsenter", "-t", str(late.pid), "-m", "umount", str(data)], check=True)
look()  # too soon to ask again
time.sleep(3.1)
look()
look()
end(late)
print(json.dumps([answers, said, sorted(os.listdir(storage))]))
ray.shutdown()
cluster.shutdown()
"""
)


@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace takes root")
def test_nodes_that_see_other_data_or_another_storage_are_named_with_what_is_wrong(packed, tmp_path):
    data, other, storage = (tmp_path / name for name in ("data", "other", "storage"))
    shutil.copytree(packed, data)
    shutil.copytree(packed, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest).replace(manifest["hash"], "0" * len(manifest["hash"])))
    storage.mkdir()
    answers, said, left = told_by(ASK, data, other, storage)
    alone, same, apart, reads, no_data, another, read_only = answers
    assert [alone, same, reads] == ["", "", ""]
    assert apart.startswith(f"StorageError: {storage} is not one storage for all nodes (")
    assert "No such file or directory); type trainer.storage=FOLDER, one that all nodes share and can write" in apart
    assert no_data.startswith(f"DataError: the data {data} is not the same on every node (")
    assert "into a store (s3://, gs://)" in no_data
    assert another.startswith(f"DataError: the data {data} is not the same on every node (")
    assert "Read-only file system" in read_only
    assert not said
    assert not left


@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace takes root")
def test_a_node_that_joined_blind_is_asked_again_and_used_once_it_sees(packed, tmp_path):
    data, storage = tmp_path / "data", tmp_path / "storage"
    shutil.copytree(packed, data)
    storage.mkdir()
    answers, said, left = told_by(JOIN, data, tmp_path, storage)
    assert answers == [[1, False, 1], [1, False, 1], [0, True, 2], [0, True, 2]]
    assert "which joined, does not see what the others see" in said[0]
    assert said[0].endswith("no worker begins there")
    assert said[1].endswith("sees what the others see now: workers may begin there")
    assert not left


def told_by(script: str, *folders: Path) -> list[list[str]]:
    words = [sys.executable, "-W", "ignore", "-c", script, *map(str, folders)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
