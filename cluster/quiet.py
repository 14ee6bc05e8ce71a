"""What Ray does beside the point: messages to a driver become one short line each, and a local Ray Train ends at once.

Ray prints what happens to nodes and memory as it comes, with dozens of lines of a dying node's state; what that means for a run, its
own sentences say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["end_at_once", "quiet_ray"]

_WIDTH = 160
_CLEANER = "PlacementGroupCleanerCallback"
_HEADS = ("Raylet is terminated", "The node with node id", "A worker died or was killed")
"""Messages about processes and nodes that were lost: the run says itself which, and what is done."""


def quiet_ray() -> None:
    """From now on, in this process."""
    import ray._private.worker as worker

    said: set[str] = set()

    def shown(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        first = next((line.strip() for text in data["lines"] for line in str(text).splitlines() if line.strip()), "")
        if first and not first.startswith(_HEADS) and first not in said:
            said.add(first)
            sys.stderr.write(f"ray: {first[:_WIDTH]}{'…' if len(first) > _WIDTH else ''}\n")

    worker.print_to_stdstream = shown


def end_at_once() -> None:
    """Trainings of a Ray that is this command's own do without Ray Train's cleaner, an actor that removes what a killed one leaves.

    A Ray of one command ends with it, placement groups and all. The cleaner asks the dashboard whether the training lives, which
    such a Ray has not, and every training waited a dozen seconds at its end for an answer.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2.api import data_parallel_trainer

    if hasattr(data_parallel_trainer, _CLEANER):
        setattr(data_parallel_trainer, _CLEANER, ControllerCallback)
