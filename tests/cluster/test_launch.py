"""Which device do the workers get, and what is left for miners? Asked on a real Ray that believes in as many GPUs as the test says."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from cluster import launch
from cluster.capacity import demand_of
from vidssl.errors import DeviceError
from vidssl.recipe import Trainer

ASK = """
import json, logging, ray
from cluster.launch import check_resources, refuse_gpus_without_cuda, resolve_device
from vidssl.errors import DeviceError
from vidssl.recipe import Mining, Trainer
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, logging_level=logging.ERROR,
         object_store_memory=10**8, _node_ip_address="127.0.0.1")
answers = []
for workers, device in ((3, "auto"), (2, "auto"), (3, "cpu"), (1, "cuda")):
    said = []
    answers.append([resolve_device(Trainer(workers=workers, device=device), said.append), said])
refused = []
for words in ({"miners": 3}, {"miners": 1, "gpus_per_miner": 0.5}, {"miners": 1, "miner_node": "miners"}, {"miners": 1},
              {"shards": 3}, {"shards": 3, "cpus_per_shard": 0}, {"shards": 3, "cpus_per_shard": 0, "shard_node": "big"}):
    try:
        check_resources(Trainer(workers=1), False, Mining(**words))
        check_resources(Trainer(workers=1), True, Mining(**words))
        refused.append("")
    except DeviceError as error:
        refused.append(str(error))
refuse_gpus_without_cuda(False)
try:
    refuse_gpus_without_cuda(True)
    refused.append("")
except DeviceError as error:
    refused.append(str(error))
print(json.dumps([*answers, refused]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_fewer_gpus_than_workers_is_said_and_enough_are_taken():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ASK], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    few, enough, meant, asked, refused = json.loads(done.stdout.splitlines()[-1])
    cores, gpus, node, fine, shards, none_booked, shard_node, cuda = refused
    if torch.cuda.is_available():
        assert cuda == ""
    else:
        assert re.fullmatch(
            r"Ray offers GPUs that torch cannot use \([\d.]+: .*torch.*\); type vidssl doctor there to see what is missing, "
            r"or trainer\.device=cpu",
            cuda,
        )
    assert shards == (
        "mining.shards=3 with 1 core(s) each needs 3 cores and the workers leave 1; type mining.cpus_per_shard=0, with which "
        "they share the workers' cores"
    )
    assert none_booked == ""
    assert shard_node.startswith("mining.shard_node=big is no resource of this cluster, which has CPU")
    assert cores == "mining.miners=3 with 1 core(s) each needs 3 cores and the workers leave 1; type mining.miners=1"
    assert gpus == ""  # one GPU is left by the worker, or two
    assert node.startswith("mining.miner_node=miners is no resource of this cluster, which has CPU")
    assert fine == ""
    assert few == [
        False,
        [
            "training on the CPU: trainer.workers=3 and this cluster has 2 GPU(s), each worker takes one; "
            "type trainer.workers=2 to train on the GPU, or trainer.device=cpu to mean this"
        ],
    ]
    assert enough == [True, []]
    assert meant == [False, []]
    assert asked == [True, []]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_refused_in_seconds(address, monkeypatch):
    monkeypatch.setattr(launch, "SILENCE_S", 1.0)
    with pytest.raises(DeviceError, match=rf"no Ray cluster answers at RAY_ADDRESS={address} \(.+\); start it"):
        launch._refuse_silence(address)


@pytest.mark.parametrize("address", [None, "auto", "ray://head:10001", "http://head:8265"])
def test_other_addresses_are_left_to_ray(address):
    launch._refuse_silence(address)


@pytest.mark.parametrize(
    ("workers", "cores", "sentence"),
    [
        (1, 6, "trainer.workers=1 with 6 core(s) on one node each: none fits on the 2 node(s) of this cluster, which have 4 cores; type "
         "a smaller trainer.cpus_per_worker"),
        (3, 3, "trainer.workers=3 with 3 core(s) on one node each: only 2 fit on the 2 node(s) of this cluster, which have 4 cores; type "
         "trainer.workers=2, or a smaller trainer.cpus_per_worker"),
    ],
)  # fmt: skip
def test_more_cores_for_a_worker_than_any_node_has_are_refused(workers, cores, sentence, monkeypatch):
    monkeypatch.setattr(launch, "whole_by_node", lambda: {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}})
    demand = demand_of(Trainer(workers=workers, cpus_per_worker=cores), False)
    launch._check_nodes("trainer.workers=2", 2, demand_of(Trainer(workers=2, cpus_per_worker=3), False))
    with pytest.raises(DeviceError) as refused:
        launch._check_nodes(f"trainer.workers={workers}", workers, demand)
    assert str(refused.value) == sentence
