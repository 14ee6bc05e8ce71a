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

ASK = """
import json, os, subprocess, sys, time
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from cluster.nodes import refuse_blind_nodes
from vidssl.errors import VidsslError

data, other, storage = (Path(word) for word in sys.argv[1:4])
answers, said = [], []

def ask(where):
    try:
        refuse_blind_nodes(where, data, said.append)
        answers.append("")
    except VidsslError as error:
        answers.append(type(error).__name__ + ": " + str(error))

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


@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace takes root")
def test_nodes_that_see_other_data_or_another_storage_are_named_with_what_is_wrong(packed, tmp_path):
    data, other, storage = (tmp_path / name for name in ("data", "other", "storage"))
    shutil.copytree(packed, data)
    shutil.copytree(packed, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest).replace(manifest["hash"], "0" * len(manifest["hash"])))
    storage.mkdir()
    words = [sys.executable, "-W", "ignore", "-c", ASK, str(data), str(other), str(storage)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers, said, left = json.loads(done.stdout.splitlines()[-1])
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
