"""How much memory may the scores of a batch take? A quarter of what is free, here or on the device."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["device_budget", "host_budget"]

LEAST, UNKNOWN = 256 << 20, 1 << 30
SHARE = 4
_CGROUP = Path("/sys/fs/cgroup")


def host_budget(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Bytes; at least 256 MB, and 1 GB where the system does not say what is free."""
    free = [found for found in (_available(meminfo), _left_in_group(cgroup)) if found is not None]
    return max(LEAST, min(free) // SHARE) if free else UNKNOWN


def device_budget(device: torch.device) -> int:
    """Bytes; 1 GB where there is no CUDA to ask."""
    if not torch.cuda.is_available():
        return UNKNOWN
    free, _ = torch.cuda.mem_get_info(device)
    ours = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what it freed
    return max(LEAST, (free + ours) // SHARE)


def _available(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _left_in_group(cgroup: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max": no limit
        limit = int((cgroup / "memory.max").read_text())
        return max(0, limit - int((cgroup / "memory.current").read_text()))
    return None
