"""What was this measured on? Machine, driver and package versions, the same for every benchmark; and where results go.

Nothing here imports what it asks about: versions come from package metadata, the GPU from `nvidia-smi` or the driver
library, so that a half-installed machine can still say what it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vidssl.files import write_json

__all__ = ["RESULTS", "gpus", "hardware", "result_path", "short_name", "versions", "write_result"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "nvidia-dali-cuda130",
    "faiss-gpu",
    "ray",
    "webdataset",
    "zarr",
    "numpy",
    "av",
    "pydantic",
    "omegaconf",
    "vidssl",
)


def gpus() -> list[dict[str, str]]:
    """CUDA devices of this machine: name, memory, driver; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [{"name": "CUDA device", "memory": "", "driver": ""}] * _devices_of_the_driver()
    rows = (re.split(r",\s*", line) for line in said.splitlines() if line.count(",") == 2)
    return [{"name": name, "memory": memory, "driver": driver} for name, memory, driver in rows]


def hardware() -> dict[str, Any]:
    """This machine, as JSON can hold it."""
    return {
        "gpus": gpus(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else [],
    }


def versions() -> dict[str, str]:
    """Installed versions; "not installed" where a package is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def short_name() -> str:
    """This machine in a file name: its GPU, else its number of cores (`h200`, `cpu2`)."""
    devices = gpus()
    if not devices:
        return f"cpu{hardware()['cores']}"
    words = re.sub(r"(?i)nvidia|geforce|tesla|[^A-Za-z0-9 -]", " ", devices[0]["name"]).lower().split()
    name = "-".join(words) or "gpu"
    return name if len(devices) == 1 else f"{len(devices)}x{name}"


def result_path(what: str, folder: Path = RESULTS) -> Path:
    """`folder/what_hardware_date.json`."""
    return folder / f"{what}_{short_name()}_{datetime.date.today().isoformat()}.json"


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with machine, versions and time; the file is whole or as it was before."""
    facts = {"written": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    tree = {**facts, "hardware": hardware(), "versions": versions(), **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, tree)


def _devices_of_the_driver() -> int:
    """Devices that the driver library counts, where `nvidia-smi` is not on the path."""
    count = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
