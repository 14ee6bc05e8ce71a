"""A real Ray cluster of several nodes on this machine, one process tree each, whose nodes can be killed as a machine dies.

Every node is a `ray start --block` of its own on a loopback address of its own (127.0.0.2 is the head). A trace in the workers
(see `benchmarks.hooked`) writes which videos each step really trained on.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hooked import hooked

__all__ = ["Left", "LocalCluster", "free_port", "kill_tree", "traced"]

_RAY = str(Path(sys.executable).with_name("ray"))
_TRACE = """
def change(module):
    import json, os, time
    inner = module.Worker._positives
    def traced(self, step, batch):
        told = {"t": time.time(), "step": step, "rank": self.rank, "world": self.world, "epoch": int(batch.epoch),
                "videos": batch.on_host("instance").tolist()}
        with open(os.path.join(os.environ["FAULTS_TRACE"], self.folder.path.name + f"-{os.getpid()}.jsonl"), "a") as file:
            file.write(json.dumps(told) + "\\n")
        return inner(self, step, batch)
    module.Worker._positives = traced
"""
_LEFT = """
import json, logging, ray
ray.init(log_to_driver=False, logging_level=logging.ERROR)
from ray._private.state import actors
from ray.util import placement_group_table
alive = [one["ActorClassName"] for one in actors().values() if one["State"] not in ("DEAD",)]
groups = [one["placement_group_id"] for one in placement_group_table().values() if one["state"] not in ("REMOVED",)]
print("LEFT", json.dumps([alive, groups, {node["NodeID"]: node["Alive"] for node in ray.nodes()}]))
"""


@dataclass(frozen=True)
class Left:
    """What is on a cluster when a run has ended.

    Attributes:
        actors: Class names of those that live.
        groups: Placement groups that are held.
    """

    actors: tuple[str, ...]
    groups: tuple[str, ...]


class LocalCluster:
    """A head without cores, and nodes with one each.

    Args:
        home: Folder for the trace.
    """

    def __init__(self, home: Path) -> None:
        self.trace = home / "trace"
        self.trace.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.2:{free_port()}"
        told = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "FAULTS_TRACE": str(self.trace),
            "OMP_NUM_THREADS": "1",
        }
        self.env = hooked(home / "site", _TRACE, told)
        self.head: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers = 2

    def begin(self, nodes: int, resources: Mapping[int, Mapping[str, float]] | None = None) -> None:
        """Start the head and some nodes; `resources` of single ones, by their place."""
        port = self.address.rpartition(":")[2]
        # With a dashboard, as clusters have it: without, Ray Train's own clearing up waits for ever for its answers.
        dashboard = ("--dashboard-host=127.0.0.2", f"--dashboard-port={free_port()}")
        self.head = self._ray("--head", f"--port={port}", "--num-cpus=0", *dashboard, at="127.0.0.2")
        self._wait_for(1)
        for place in range(nodes):
            self.add((resources or {}).get(place))

    def add(self, resources: Mapping[str, float] | None = None, without: Path | None = None, cores: int = 1) -> str:
        """Start one node more, and wait until the cluster has it; returns its address.

        Args:
            resources: Ray resources of its own.
            without: A folder that is empty on that node (in a mount namespace of its own, which takes root).
            cores: That Ray believes it to have.
        """
        self._numbers += 1
        at, before = f"127.0.0.{self._numbers}", self.living()
        more = [f"--resources={json.dumps(resources)}"] if resources else []
        self.nodes[at] = self._ray(f"--address={self.address}", f"--num-cpus={cores}", *more, at=at, without=without)
        self._wait_for(before + 1)
        return at

    def kill(self, address: str) -> None:
        """As a machine dies: every process of that node at once."""
        kill_tree(self.nodes.pop(address))

    def kill_head(self) -> None:
        """The head's machine dies; nodes that lose it end by themselves after a while, so they are ended here."""
        assert self.head is not None
        kill_tree(self.head)
        self.head = None

    def actor(self, title: str) -> int:
        """Process of the actor that Ray names so, on this cluster and no other of this machine.

        Raises:
            LookupError: there is none.
        """
        for process in (self.head, *self.nodes.values()):
            for pid in [] if process is None else _below(process.pid):
                with suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"ray::{title}".encode()):
                        return pid
        raise LookupError(f"no process ray::{title}")

    def close(self) -> None:
        """End every node."""
        for process in [*self.nodes.values(), *([self.head] if self.head else [])]:
            kill_tree(process)
        self.nodes, self.head = {}, None

    def living(self) -> int:
        """How many nodes the head knows to live, itself included."""
        said = self._ask()
        return 0 if said is None else sum(said[2].values())

    def left(self) -> Left:
        """Actors and placement groups there are now, but for those of the asking itself."""
        said = self._ask()
        assert said is not None
        return Left(tuple(said[0]), tuple(said[1]))

    def _ask(self) -> Any:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _LEFT],
            env=self.env | {"RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        told = [line for line in done.stdout.splitlines() if line.startswith("LEFT ")]  # Ray says things of its own
        return json.loads(told[-1].removeprefix("LEFT ")) if done.returncode == 0 and told else None

    def _wait_for(self, count: int) -> None:
        until = time.monotonic() + 90
        while self.living() < count:
            if time.monotonic() > until:
                raise TimeoutError(f"the cluster did not get its node number {count}")

    def _ray(self, *words: str, at: str, without: Path | None = None) -> subprocess.Popen[bytes]:
        hide = ["unshare", "-m", "bash", "-c", f'mount -t tmpfs none {without}; exec "$@"', "-"] if without else []
        return subprocess.Popen(
            [*hide, _RAY, "start", "--block", f"--node-ip-address={at}", "--object-store-memory=100000000", *words],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL for a process and all that it started, whatever sessions they made for themselves."""
    for one in (*_below(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


def _below(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        inner = parents.get(left.pop(), [])
        found += inner
        left += inner
    return found


def traced(trace: Path, run: str) -> list[dict[str, Any]]:
    """What every rank of every attempt of a run was given, in the order of time."""
    rows = [
        json.loads(line)
        for path in trace.glob(f"{run}-*.jsonl")
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]
    return sorted(rows, key=lambda row: row["t"])


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])
