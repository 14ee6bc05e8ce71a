"""How many workers could begin now? What each takes is held against every node, for its cores and its GPU must be of one.

Asked of Ray's books: what is free now, or what the nodes have in all. Processes beside the workers (miners, shards of the
bank) are placed first, each on the node where most is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vidssl.recipe import Mining, Trainer

__all__ = [
    "Demand",
    "Resources",
    "demand_of",
    "free_by_node",
    "missing_words",
    "most_workers",
    "sizes_of",
    "whole_by_node",
]

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """What a training takes.

    Attributes:
        worker: Of one worker.
        beside: Of each process beside them.
    """

    worker: Resources
    beside: tuple[Resources, ...] = ()


def sizes_of(trainer: Trainer) -> tuple[int, ...]:
    """How many workers may train, most first: those that can share the videos of a step."""
    together, least = trainer.batch * trainer.workers, trainer.min_workers or trainer.workers
    return tuple(number for number in range(trainer.workers, least - 1, -1) if together % number == 0)


def demand_of(trainer: Trainer, use_gpu: bool, mining: Mining | None = None) -> Demand:
    """Of a recipe's sections; the bank's own process holds no core.

    Args:
        trainer: Of the recipe.
        use_gpu: Whether each worker takes one.
        mining: Of the recipe, where it mines in a bank.
    """
    worker = {"CPU": float(trainer.cpus_per_worker), **({"GPU": 1.0} if use_gpu else {})}
    if mining is None or mining.where != "actor":
        return Demand(worker)
    miner = {"CPU": float(mining.cpus_per_miner), "GPU": mining.gpus_per_miner, mining.miner_node or "": 1e-3}
    shard = {"CPU": float(mining.cpus_per_shard), mining.shard_node or "": 1e-3}
    beside = [miner] * mining.miners + [shard] * (mining.shards if mining.shards > 1 else 0)
    return Demand(worker, tuple({name: much for name, much in one.items() if name and much} for one in beside))


def free_by_node() -> dict[str, Resources]:
    """What is free now on each node that lives."""
    import ray
    from ray._private.state import available_resources_per_node

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return {node: free for node, free in available_resources_per_node().items() if node in alive}


def whole_by_node() -> dict[str, Resources]:
    """What each node that lives has in all."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def most_workers(demand: Demand, nodes: Mapping[str, Resources]) -> int:
    """How many workers fit on some nodes, beside what goes with them; 0 where that alone does not fit."""
    left = [dict(node) for node in nodes.values()]
    for bundle in demand.beside:
        fitting = [node for node in left if _holds(node, bundle)]
        if not fitting:
            return 0
        chosen = max(fitting, key=lambda node: node.get("CPU", 0.0))
        for name, much in bundle.items():
            chosen[name] -= much
    return sum(min(int(node.get(name, 0.0) / much + 1e-9) for name, much in demand.worker.items()) for node in left)


def missing_words(demand: Demand, wanted: int, nodes: Mapping[str, Resources]) -> str:
    """What there is on some nodes, and what is wanted: "2 workers of 1 core(s) and 1 GPU(s) fit of the 4 …"."""
    fit, beside = (
        most_workers(demand, nodes),
        f" beside {len(demand.beside)} process(es) that mine" if demand.beside else "",
    )
    have = f"{_sum(nodes.values(), 'CPU'):g} core(s)"
    have += f" and {_sum(nodes.values(), 'GPU'):g} GPU(s)" if "GPU" in demand.worker else ""
    each = f"{demand.worker['CPU']:g} core(s)" + (" and a GPU" if "GPU" in demand.worker else "")
    return f"{fit} of {wanted} worker(s) with {each} fit{beside}, {have} are free on {len(nodes)} node(s)"


def _holds(node: Resources, bundle: Resources) -> bool:
    return all(node.get(name, 0.0) + 1e-9 >= much for name, much in bundle.items())


def _sum(nodes: Iterable[Resources], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)
