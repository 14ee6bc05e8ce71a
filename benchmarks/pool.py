"""What is lost by mining among some of the slots (`mining.pool_slots`), and what is won?

    python -m benchmarks.pool

A made world: a row is a class, a nuisance of its own view (a scene, a motion) and noise; the nuisances of the two views
are independent. Precision at k of mined positives (share of the same class), mean over seeds, of the cascade in the whole
bank and in pools, for several last pools p: what a smaller pool loses is read at each one's best p. CPU milliseconds of a
query, the drawing included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.pool import PoolKind, SlotPool
from vidssl.recipe import Mining

RESULTS = Path(__file__).parent / "results"
DIM, VIEWS, CLASSES, K, BATCH = 128, ("residual", "rgb"), 101, 5, 64
SHARES = (1, 4, 16, 64)
LAST_POOLS = (5, 8, 16, 32, 64, 128)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(words)
    rows = [
        measure(given.slots, share, kind, last, given.queries, given.seeds)
        for share in SHARES
        for kind in _kinds(share)
        for last in LAST_POOLS
    ]
    print(f"{given.slots} slots, {CLASSES} classes, k={K}, {given.seeds} seeds, load {os.getloadavg()[0]:.1f}")
    print(f"{'pool_slots':>10} {'of':8}" + "".join(f"{f'p={last}':>8}" for last in LAST_POOLS) + f"{'ms/query':>10}")
    for start in range(0, len(rows), len(LAST_POOLS)):
        line = rows[start : start + len(LAST_POOLS)]
        cells = "".join(f"{row['precision']:8.3f}" for row in line)
        print(
            f"{line[0]['pool_slots']:>10} {line[0]['of']:8}{cells}{statistics.median(row['ms'] for row in line):10.3f}"
        )
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "slots": given.slots, "seeds": given.seeds}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pool.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    return 0


def measure(n_slots: int, share: int, kind: PoolKind, last: int, queries: int, seeds: int) -> dict[str, Any]:
    """One line of the table."""
    size = n_slots // share
    found = [_one(n_slots, size, kind, last, queries, seed) for seed in range(seeds)]
    by_seed = [precision for precision, _ in found]
    return {
        "pool_slots": size,
        "of": kind if share > 1 else "all",
        "p": last,
        "precision": statistics.mean(by_seed),
        "by_seed": by_seed,
        "ms": statistics.median(ms for _, ms in found),
    }


def _kinds(share: int) -> tuple[PoolKind, ...]:
    return ("random", "recent") if share > 1 else ("random",)


def _one(n_slots: int, size: int, kind: PoolKind, last: int, queries: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    pool = SlotPool(size, kind, seed) if size < n_slots else None
    bank, label = EmbeddingBank(n_slots, DIM, VIEWS, pool=pool), rng.integers(0, CLASSES, n_slots)
    views = {view: _rows(rng, label) for view in VIEWS}
    order = rng.permutation(n_slots)
    for step, slots in enumerate(np.array_split(order, 50)):
        bank.push(Embeddings({view: rows[slots] for view, rows in views.items()}, slots, step, 0))
    asked = Mining(stages=3, pool=last, topk=K, pool_slots=None if pool is None else size)
    plan: CascadePlan = plan_from(asked, n_slots)
    right, spent = [], 0.0
    for ids in np.array_split(rng.permutation(n_slots)[:queries], queries // BATCH):
        began = time.thread_time()
        mined = bank.mine(ids, plan, *VIEWS).ids
        spent += time.thread_time() - began
        right.append((label[mined] == label[ids][:, None]).mean())
    return float(np.mean(right)), 1e3 * spent / queries


def _rows(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """float32 unit rows: .6 of the class's direction, .9 of a nuisance's, the rest noise."""
    classes, nuisances = (rng.standard_normal((CLASSES, DIM)) / DIM**0.5 for _ in range(2))
    noise = rng.standard_normal((len(label), DIM)) / DIM**0.5
    rows = 0.6 * classes[label] + 0.9 * nuisances[rng.integers(0, CLASSES, len(label))] + 0.5 * noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
