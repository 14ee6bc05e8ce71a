"""Which device do the workers get, and what is left for miners? Asked on a real Ray that believes in as many GPUs as the test says."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import torch

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
