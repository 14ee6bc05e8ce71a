"""On which node does the bank's process live? The driver's, which a run cannot outlive anyhow, or one of those that were named.

Large banks book their memory, so that Ray puts them where there is enough.
"""

from __future__ import annotations

from typing import Any

from cluster.bank.spec import BankSpec
from vidssl.errors import DeviceError
from vidssl.recipe import Trainer

__all__ = ["beside_words", "placed", "refuse_without_memory"]

_BOOKED = 2**30
"""Bytes of a bank from which on they are booked: small ones fit anywhere."""


def placed(spec: BankSpec) -> dict[str, Any]:
    """Options of the bank's actor."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    booked = {"memory": spec.memory} if spec.memory >= _BOOKED else {}
    if spec.node:
        return booked | {"resources": {spec.node: 0.001}}
    here = ray.get_runtime_context().get_node_id()
    return booked | {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


def beside_words(spec: BankSpec) -> str:
    """What a run has beside its workers, what each takes, and where."""
    where = f"a node with {spec.node}" if spec.node else "the driver's node"
    booked = " (booked)" if spec.memory >= _BOOKED else ""
    said = [f"the bank with {spec.memory / 2**20:.0f} MiB{booked} on {where}"]
    for number, name, cores, gpus, node in (
        (spec.miners, "miner", spec.cpus_per_miner, spec.gpus_per_miner, spec.miner_node),
        (spec.shards if spec.shards > 1 else 0, "shard", spec.cpus_per_shard, 0.0, spec.shard_node),
    ):
        if number:
            share = f" and {gpus:g} GPU" if gpus else ""
            on = f" on nodes with {node}" if node else ""
            said.append(f"{number} {name}(s) with {cores} core(s){share} each{on}")
    return f"beside the workers: {', '.join(said)}"


def refuse_without_memory(spec: BankSpec, trainer: Trainer) -> None:
    """Refuse a bank for which no node has the memory: Ray would look for one for ever.

    Args:
        spec: The run's bank.
        trainer: Of its recipe: nodes that are still to come are not known, and a process by itself books nothing.

    Raises:
        DeviceError: naming what it needs and what there is.
    """
    if spec.memory < _BOOKED or trainer.in_process or trainer.wait_for_nodes is not None:
        return
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("memory", 0.0) for node in nodes if not spec.node or spec.node in node), default=0.0)
    if most < spec.memory:
        where = f"nodes with the resource {spec.node}" if spec.node else "any node"
        raise DeviceError(
            f"the bank of {spec.n_slots} videos needs {spec.memory / 2**30:.1f} GiB in one process and {where} has at most "
            f"{most / 2**30:.1f}; type mining.shards=2 or more, mining.bank_dtype=float16, or mining.bank_node=RESOURCE"
        )
