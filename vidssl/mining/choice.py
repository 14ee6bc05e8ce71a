"""Which engine is the faster one here? Measured once per machine, kept, and then the same for every run.

numpy and FAISS mine the same; only who is faster differs from machine to machine. The measurement takes about a second,
begins with the first bank that is large enough for the question, and is kept under the user's cache folder by the name
of the processor. Where nothing can be kept nothing is measured and numpy is taken: products differ in their last bit
between libraries, and a run that is repeated must not meet another choice.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from vidssl.files import write_json
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.select_faiss import mine_by_faiss
from vidssl.mining.stream import mine_streaming
from vidssl.mining.task import Task

__all__ = ["ASK_FROM", "Backend", "Table", "cache_file", "choose_backend", "measured", "table"]

Backend = Literal["auto", "numpy", "torch", "faiss", "oracle"]

ASK_FROM = 262_144
"""N from which on the table is asked for: below, numpy is at most a fraction of a millisecond per query behind."""
SHARES = (0.0005, 0.005, 0.02)
"""Shares of the bank that a first stage may keep, for each of which both are measured."""
PROBE = (131_072, 32)
"""Slots and queries of the measurement."""
CLEARLY = 1.1
"""How much faster FAISS must be to be taken: it must not depend on the noise of one measurement."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Who is faster, on one machine.

    Attributes:
        hardware: Processor, threads and versions that were measured.
        faiss_up_to: Largest share of N that a first stage may keep for FAISS to be faster; 0: never.
        numpy_ms: Of each share of `SHARES`, for the queries and slots of `PROBE`.
        faiss_ms: Likewise.
    """

    hardware: str
    faiss_up_to: float
    numpy_ms: tuple[float, ...] = ()
    faiss_ms: tuple[float, ...] = ()


def choose_backend(n_slots: int, first_stage: int, on_gpu: bool, half: bool = False, threads: int = 1) -> Backend:
    """The backend that `auto` takes; each choice is logged once.

    Args:
        n_slots: N.
        first_stage: Candidates the first stage keeps, with the widest exclusion on top.
        on_gpu: Whether the bank lies on a CUDA device.
        half: Whether its rows are in half precision (FAISS would copy the whole bank to float32).
        threads: Of mining.
    """
    backend: Backend = "torch" if on_gpu else "numpy"
    if not on_gpu and not half and n_slots >= ASK_FROM and first_stage <= SHARES[-1] * n_slots and find_spec("faiss"):
        backend = "faiss" if first_stage <= table(threads).faiss_up_to * n_slots else "numpy"
    _log_choice(backend, n_slots.bit_length(), on_gpu)
    return backend


@lru_cache
def table(threads: int) -> Table:
    """What was measured on this machine: kept from before, or measured now and kept."""
    hardware = _hardware(threads)
    path = cache_file(hardware)
    if kept := _read(path, hardware):
        return kept
    began = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "not writable")
        found = measured(hardware, threads)
        if not _read(path, hardware):  # another process may have been faster: then its answer is everyone's
            write_json(path, asdict(found))
    except OSError as error:
        _log.warning("mining: %s cannot be kept (%s), so FAISS is not measured and numpy mines", path, error.strerror)
        return Table(hardware, 0.0)
    _log.info("mining: measured %s in %.1f s, kept in %s", _said(found), time.perf_counter() - began, path)
    return _read(path, hardware) or found


def measured(hardware: str, threads: int) -> Table:
    """Both engines on a first stage of each share, in turns."""
    rows = np.random.default_rng(0).standard_normal((PROBE[0], 128), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    best: dict[str, list[float]] = {"numpy": [], "faiss": []}
    for share in SHARES:
        plan = CascadePlan(len(rows), 1, k=max(1, int(share * len(rows))))
        sizes, none = plan.sizes(len(rows)), Exclusions.none(PROBE[1])
        task = Task([rows[: PROBE[1]]], [rows], plan, sizes, none, None, len(rows), threads, 1 << 30)
        times: dict[str, list[float]] = {"numpy": [], "faiss": []}
        for _ in range(3):  # the first one warms up
            for name in times:
                began = time.perf_counter()
                (mine_by_faiss if name == "faiss" else mine_streaming)(task)
                times[name].append(1e3 * (time.perf_counter() - began))
        for name, taken in times.items():
            best[name].append(round(min(taken[1:]), 3))
    wins = [numpy >= CLEARLY * faiss for numpy, faiss in zip(best["numpy"], best["faiss"], strict=True)]
    first_loss = wins.index(False) if False in wins else len(wins)
    up_to = SHARES[first_loss - 1] if first_loss else 0.0
    return Table(hardware, up_to, tuple(best["numpy"]), tuple(best["faiss"]))


def cache_file(hardware: str) -> Path:
    """Where the answer of a machine is kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    return Path(folder).expanduser() / "vidssl" / f"mining-{name}.json"


def _read(path: Path, hardware: str) -> Table | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        tree = json.loads(path.read_text())
        times = (tuple(float(ms) for ms in tree[name]) for name in ("numpy_ms", "faiss_ms"))
        found = Table(str(tree["hardware"]), float(tree["faiss_up_to"]), *times)
        return found if found.hardware == hardware else None
    return None


def _hardware(threads: int) -> str:
    versions = [f"{name} {metadata.version(name)}" for name in ("numpy",)]
    return ", ".join([_processor(), f"{threads} threads", *versions])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _said(found: Table) -> str:
    if not found.faiss_up_to:
        return f"numpy is the faster one on this machine ({found.hardware})"
    return f"FAISS is faster for first stages up to {found.faiss_up_to:.2%} of the bank ({found.hardware})"


@lru_cache
def _log_choice(backend: str, bits: int, on_gpu: bool) -> None:
    device = "gpu" if on_gpu else "cpu"
    _log.info("mining backend: %s (bank of up to %d slots, %s)", backend, 1 << bits, device)
