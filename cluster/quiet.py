"""Ray's own messages to a driver (a node that died, memory that ran out), each in one short line and once.

Ray prints them as they come, with dozens of lines of a dying node's state; what they mean for a run, its own sentences say.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["quiet_ray"]

_WIDTH = 160
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
