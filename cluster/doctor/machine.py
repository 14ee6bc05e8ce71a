"""What is here: Python, cores, memory, disks, packages, codecs, the GPU and what each of them allows.

Every look is taken by itself, and what fails is told with what mends it; nothing is started and nothing is written.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

__all__ = ["Finding", "findings"]

State = Literal["ok", "note", "fault"]
_SHM_BYTES = 200 * 2**20
_ROOM_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        words: What was found, and what it means.
        state: ok; note: works, with less than there could be; fault: something a user asks for will fail.
        mend: What to type or do; empty where nothing has to be done.
    """

    name: str
    words: str
    state: State = "ok"
    mend: str = ""


def findings() -> list[Finding]:
    """Everything, in the order of the page; a look that raises is a fault of its own."""
    return [finding for look in _LOOKS for finding in _taken(look)]


def _taken(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except Exception as error:  # a half-installed package may raise anything
        name = look.__name__.strip("_")
        return [Finding(name, f"cannot be looked at ({type(error).__name__}: {str(error)[:120]})", "fault")]


def _python() -> Iterator[Finding]:
    inside = (3, 11) <= sys.version_info[:2] <= (3, 13)
    words = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", words, "ok" if inside else "fault", "" if inside else "use Python 3.11, 3.12 or 3.13")


def _cores() -> Iterator[Finding]:
    here, quota = len(os.sched_getaffinity(0)), _quota()
    if quota is not None and quota < here:
        yield Finding(
            "cores",
            f"{here}, of which this container may use {quota:g}",
            "note",
            f"give Ray and the loader {max(1, int(quota))}: trainer.cpus_per_worker and loader.threads count them",
        )
        return
    yield Finding("cores", str(here))


def _quota() -> float | None:
    """Cores that the control group allows."""
    try:
        allowed, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else int(allowed) / int(period)


def _memory() -> Iterator[Finding]:
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(facts[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = _limit()
    words = f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it available"
    if limit is not None and limit < total:
        words += f"; this container may use {limit / 1e9:.1f} GB"
    yield Finding("memory", words, "note" if min(free, limit or free) < 4e9 else "ok")
    shared = shutil.disk_usage("/dev/shm").total
    if shared < _SHM_BYTES:
        yield Finding(
            "shared memory",
            f"/dev/shm has {shared / 1e6:.0f} MB, Ray keeps its objects on the disk instead and is slower",
            "note",
            "start the container with --shm-size=1g",
        )


def _limit() -> int | None:
    try:
        word = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return None if word == "max" else int(word)


def _disks() -> Iterator[Finding]:
    for name, place in (("disk here", Path.cwd()), ("disk of temporary files", Path("/tmp"))):
        free = shutil.disk_usage(place).free
        short = free < _ROOM_BYTES
        mend = "checkpoints and Ray's logs need room; type trainer.storage=FOLDER on another disk" if short else ""
        yield Finding(name, f"{free / 1e9:.1f} GB free in {place}", "note" if short else "ok", mend)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wrong, known, extras = [], [], {}
    for line in metadata.requires("vidssl") or ():
        wanted = Requirement(line)
        extra = str(wanted.marker).partition("extra == ")[2].strip("\"'") if wanted.marker else ""
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = ""
        if extra in ("flow", "stores"):
            extras[extra] = bool(found)
        elif not extra:
            known.append(f"{wanted.name} {found or 'missing'}")
            if not found or not wanted.specifier.contains(found.partition("+")[0], prereleases=True):
                wrong.append(f"{wanted.name} {found or 'is missing'} (tested: {wanted.specifier})")
    if wrong:
        yield Finding("packages", "; ".join(wrong), "fault", "install it again, in a new environment")
    else:
        yield Finding("packages", ", ".join(known))
    for extra, here in extras.items():
        if not here:
            what = "flow= of vidssl pack" if extra == "flow" else "s3:// and gs://"
            yield Finding(
                f"extra '{extra}'", f"not installed: without it no {what}", "note", f"pip install 'vidssl[{extra}]'"
            )


def _codecs() -> Iterator[Finding]:
    import av

    wanted = {"decode": ("h264", "hevc", "vp9", "av1", "mpeg4"), "encode": ("libx264", "libvpx-vp9")}
    missing = [f"{name} ({kind})" for kind, names in wanted.items() for name in names if not _has(name, kind)]
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    if missing:
        fault = "fault" if any("encode" in word or "h264" in word for word in missing) else "note"
        yield Finding(
            "codecs",
            f"FFmpeg in PyAV {av.__version__} lacks {', '.join(missing)}",
            fault,
            "pip install --force-reinstall av",
        )
    else:
        yield Finding("codecs", f"{', '.join(wanted['decode'])}; writes H.264 and VP9 (libavcodec {version})")


def _has(name: str, kind: str) -> bool:
    from av.codec import Codec

    try:
        Codec(name, "r" if kind == "decode" else "w")
    except Exception:  # PyAV has its own kinds for this in each version
        return False
    return True


def _gpu() -> Iterator[Finding]:
    import torch

    driver, built = _driver(), torch.version.cuda
    if driver is None:
        yield Finding("GPU", "none: no CUDA driver on this machine; everything runs on the CPU", "note")
        return
    known = f"the driver knows CUDA {driver[0]}.{driver[1]}"
    if built is None:
        yield Finding(
            "GPU", f"{known}, but this torch is a build for CPUs", "fault", "pip install torch from its CUDA index"
        )
    elif tuple(map(int, built.split("."))) > driver and int(built.split(".")[0]) > driver[0]:
        yield Finding(
            "GPU",
            f"{known} and this torch was built for {built}",
            "fault",
            "update the driver (CUDA 13 needs 580 or newer, CUDA 12 needs 525), or take builds for CUDA 12 (docs/cluster.md, Drivers)",
        )
    elif not torch.cuda.is_available():
        yield Finding(
            "GPU",
            f"{known}, and torch finds no GPU",
            "fault",
            "is CUDA_VISIBLE_DEVICES empty? is the container started with --gpus all?",
        )
    else:
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            free, _ = torch.cuda.mem_get_info(number)
            halves = "bf16" if facts.major >= 8 else "no bf16"
            yield Finding(
                f"GPU {number}",
                f"{facts.name}, {facts.total_memory / 1e9:.0f} GB ({free / 1e9:.0f} free), {halves}; {known}",
            )
    yield from _decoding()


def _driver() -> tuple[int, int] | None:
    """CUDA version that the driver knows."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _decoding() -> Iterator[Finding]:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        yield Finding(
            "NVDEC",
            "libnvcuvid is not here: videos are decoded by CPU threads (loader.decode=py)",
            "note",
            "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        )
    else:
        yield Finding("NVDEC", "libnvcuvid is here: loader.decode=nvdec")


def _dali() -> Iterator[Finding]:
    import nvidia.dali

    yield Finding("DALI", str(nvidia.dali.__version__))


def _faiss() -> Iterator[Finding]:
    import faiss
    import torch  # noqa: F401  before faiss: both bring CUDA libraries, and torch's are the ones that must be found first

    if _driver() is None:
        yield Finding("FAISS", f"{faiss.__version__}, on the CPU")
    else:
        gpus = faiss.get_num_gpus()
        yield Finding("FAISS", f"{faiss.__version__}, sees {gpus} GPU(s)", "ok" if gpus else "note")


def _ray() -> Iterator[Finding]:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    where = (
        f"RAY_ADDRESS={address} will be joined"
        if address
        else "no RAY_ADDRESS: a small one is started here for each command"
    )
    yield Finding("Ray", f"{ray.__version__}; {where}")


_LOOKS = (_python, _cores, _memory, _disks, _packages, _codecs, _gpu, _dali, _faiss, _ray)
