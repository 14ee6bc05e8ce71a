"""On which node does the bank's process live? The driver's, which a run cannot outlive anyhow, or one of those that were named.

Large banks book their memory, so that Ray puts them where there is enough.
"""

from __future__ import annotations

from typing import Any

from cluster.bank.spec import BankSpec
from vidssl.errors import DeviceError
from vidssl.recipe import Trainer

__all__ = ["placed", "refuse_without_memory"]

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
