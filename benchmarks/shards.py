"""What does a bank in shards cost beside one bank? Milliseconds of a batch, and of a push where training waits for it.

    python -m benchmarks.shards

The same rows in one process and in P Ray actors (`mining.shards`), of this machine and with one thread each; batches in
turns, medians. `push` is what the bank's process does for one: for shards it looks at the rows and sends them; `cpu` its
processor time, Ray's threads included. Ids are compared: how many batches are the same to the last id.
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

from cluster.bank.rows import BankRows, OwnProcess
from cluster.bank.shard_actor import start_actors
from cluster.bank.shard_place import ShardPlace
from cluster.bank.spec import BankSpec
from cluster.launch import ray_session
from vidssl.batch import Embeddings
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.recipe import Mining

RESULTS = Path(__file__).parent / "results"
DIM, MAIN, AUX, CLASSES, BATCH, PUSHED = 128, "residual", "rgb", 101, 64, 32


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=200_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batches", type=int, default=15)
    given = parser.parse_args(words)
    plans = {
        "S=3 p=32": plan_from(Mining(stages=3, pool=32), given.slots),
        "S=7 r=.5": plan_from(Mining(stages=7, ratio=0.5), given.slots),
    }
    with ray_session(max(os.cpu_count() or 1, 1)):
        banks = {"one bank": _one(given.slots)} | {f"{p} shards": _shards(given.slots, p) for p in given.shards}
        rows = [row for name, plan in plans.items() for row in _mined(name, plan, banks, given.slots, given.batches)]
        pushes = {name: _pushed(bank, given.slots) for name, bank in banks.items()}
    print(f"{given.slots} slots of 2 x {DIM}, batches of {BATCH}, load {os.getloadavg()[0]:.1f}")
    for row in rows:
        print(f"{row['plan']:10} {row['bank']:10} {row['ms']:8.1f} ms   same ids in {row['same']:.0%} of the batches")
    for name, push in pushes.items():
        print(f"push of {PUSHED} {name:10} {push['ms']:6.2f} ms   cpu {push['cpu_ms']:6.2f} ms")
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "slots": given.slots, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shards.json").write_text(json.dumps(facts | {"pushes": pushes}, indent=1) + "\n")
    return 0


def _spec(slots: int, shards: int) -> BankSpec:
    plan = plan_from(Mining(stages=3, pool=32), slots)
    return BankSpec(slots, DIM, MAIN, AUX, plan, shards=shards, cpus_per_shard=0)


def _one(slots: int) -> BankRows:
    return _filled(OwnProcess(_spec(slots, 1), None).empty(), slots)


def _shards(slots: int, shards: int) -> BankRows:
    spec = _spec(slots, shards)
    actors, cuts = start_actors(spec)
    return _filled(ShardPlace(actors, cuts, spec, None, print).empty(), slots)


def _filled(bank: BankRows, slots: int) -> BankRows:
    for step, ids in enumerate(np.array_split(np.arange(slots), 40)):
        bank.push(_rows(ids, step))
    bank.rewind(40)  # waits for the shards
    return bank


def _rows(ids: np.ndarray, step: int) -> Embeddings:
    """A class of each video, a nuisance of each view, noise."""
    rng, views = np.random.default_rng((step, 1)), {}
    for number, view in enumerate((MAIN, AUX)):
        world = np.random.default_rng(number)
        classes, nuisances = (world.standard_normal((CLASSES, DIM)) / DIM**0.5 for _ in range(2))
        noise = 0.5 * rng.standard_normal((len(ids), DIM)) / DIM**0.5
        values = 0.6 * classes[ids % CLASSES] + 0.9 * nuisances[rng.integers(0, CLASSES, len(ids))] + noise
        views[view] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(views, ids, step, 0)


def _mined(name: str, plan: CascadePlan, banks: dict[str, BankRows], slots: int, batches: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {bank: [] for bank in banks}
    same: dict[str, list[bool]] = {bank: [] for bank in banks}
    for batch in range(batches + 2):  # two to warm up
        ids, right = np.random.default_rng(batch).integers(0, slots, BATCH), None
        for bank, held in banks.items():
            began = time.perf_counter()
            found = held.mine(ids, plan, MAIN, AUX).ids
            if batch >= 2:
                times[bank].append(1e3 * (time.perf_counter() - began))
                right = found if right is None else right
                same[bank].append(bool((found == right).all()))
    return [
        {"plan": name, "bank": bank, "ms": statistics.median(times[bank]), "same": statistics.mean(same[bank])}
        for bank in banks
    ]


def _pushed(bank: BankRows, slots: int, pushes: int = 200) -> dict[str, float]:
    times, began = [], time.process_time()
    for push in range(pushes):
        rows = _rows(np.random.default_rng(push).integers(0, slots, PUSHED), 100 + push)
        before = time.perf_counter()
        bank.push(rows)
        times.append(1e3 * (time.perf_counter() - before))
        time.sleep(0.005)
    made = time.process_time()
    for push in range(pushes):  # what it costs to make them is no push's
        _rows(np.random.default_rng(push).integers(0, slots, PUSHED), 100 + push)
    spent = (made - began) - (time.process_time() - made)
    return {"ms": statistics.median(times), "cpu_ms": 1e3 * max(spent, 0.0) / pushes}


if __name__ == "__main__":
    sys.exit(main())
