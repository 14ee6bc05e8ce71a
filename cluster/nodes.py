"""Does every node see what this one sees? Asked by a small task on each before a run is made: the data, and one shared storage.

A worker that lands on a node without the folder would fail after minutes, and one whose storage is a folder of its own would
write checkpoints that nobody finds. A node that does not answer in time is left out, and that is said. One that joins while a
run goes on is asked when it is wanted; where it does not see what the others do, it gets no workers before it does.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vidssl.errors import DataError, StorageError, VidsslError

if TYPE_CHECKING:
    from pipelines.dataset.place import Address

__all__ = ["Newcomers", "refuse_blind_nodes"]

LOOK_S = 30.0
AGAIN_S = 120.0

Say = Callable[[str], None]


def refuse_blind_nodes(storage: Path | None, data: Path | Address, say: Say = lambda line: None) -> None:
    """Refuse a cluster of which a node sees other data, or another storage, than the driver.

    Only nodes with cores are asked, all at once, and never longer than half a minute; a single node that is the driver's own is
    not asked at all.

    Args:
        storage: The folder that the run is to lie in, of which what is there by now counts; None: nothing is written.
        data: The packed data.
        say: Told of nodes that did not answer in time.

    Raises:
        DataError: naming the nodes that do not see the data, or see other data.
        StorageError: naming those that do not see the storage, or cannot write to it.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if _works(node)}
    if not set(nodes) - {here}:
        return
    with _token(storage) as token:
        found = _asked(nodes, token, data, say)
    blind = {nodes[node]: told[1] for node, told in found.items() if told[1]}
    if blind:
        raise DataError(
            f"the data {data} is not the same on every node ({_listed(blind)}); pack into a folder that all nodes share, or "
            "into a store (s3://, gs://)"
        )
    apart = {nodes[node]: told[0] for node, told in found.items() if told[0]}
    if apart:
        raise StorageError(
            f"{storage} is not one storage for all nodes ({_listed(apart)}); type trainer.storage=FOLDER, one that all nodes "
            "share and can write"
        )


class Newcomers:
    """Nodes that join while a run goes on.

    Args:
        storage: The run's folder.
        data: The packed data.
        again_s: How long after a node was left out it is asked anew: somebody may have mounted what it lacked.
    """

    def __init__(self, storage: Path, data: Path | Address, again_s: float = AGAIN_S) -> None:
        import ray

        self._storage, self._data, self._again_s = storage, data, again_s
        self._whole = {node["NodeID"] for node in ray.nodes() if _works(node)}
        self._due: dict[str, float] = {}
        self.blind: dict[str, str] = {}
        """Node → why no worker may go there."""

    def look(self, nodes: Iterable[str], say: Say) -> None:
        """Ask those of `nodes` that were never asked, or were left out a while ago; `say` is told of what changes."""
        now = time.monotonic()
        wanted = {node for node in nodes if node not in self._whole and now >= self._due.get(node, 0.0)}
        if not wanted:
            return
        import ray

        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if _works(node)}
        here = {node: addresses[node] for node in wanted & addresses.keys()}
        with _token(self._storage) as token:
            found = _asked(here, token, self._data, lambda line: None)
        for node, address in here.items():
            why = self._why(found.get(node))
            if why and why != self.blind.get(node):
                say(f"node {address}, which joined, does not see what the others see ({why}): no worker begins there")
            if why:
                self.blind[node], self._due[node] = why, time.monotonic() + self._again_s
                continue
            self._whole.add(node)
            if self.blind.pop(node, None):
                say(f"node {address} sees what the others see now: workers may begin there")

    def _why(self, told: tuple[str, str] | None) -> str:
        if told is None:
            return f"no answer in {LOOK_S:.0f} s"
        storage, data = told
        return f"{self._data}: {data}" if data else f"{self._storage}: {storage}" if storage else ""

    @property
    def selector(self) -> dict[str, str] | None:
        """For Ray Train: every node but those."""
        return {"ray.io/node-id": f"!in({','.join(sorted(self.blind))})"} if self.blind else None


def _works(node: Mapping[str, object]) -> bool:
    resources = node["Resources"]
    return bool(node["Alive"]) and isinstance(resources, Mapping) and resources.get("CPU", 0) > 0


@contextmanager
def _token(storage: Path | None) -> Iterator[Path | None]:
    """A file that only this driver wrote, where the storage is, or will be; None where it cannot write, which `enter` says."""
    if storage is None:
        yield None
        return
    place = next(path for path in (storage, *storage.parents) if path.is_dir())
    token = place / f".vidssl-{uuid.uuid4().hex}.part"
    try:
        token.write_text(token.name)
    except OSError:
        yield None
        return
    try:
        yield token
    finally:
        for left in place.glob(f"{token.name}*"):
            with suppress(OSError):
                left.unlink()


def _asked(nodes: Mapping[str, str], token: Path | None, data: Path | Address, say: Say) -> dict[str, tuple[str, str]]:
    """Node → what is wrong with the storage, and with the data; empty where nothing is."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look, known = ray.remote(num_cpus=0, max_retries=0)(_look), _hash(data)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[look.options(scheduling_strategy=there).remote(token, data, known, node)] = node
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)
    for one in late:
        ray.cancel(one, force=True)
    if late:
        silent = ", ".join(sorted(nodes[asked[one]] for one in late))
        say(f"not every node was asked whether it sees data and storage: no answer in {LOOK_S:.0f} s from {silent}")
    found = {}
    for one in ready:
        with suppress(RayError):  # it left the cluster just now
            storage, wrong = ray.get(one)
            if token is not None and not storage and not _of_node(token, asked[one]).is_file():
                storage = "what it writes is not seen here"
            found[asked[one]] = (storage, wrong)
    return found


def _look(token: Path | None, data: Path | Address, known: str, node: str) -> tuple[str, str]:
    """On a node: what is wrong with the storage and with the data there."""
    storage = wrong = ""
    if token is not None:
        try:
            token.read_text()
            _of_node(token, node).touch()
        except OSError as error:
            storage = error.strerror or type(error).__name__
    try:
        there = _hash(data)
        wrong = "" if there == known else f"other data, hash {there}"
    except (OSError, VidsslError) as error:
        wrong = str(error)
    return storage, wrong


def _of_node(token: Path, node: str) -> Path:
    return token.with_name(f"{token.name}-{node}")


def _hash(data: Path | Address) -> str:
    from pipelines.dataset.manifest import load_manifest

    return load_manifest(data, "nothing").hash


def _listed(told: Mapping[str, str]) -> str:
    return "; ".join(f"{address}: {why}" for address, why in sorted(told.items()))
