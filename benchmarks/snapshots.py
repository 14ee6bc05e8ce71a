"""What does a push wait for while the bank is saved, and what does saving cost?

    python -m benchmarks.snapshots                     1 M x 2 x 128 in float32
    python -m benchmarks.snapshots --slots 240000 --dtype bfloat16

One thread pushes 64 rows every few milliseconds, as the bank's process is pushed to; in turns nothing is saved, a snapshot
is written, and (as it was before) a twin is copied under the bank's lock and then written. Wall milliseconds of a push.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import save_snapshot

RESULTS = Path(__file__).parent / "results"
DIM, VIEWS, ROWS = 128, ("residual", "rgb"), 64
ALLOWED_MS = 50.0
"""Longest wait of a push at p99 while a snapshot is written."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 where a push waits too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1_000_000)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between two pushes")
    parser.add_argument("--folder", type=Path, help="where to write; none: a temporary folder")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = measure(given.slots, given.dtype, given.rounds, given.pause_ms / 1e3, Path(folder))
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "snapshots.json").write_text(json.dumps(facts | result, indent=1) + "\n")
    return 0 if result["push_ms"]["snapshot"]["p99"] <= ALLOWED_MS else 1


def measure(n_slots: int, dtype: str, rounds: int, pause_s: float, folder: Path) -> dict[str, Any]:
    """Waits of pushes, by what goes on beside them, and what the snapshots took."""
    bank = _filled(n_slots, dtype)
    waits: dict[str, list[float]] = {"nothing": [], "snapshot": [], "twin": []}
    seconds: dict[str, list[float]] = {"snapshot": [], "twin": []}
    costs: list[dict[str, float]] = []
    for number in range(rounds):
        with _Pusher(bank, pause_s) as pusher:
            time.sleep(3.0)
        waits["nothing"] += pusher.waits
        for name, save in (("snapshot", _snapshot), ("twin", _twin)):
            with _Pusher(bank, pause_s) as pusher:
                began = time.perf_counter()
                told = save(bank, folder, number)
                seconds[name].append(time.perf_counter() - began)
            waits[name] += pusher.waits
            costs += [told] if told else []
    push_ms = {name: _quantiles(values) for name, values in waits.items()}
    print(f"{n_slots} slots x {len(VIEWS)} x {DIM} {dtype}, load {os.getloadavg()[0]:.1f}")
    print(f"{'beside':10}{'p50':>9}{'p99':>9}{'longest':>9}   ms of a push; seconds to save")
    for name, quantiles in push_ms.items():
        took = " ".join(f"{one:.1f}" for one in seconds.get(name, []))
        print(f"{name:10}{quantiles['p50']:9.2f}{quantiles['p99']:9.2f}{quantiles['longest']:9.2f}   {took}")
    print(f"snapshots: {costs}")
    return {
        "slots": n_slots,
        "dtype": dtype,
        "push_ms": push_ms,
        "seconds": seconds,
        "costs": costs,
        "allowed_ms": ALLOWED_MS,
    }


class _Pusher:
    """Pushes random rows on a thread until the block ends."""

    def __init__(self, bank: EmbeddingBank, pause_s: float) -> None:
        self.waits: list[float] = []
        self._bank, self._pause_s, self._stop = bank, pause_s, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Pusher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        rows = _unit(rng, ROWS)
        while not self._stop.is_set():
            slots = rng.integers(0, self._bank.n_slots, ROWS)
            began = time.perf_counter()
            self._bank.push(Embeddings(dict.fromkeys(VIEWS, rows), slots, self._bank.step + 1, 0))
            self.waits.append(1e3 * (time.perf_counter() - began))
            time.sleep(self._pause_s)


def _snapshot(bank: EmbeddingBank, folder: Path, step: int) -> dict[str, float]:
    with bank.moment() as moment:
        save_snapshot(moment, folder, step, 1)
    return {"rows_set_aside": moment.kept_rows, "most_mb": moment.most_bytes / 1e6}


def _twin(bank: EmbeddingBank, folder: Path, step: int) -> None:
    other = EmbeddingBank(bank.n_slots, DIM, VIEWS, bank.group, bank.dtype)
    with bank._lock:
        for view, rows in bank.views.items():
            other.views[view][:] = rows
        other.version[:] = bank.version
        other.step = bank.step
    save_snapshot(other, folder, step, 1)


def _filled(n_slots: int, dtype: str) -> EmbeddingBank:
    rng, bank = np.random.default_rng(0), EmbeddingBank(n_slots, DIM, VIEWS, dtype=dtype)
    for start in range(0, n_slots, 65_536):
        slots = np.arange(start, min(start + 65_536, n_slots))
        bank.push(Embeddings({view: _unit(rng, len(slots)) for view in VIEWS}, slots, 0, 0))
    return bank


def _unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.standard_normal((rows, DIM), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99, "longest": max(values), "pushes": len(values)}


if __name__ == "__main__":
    sys.exit(main())
