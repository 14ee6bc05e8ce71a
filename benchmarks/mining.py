"""How fast is mining, against what, and how far from what the machine can do?

    python -m benchmarks.mining                            every way, N = 2,048 16,384 131,072, one thread
    python -m benchmarks.mining --sizes 1000000 --threads 2 --dtypes float32 float16 bfloat16
    python -m benchmarks.mining --scaling 1000000          two threads against one, two processes in turns
    python -m benchmarks.mining --memory 4000000 --dtypes float16       what a batch takes beside the bank

All ways of a row run in turns in one process, so that they meet one load: read the ratios (medians of the rounds' own).
With one thread times are CPU time, otherwise wall time. "gather": the fastest of the implementations that gather features
(`benchmarks/mining_ways.py`), "published": one query at a time as released, "gemm": the matrix products alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.hardware import RESULTS, result_path, write_result
from benchmarks.mining_ways import GATHERING, bare_faiss, gemm_alone, published, torch_topk
from vidssl.mining.cascade import Array, Backend, mine
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan

DIM, K = 128, 5
PLANS = ((7, 0.5), (3, 0.1), (3, None), (1, 0.5))  # None: last pool 32
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
GATHER_UP_TO = 150_000
"""Slots above which ways that gather half a bank take minutes."""
FAISS_SHARE = 0.05
"""FAISS sorts what it returns: a larger first stage takes seconds."""


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 16_384, 131_072], help="bank slots")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="queries at once")
    parser.add_argument("--plans", nargs="+", default=[], metavar="S,r", help="e.g. 7,.5 3,p32 (default: four plans)")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scaling", type=int, metavar="N", help="two threads against one at N slots")
    parser.add_argument("--memory", type=int, metavar="N", help="memory of a batch at N slots")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    plans = [_plan_words(word) for word in given.plans] or list(PLANS)
    if given.scaling:
        result = {"scaling": scaling(given.scaling, given.batch[0], plans[0], given.rounds)}
    elif given.memory:
        result = {"memory": [_memory(given.memory, given.batch[0], plans[0], dtype) for dtype in given.dtypes]}
    else:
        _need_threads(given.threads)
        result = {"limits": limits(), "rows": []}
        for n_slots in given.sizes:
            for dtype in given.dtypes:
                for batch in given.batch:
                    result["rows"] += table(n_slots, batch, plans, dtype, given.threads, given.rounds)
    write_result(result_path("mining", given.out), {"threads": given.threads, "dim": DIM, **result})
    return 0


def table(
    n_slots: int,
    batch: int,
    plans: Sequence[tuple[int, float | None]],
    dtype: str,
    threads: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Every way at one size, row by row: milliseconds per batch, and ratios to ours."""
    wide, queries = _two_views(n_slots, 0), _two_views(batch, 1)
    bank = [_kept(view, dtype) for view in wide]
    rows = []
    for stages, share in plans:
        plan = _plan(n_slots, stages, share)
        ways = _ways(queries, wide, bank, plan, dtype)
        times = _in_turns(ways, threads, rounds if n_slots >= 100_000 else max(rounds, 200_000 // n_slots))
        row = _row(n_slots, batch, plan, dtype, times)
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def limits() -> dict[str, float]:
    """What this machine does at best here: GF/s of a product that stays in the cache, GB/s of a copy that does not."""
    rng = np.random.default_rng(0)
    a, b, big = (rng.random(shape, dtype=np.float32) for shape in ((64, DIM), (4096, DIM), (1 << 26,)))
    out, other = np.empty((64, 4096), np.float32), np.empty_like(big)
    product = min(_seconds(lambda: np.matmul(a, b.T, out=out)) for _ in range(200))
    copy = min(_seconds(lambda: np.copyto(other, big)) for _ in range(5))
    found = {"gemm_gflops": 2e-9 * 64 * 4096 * DIM / product, "copy_gbytes": 2e-9 * big.nbytes / copy}
    print(f"limits: {found['gemm_gflops']:.0f} GF/s in the cache, {found['copy_gbytes']:.1f} GB/s copied")
    return found


def scaling(n_slots: int, batch: int, plan: tuple[int, float | None], rounds: int) -> dict[str, float]:
    """Wall time of one batch with one thread and with two, each in a process of its own, in turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    pools = {threads: _pool(threads) for threads in seconds}
    try:
        for threads, pool in pools.items():
            pool.submit(_prepare, n_slots, batch, plan, "float32", threads).result()
        for _ in range(rounds):
            for threads, pool in pools.items():
                seconds[threads].append(pool.submit(_once).result())
    finally:
        for pool in pools.values():
            pool.shutdown()
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    found = {
        "one_ms": 1e3 * statistics.median(seconds[1]),
        "two_ms": 1e3 * statistics.median(seconds[2]),
        "ratio": statistics.median(ratios),
    }
    print(f"N={n_slots}: one thread {found['one_ms']:.0f} ms, two {found['two_ms']:.0f} ms, {found['ratio']:.2f} times")
    return found


def _ways(
    queries: list[np.ndarray], wide: list[np.ndarray], bank: list[Array], plan: CascadePlan, dtype: str
) -> dict[str, Callable[[], object]]:
    rows, n_slots = len(queries[0]), len(wide[0])
    exclude = Exclusions.from_lists([[row] for row in range(rows)])
    out = [np.empty((rows, n_slots), np.float32) for _ in bank]
    first = plan.sizes(n_slots)[0]
    backends = ("auto", "numpy", *(("faiss",) if first <= FAISS_SHARE * n_slots else ()))
    ways: dict[str, Callable[[], object]] = {
        name: lambda name=name: mine(queries, bank, plan, exclude=exclude, backend=cast(Backend, name))
        for name in backends
    }
    ways["gemm"] = lambda: gemm_alone(queries, wide, plan, out)
    if dtype == "float32":
        if n_slots <= GATHER_UP_TO:
            ways |= {name: lambda way=way: way(queries, wide, plan) for name, way in GATHERING.items()}
            ways["published"] = lambda: published(queries, wide, plan)
            ways["torch_topk"] = lambda: torch_topk(queries, wide, plan)
        if first <= FAISS_SHARE * n_slots:
            ways["bare_faiss"] = lambda: bare_faiss(queries, wide, plan)
    return ways


def _in_turns(ways: dict[str, Callable[[], object]], threads: int, rounds: int) -> dict[str, list[float]]:
    clock = time.process_time if threads == 1 else time.perf_counter
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way()
            times[name].append(clock() - began)
            if name == "published" and times[name][-1] > 1 and len(times[name]) >= 3:
                ways = {other: one for other, one in ways.items() if other != name}  # it takes minutes otherwise
    return times


def _row(n_slots: int, batch: int, plan: CascadePlan, dtype: str, times: dict[str, list[float]]) -> dict[str, Any]:
    gathering = [name for name in GATHERING if name in times]
    fastest = min(gathering, key=lambda name: statistics.median(times[name]), default="")
    ratios = {
        name: statistics.median(other / ours for other, ours in zip(values, times["auto"], strict=False))
        for name, values in times.items()
        if name != "auto"
    }
    return {
        "n_slots": n_slots,
        "batch": batch,
        "dtype": dtype,
        "stages": plan.stages,
        "ratio": plan.ratio,
        "last_pool": plan.last_pool,
        "fastest_gather": fastest,
        "ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "best_ms": {name: 1e3 * min(values) for name, values in times.items()},
        "times_ours": ratios,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _line(row: dict[str, Any]) -> str:
    head = f"N={row['n_slots']:<8d} B={row['batch']:<4d} {row['dtype']:8} S={row['stages']} r={row['ratio']:<7.4g}"
    said = f"{head} ours {row['ms']['auto']:9.2f} ms"
    gather = row["fastest_gather"]
    names = {name: name for name in row["times_ours"] if not name.startswith("gather")} | (
        {gather: f"gather ({gather})"} if gather else {}
    )
    return said + "".join(f" | {names[name]} x{row['times_ours'][name]:.2f}" for name in names)


_BENCH: dict[str, Any] = {}


def _prepare(n_slots: int, batch: int, plan: tuple[int, float | None], dtype: str, threads: int) -> int:
    """In a process of its own: a bank, and one batch to warm up; returns the process's most memory so far, in bytes."""
    wide, queries = _two_views(n_slots, 0), _two_views(batch, 1)
    bank = [_kept(view, dtype) for view in wide]
    exclude = Exclusions.from_lists([[row] for row in range(batch)])
    _BENCH["run"] = lambda: mine(queries, bank, _plan(n_slots, *plan), exclude=exclude, threads=threads)
    del wide
    before = _most_bytes()
    _once()
    return before


def _once() -> float:
    return _seconds(_BENCH["run"])


def _memory(n_slots: int, batch: int, plan: tuple[int, float | None], dtype: str) -> dict[str, Any]:
    with _pool(len(os.sched_getaffinity(0))) as pool:
        bank_bytes = pool.submit(_fill_low, n_slots, dtype).result()
        extra, seconds = pool.submit(_mine_low, batch, plan).result()
    found = {
        "n_slots": n_slots,
        "batch": batch,
        "dtype": dtype,
        "bank_mb": bank_bytes / 1e6,
        "extra_mb": extra / 1e6,
        "s": seconds,
    }
    print(
        f"N={n_slots} {dtype}: bank {bank_bytes / 1e6:.0f} MB, a batch {extra / 1e6:.0f} MB beside it, {seconds:.2f} s"
    )
    return found


def _fill_low(n_slots: int, dtype: str) -> int:
    """A bank made by parts, so that its making takes no more memory than itself."""
    import torch

    kind = getattr(torch, dtype)
    bank = [torch.empty((n_slots, DIM), dtype=kind) for _ in range(2)]
    for seed, view in enumerate(bank):
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, n_slots, 65536):
            rows = torch.randn((min(65536, n_slots - start), DIM), generator=generator)
            view[start : start + 65536] = rows / rows.norm(dim=1, keepdim=True)
    _BENCH["bank"] = bank if dtype == "bfloat16" else [view.numpy() for view in bank]
    return sum(view.numel() * view.element_size() for view in bank)


def _mine_low(batch: int, plan: tuple[int, float | None]) -> tuple[int, float]:
    queries, exclude = _two_views(batch, 1), Exclusions.from_lists([[row] for row in range(batch)])
    before = _most_bytes()
    took = _seconds(lambda: mine(queries, _BENCH["bank"], _plan(len(_BENCH["bank"][0]), *plan), exclude=exclude))
    return _most_bytes() - before, took


def _pool(threads: int) -> ProcessPoolExecutor:
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))  # read by the libraries when the child loads them
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(_most_bytes).result()  # the child is there, with these variables
    return pool


def _need_threads(threads: int) -> None:
    """Begin again where the libraries were loaded with another number of threads."""
    if any(os.environ.get(name) != str(threads) for name in VARIABLES):
        env = os.environ | dict.fromkeys(VARIABLES, str(threads))
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.mining", *sys.argv[1:]], env)


def _kept(view: np.ndarray, dtype: str) -> Array:
    if dtype == "bfloat16":
        import torch

        return torch.from_numpy(view).to(torch.bfloat16)
    return view.astype(dtype)


def _plan(n_slots: int, stages: int, share: float | None) -> CascadePlan:
    return CascadePlan(n_slots, stages, share or (32 / n_slots) ** (1 / (stages - 1)), K)


def _plan_words(word: str) -> tuple[int, float | None]:
    stages, _, share = word.partition(",")
    return int(stages), None if share == "p32" else float(share or 0.5)


def _two_views(rows: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    views = [rng.standard_normal((rows, DIM), dtype=np.float32) for _ in range(2)]
    return [view / np.linalg.norm(view, axis=1, keepdims=True) for view in views]


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _most_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
