"""What does the bank's actor cost, and does training wait for it? Its engines by themselves: `benchmarks.mining`.

python -m benchmarks.bank --train PACKED       median step with the bank's actor against mining.where=off
python -m benchmarks.bank --load               the bank's actor under simulated workers: fallback, age, CPU, memory
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidssl.files import write_json

RESULTS = Path(__file__).parent / "results"
ALLOWED = 1.03
"""Largest ratio of median steps, with and without the bank's actor, that counts as "nothing waits for mining"."""


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for, print a table, write JSON; 1 where training waits for mining."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="rows of a simulated worker's step")
    parser.add_argument("--train", metavar="PACKED", help="packed data to train on")
    parser.add_argument("--load", action="store_true", help="simulated workers")
    parser.add_argument("--workers", type=int, default=8, help="simulated ranks")
    parser.add_argument("--slots", type=int, default=16384, help="videos of the simulated data")
    parser.add_argument("--seconds", type=float, default=20, help="of each phase of the load")
    parser.add_argument("--pushes", type=int, default=50_000, help="over which memory is watched")
    parser.add_argument("--rounds", type=int, default=4, help="pairs of training runs, an even number")
    parser.add_argument("--steps", type=int, default=80, help="steps of each training run")
    parser.add_argument("--words", nargs="*", default=[], help="further key=value words for both runs")
    given = parser.parse_args(words)
    if given.rounds % 2:
        parser.error(
            f"--rounds {given.rounds}: the run that comes first is slower, so both orders must be as frequent; type {given.rounds + 1}"
        )
    if given.train:
        result = training_beside_mining(Path(given.train), given.rounds, given.steps, given.words)
        _write("bank-train", result)
        return 0 if result["ratio"] <= ALLOWED else 1
    if not given.load:
        parser.error(
            "say what is measured: --train PACKED or --load; engines by themselves: python -m benchmarks.mining"
        )
    _write("bank-load", load_table(given.workers, given.batch, given.slots, given.seconds, given.pushes))
    return 0


def load_table(workers: int, batch: int, slots: int, seconds: float, pushes: int) -> dict[str, Any]:
    """Half and four times of what the bank can mine; CPU of a push by the number of clients; memory over many pushes."""
    from benchmarks.bank_load import Load, capacity, loaded_bank, memory_of_pushes, phase
    from cluster.launch import ray_session

    load, found = Load(workers, batch, slots), dict[str, Any]()
    with ray_session(os.cpu_count() or 1):
        with loaded_bank(load) as (ranks, pid):
            mined = found["can_mine_per_s"] = capacity(ranks, seconds / 2)
            print(f"{workers} workers of {batch} rows, N={slots}: the bank can mine {mined:,.0f} rows/s", flush=True)
            for name, share, times in (("half", 0.5, None), ("four_times", 4, 4.0)):
                found[name] = phase(ranks, pid, seconds, workers * batch / (share * mined), 1.25, times)
                print(f"{name:11}", json.dumps(found[name]), flush=True)
        pooled = Load(
            workers, batch, slots, options={"pool_slots": slots // 4}
        )  # what the run's alarm says to type then
        with loaded_bank(pooled) as (ranks, pid):
            found["four_times_in_a_pool"] = phase(ranks, pid, seconds, found["four_times"]["step_s"], 1.25)
            print("in a pool  ", json.dumps(found["four_times_in_a_pool"]), flush=True)
        for clients in (1, 8, 64, 256):
            with loaded_bank(Load(clients, 8, 16384)) as (ranks, pid):
                took = phase(ranks, pid, seconds / 2, clients / 100)
                found[f"clients_{clients}"] = {
                    name: took[name] for name in ("cpu_ms_per_push", "steps_per_s", "bank_mb")
                }
                print(f"{clients:4} clients", json.dumps(found[f"clients_{clients}"]), flush=True)
        with loaded_bank(Load(8, 32, 4096)) as (ranks, pid):
            found["memory"] = memory_of_pushes(ranks, pid, pushes)
            print("memory", json.dumps(found["memory"]), flush=True)
    return {"workers": workers, "batch": batch, "slots": slots, "load_average": os.getloadavg()} | found


def training_beside_mining(data: Path, rounds: int, steps: int, words: Sequence[str]) -> dict[str, Any]:
    """Median step of real training runs with `mining.where=actor` and `off`, taken in turns so that both meet one load.

    Raises:
        RuntimeError: a run failed; its last lines are in the message.
    """
    step_ms: dict[str, list[float]] = {"actor": [], "off": []}
    rounds_ms: list[dict[str, float]] = []
    bank: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            rounds_ms.append({})
            for where in ("actor", "off") if number % 2 == 0 else ("off", "actor"):
                log = _train(data, Path(folder), f"{where}-{number}", where, steps, words)
                late = [row for row in log if row["step"] >= steps // 2]  # the warm-up and the first steps are over
                step_ms[where] += [row["step_ms"] for row in late]
                rounds_ms[-1][where] = statistics.median(row["step_ms"] for row in late)
                bank += late if where == "actor" else []
                print(
                    f"round {number + 1} {where:6} {statistics.median(row['step_ms'] for row in late):8.1f} ms",
                    flush=True,
                )
    medians = {where: statistics.median(values) for where, values in step_ms.items()}
    # A shared machine drifts from minute to minute: the two runs of a round are compared with each other only. And the
    # first of them is slower by some per cent, whichever it is: with both orders as frequent that cancels in the mean.
    ratios = [pair["actor"] / pair["off"] for pair in rounds_ms]
    ratio = statistics.geometric_mean(ratios)
    # a row lacks what was not measured yet
    said = {name: statistics.mean(row[name] for row in bank if name in row) for name in _bank_columns(bank)}
    print(f"actor {medians['actor']:.1f} ms, off {medians['off']:.1f} ms, ratio {ratio:.3f} (allowed {ALLOWED}) {said}")
    return {
        "rounds": rounds,
        "steps": steps,
        "words": list(words),
        "median_step_ms": medians,
        "ratio": ratio,
        "ratio_of_each_round": ratios,
        "allowed": ALLOWED,
        "bank": said,
    }


def _train(data: Path, folder: Path, name: str, where: str, steps: int, words: Sequence[str]) -> list[dict[str, float]]:
    settings = [
        f"data={data}",
        f"name={name}",
        f"trainer.storage={folder}",
        f"mining.where={where}",
        f"trainer.steps={steps}",
        f"method.warmup_steps={steps // 4}",
        "trainer.log_every_steps=4",
        f"trainer.checkpoint_every_steps={steps}",
        *words,
    ]
    run = subprocess.run(
        [sys.executable, "-m", "cluster", "train", "cpr-tiny", *settings], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"training with mining.where={where} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def _bank_columns(rows: Sequence[dict[str, float]]) -> list[str]:
    return sorted({name for row in rows for name in row if name.startswith(("bank", "mining/"))})


def _write(name: str, result: dict[str, Any]) -> None:
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", facts | result)


if __name__ == "__main__":
    sys.exit(main())
