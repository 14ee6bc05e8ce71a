"""What did commands leave whose process was killed hard? Found and removed: on the cluster, and in the folders of runs.

A Ray cluster ends what a dead driver started, mostly: a placement group that an actor of it asked for in its last moment can
stay, and holds cores that nobody uses. In a run's folder a lock, a flag and files aside stay; the next command removes them too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vidssl.errors import BusyError, DeviceError
from vidssl.files import remove_parts
from vidssl.lock import held, owner_of
from vidssl.marks import LOCK, mark_of
from vidssl.saved.run_folder import KIND, RunFolder

__all__ = ["clean"]

_OURS = re.compile(r"(^|[/\s])vidssl(\s|$)|-m cluster\b|cluster/__main__\.py")

Say = Callable[[str], None]


def clean(folders: Iterable[Path], say: Say) -> int:
    """Remove it, with a line for each thing.

    Args:
        folders: Of runs.
        say: Prints a line.

    Returns:
        0.

    Raises:
        DeviceError: the cluster of RAY_ADDRESS does not answer.
    """
    found = 0
    for folder in folders:
        for name in _of_folder(folder):
            say(f"{folder}: removed {name}, of a process that is gone")
            found += 1
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        say("RAY_ADDRESS is not set: on a machine by itself, Ray ends with the command that started it")
    else:
        for what in _of_cluster(address):
            say(f"{address}: removed {what}")
            found += 1
    say(f"{found} thing(s) removed" if found else "nothing was left")
    return 0


def _of_folder(path: Path) -> list[str]:
    """Of a run that nobody works in; the lock of an owner that is gone is taken over, and given back."""
    mark = mark_of(path)
    if mark is None or mark.kind != KIND or owner_of(path) is not None:
        return []
    gone = [LOCK] if (path / LOCK).is_file() else []
    with suppress(BusyError), held(path, "status --clean"):
        before = _inside(path)
        remove_parts(path)
        for flag in (RunFolder(path).stop_flag, RunFolder(path).resize_flag):
            flag.unlink(missing_ok=True)
        shutil.rmtree(path / ".ray", ignore_errors=True)
        gone += sorted(before - _inside(path))
    return gone


def _inside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _of_cluster(address: str) -> Iterator[str]:
    """Placement groups and actors of our commands whose driver is dead."""
    from cluster.launch import ray_session

    try:
        with ray_session(1):
            yield from _removed()
    except ConnectionError as error:
        raise DeviceError(
            f"the cluster of RAY_ADDRESS={address} does not answer; set RAY_ADDRESS to one that does"
        ) from error


def _removed() -> Iterator[str]:
    from ray import PlacementGroupID
    from ray._private.state import state
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    jobs: list[dict[str, Any]] = state.job_table()
    dead = {one["JobID"]: one for one in jobs if one["IsDead"] and _OURS.search(one["Entrypoint"] or "")}
    for group in placement_group_table().values():
        name = str(group["placement_group_id"])
        job = dead.get(name[-8:])  # a group's id ends with that of the job that asked for it
        if job is not None and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
            yield f"a placement group ({_size(group['bundles'])}) of `{job['Entrypoint']}`, process {job['DriverPid']} on {job['DriverIPAddress']}"
    for actor in state.actor_table(None).values():
        job = dead.get(actor["JobID"])
        if job is not None and actor["State"] == "ALIVE" and _ended(actor):
            yield f"an actor {actor['ActorClassName']} of `{job['Entrypoint']}`, process {actor['Pid']} on {actor['Address']['IPAddress']}"


def _ended(actor: dict[str, Any]) -> bool:
    """One that outlives its driver has no name to ask Ray for: a task on its node ends its process."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(actor["Address"]["NodeID"], soft=False)
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill_actor_process).options(scheduling_strategy=there)
    with suppress(RayError):  # its node left just now
        return bool(ray.get(kill.remote(int(actor["Pid"])), timeout=30))
    return False


def _kill_actor_process(pid: int) -> bool:
    try:
        if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            return False  # a number that was used again
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def _size(bundles: Any) -> str:
    total: dict[str, float] = {}
    for bundle in bundles.values():
        for name, much in bundle.items():
            total[name] = total.get(name, 0.0) + much
    return ", ".join(f"{much:g} {name}" for name, much in sorted(total.items()))
