"""Which Ray runs this? Join the cluster named by RAY_ADDRESS, else start a small one on this machine, and check the fit first.

A request that can never be met would wait for ever inside Ray Train, so what the recipe asks for is held against the
cluster's resources before anything starts.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.capacity import Demand, demand_of, most_workers, sizes_of, whole_by_node
from cluster.quiet import quiet_ray
from vidssl.errors import DeviceError
from vidssl.recipe import Mining, Trainer

__all__ = [
    "check_resources",
    "cores_and_gpus",
    "in_ray_job",
    "ray_session",
    "refuse_gpus_without_cuda",
    "resolve_device",
]

LOOK_S = 60.0
SILENCE_S = 10.0
"""Seconds in which a head has to answer: one that is just being started refuses connections at first."""

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_OBJECT_STORE_BYTES = 200 * 2**20  # pushes are kilobytes; the default would reserve 30 % of a laptop's memory


def in_ray_job() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return _JOB in os.environ


@contextmanager
def ray_session(cores: int, namespace: str = "vidssl") -> Iterator[None]:
    """Ray for the length of a block: the cluster of RAY_ADDRESS, else a local one with `cores` cores.

    An already connected process keeps its connection and its lifetime.

    Raises:
        DeviceError: nobody answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Train reads these in the driver and hands them to its actors.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if "RAY_ADDRESS" not in os.environ:
        # Read when ray is imported: without it the local address is turned into the machine's outer one.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    _refuse_silence(address)
    if address is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts a laptop; saves seconds
        options |= {
            "address": "local",
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    quiet_ray()
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that tokens are on, at every start
    ray.init(**options, runtime_env=_environment(address))
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_silence(address: str | None) -> None:
    """A head that is not there would be asked for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not port.isdigit():
        return  # auto, ray://…: Ray knows how long to ask
    until = time.monotonic() + SILENCE_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=SILENCE_S).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until or not isinstance(error, ConnectionError):
                raise DeviceError(
                    f"no Ray cluster answers at RAY_ADDRESS={address} ({getattr(error, 'strerror', None) or error}); start it, "
                    "correct the address, or unset RAY_ADDRESS for a cluster of this machine alone"
                ) from error
        time.sleep(0.5)


def _environment(address: str | None) -> dict[str, Any]:
    names = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    # Train's cleaner looks for "the" cluster of a host; where there are two, its actors must be told which.
    if address is not None and not address.startswith("http"):
        names["RAY_ADDRESS"] = address
    return {"env_vars": names}


def check_resources(trainer: Trainer, use_gpu: bool, mining: Mining | None = None) -> None:
    """Refuse what this cluster can never give; one that is to get nodes yet (`trainer.wait_for_nodes`) is waited for instead.

    Args:
        trainer: The recipe's section.
        use_gpu: Whether each worker takes one.
        mining: The recipe's section, where it mines.

    Raises:
        DeviceError: more workers, cores or GPUs than there are, on all nodes together or on any of them.
    """
    import ray

    if trainer.wait_for_nodes is not None:
        return
    have = ray.cluster_resources()
    cores, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    workers, each = sizes_of(trainer)[-1], trainer.cpus_per_worker
    asked, need = f"trainer.{'workers' if trainer.min_workers is None else 'min_workers'}={workers}", workers * each
    if need > cores:
        raise DeviceError(
            f"{asked} with {each} core(s) each needs {need} cores and there are {cores}; type trainer.workers={max(1, cores // each)}"
        )
    if use_gpu and workers > gpus:
        raise DeviceError(
            f"{asked} on cuda needs {workers} GPUs and there are {gpus}; type trainer.workers={max(gpus, 1)} or trainer.device=cpu"
        )
    if mining is not None:
        _check_node("bank_node", mining.bank_node, have)
    if mining is not None and mining.miners:
        _check_miners(mining, have, cores - need, gpus - (workers if use_gpu else 0))
    if mining is not None and mining.shards > 1:
        _check_shards(mining, have, cores - need)
    _check_nodes(asked, workers, demand_of(trainer, use_gpu, mining))


def _check_nodes(asked: str, workers: int, demand: Demand) -> None:
    """A worker's cores and its GPU must be of one node."""
    fit = most_workers(demand, nodes := whole_by_node())
    if fit < workers:
        each = f"{demand.worker['CPU']:g} core(s)" + (" and a GPU" if "GPU" in demand.worker else "")
        sizes = sorted({int(node.get("CPU", 0)) for node in nodes.values()})
        raise DeviceError(
            f"{asked} with {each} on one node each: {f'only {fit}' if fit else 'none'} fit{'' if fit else 's'} on the {len(nodes)} node(s) of this cluster, which have "
            f"{' or '.join(map(str, sizes))} cores; type {f'trainer.workers={fit}, or ' if fit else ''}a smaller trainer.cpus_per_worker"
        )


def _check_shards(mining: Mining, have: Mapping[str, float], cores: int) -> None:
    """`cores` is what the workers leave."""
    if mining.shards * mining.cpus_per_shard > cores:
        fit = cores // mining.cpus_per_shard
        fewer = f"mining.shards={fit}, or " if fit > 1 else ""
        raise DeviceError(
            f"mining.shards={mining.shards} with {mining.cpus_per_shard} core(s) each needs "
            f"{mining.shards * mining.cpus_per_shard} cores and the workers leave {cores}; type {fewer}mining.cpus_per_shard=0, "
            "with which they share the workers' cores"
        )
    _check_node("shard_node", mining.shard_node, have)


def _check_miners(mining: Mining, have: Mapping[str, float], cores: int, gpus: int) -> None:
    """`cores` and `gpus` are what the workers leave."""
    needed = f"mining.miners={mining.miners} with {mining.cpus_per_miner} core(s) each"
    if mining.miners * mining.cpus_per_miner > cores:
        fit = cores // mining.cpus_per_miner
        raise DeviceError(
            f"{needed} needs {mining.miners * mining.cpus_per_miner} cores and the workers leave {cores}; type mining.miners={fit}"
        )
    if mining.miners * mining.gpus_per_miner > gpus:
        raise DeviceError(
            f"mining.miners={mining.miners} with mining.gpus_per_miner={mining.gpus_per_miner:g} needs "
            f"{mining.miners * mining.gpus_per_miner:g} GPUs and the workers leave {gpus}; type mining.gpus_per_miner=0"
        )
    _check_node("miner_node", mining.miner_node, have)


def _check_node(key: str, node: str | None, have: Mapping[str, float]) -> None:
    if node and node not in have:
        raise DeviceError(
            f"mining.{key}={node} is no resource of this cluster, which has {', '.join(sorted(have))}; "
            "start nodes with it (ray start --resources), or leave the key out"
        )


def resolve_device(trainer: Trainer, say: Callable[[str], None] = lambda line: None) -> bool:
    """Whether workers get a GPU each.

    Args:
        trainer: The recipe's section.
        say: Told where there are GPUs and the workers take the CPU all the same.

    Raises:
        DeviceError: cuda was asked for and there is none.
    """
    if trainer.device == "cuda" and trainer.wait_for_nodes is not None:
        return True
    (_, gpus), least = cores_and_gpus(trainer.device), sizes_of(trainer)[-1]
    if trainer.device == "auto" and 0 < gpus < least:
        say(
            f"training on the CPU: trainer.workers={trainer.workers} and this cluster has {gpus} GPU(s), each worker takes one; "
            f"type trainer.workers={gpus} to train on the GPU, or trainer.device=cpu to mean this"
        )
    return trainer.device == "cuda" or (trainer.device == "auto" and gpus >= least)


def cores_and_gpus(device: str) -> tuple[int, int]:
    """What this cluster has for work on `device` (auto, cpu or cuda); no GPUs where they are not to be used.

    Raises:
        DeviceError: cuda was asked for and there is no GPU.
    """
    import ray

    have = ray.cluster_resources()
    cores, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    if device == "cuda" and gpus == 0:
        raise DeviceError("trainer.device=cuda was asked for and this cluster has no GPU; type trainer.device=cpu")
    return cores, 0 if device == "cpu" else gpus


def refuse_gpus_without_cuda(use_gpu: bool) -> None:
    """Refuse to train on GPUs that Ray counts and torch cannot use; asked in a task on each node that has some.

    A node whose GPUs are all taken just now is not waited for longer than a minute, and says nothing.

    Raises:
        DeviceError: naming the nodes, what torch says there, and what to do.
    """
    if not use_gpu:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    look = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(_cuda_here)
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU"):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=here).remote()] = node["NodeManagerAddress"]
    if not asked:
        return
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)
    for task in late:
        ray.cancel(task, force=True)
    bad = {asked[task]: why for task in ready if (why := ray.get(task))}
    if bad:
        said = "; ".join(f"{address}: {why}" for address, why in sorted(bad.items()))
        raise DeviceError(
            f"Ray offers GPUs that torch cannot use ({said}); type vidssl doctor there to see what is missing, or "
            "trainer.device=cpu"
        )


def _cuda_here() -> str:
    """Why torch cannot use the GPU that Ray gave to this task; empty where it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    return "its torch is a build for CPUs" if built is None else f"torch, built for CUDA {built}, finds no GPU"
