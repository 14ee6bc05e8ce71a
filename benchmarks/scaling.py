"""What does training with more workers cost? Measured with 1, 2 and 4 on this machine, modelled and simulated to 256.

    python -m benchmarks.scaling [--workers 1 2 4] [--steps 150] [--model-only]

A step is a fixed load: a small forward and backward pass with its real sum of gradients, then sleep up to .2 s. What a step
takes beyond that is ours: order, bank, log, checkpoints. Everything else is real: Ray Train, the bank's actor, zarr, files.
The model's constants come from these runs; where a number is not measured here it is named an assumption. docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import RESULTS, result_path, write_result
from benchmarks.hooked import hooked
from pipelines.loading.order import Cursor, Order
from pipelines.pack import PackOptions, pack
from pipelines.synthetic import make_motion_set

STEP_S, BATCH, EVERY, PUBLISHED_EVERY = 0.2, 8, 50, 1000
VIDEOS = 96
RECIPE = f"""\
name: scaling
clips: {{frames: 4, stride: 2, size: 32}}
augment: {{flip: false}}
model: {{backbone: tiny, dim: 128, width: 4}}
method: {{name: cpr, view: residual, second_view: rgb, warmup_steps: 5, queue: 256, momentum: 0.9}}
mining: {{where: actor, stages: 3, pool: 8, topk: 2}}
trainer: {{batch: {BATCH}, checkpoint_every_steps: {EVERY}, log_every_steps: 10, device: cpu}}
"""
CHANGE = f"""
def change(module):
    import json, os, time
    inner = module.passes
    def slept(model, batch, positives, parts, autocast):
        began = time.perf_counter()
        out = inner(model, batch, positives, parts, autocast)
        worked = time.perf_counter() - began
        with open(os.path.join(os.environ["SCALING_TRACE"], f"{{os.getpid()}}.jsonl"), "a") as file:
            file.write(json.dumps([time.time(), worked]) + "\\n")
        time.sleep(max({STEP_S} - worked, 0.0))
        return out
    module.passes = slept
"""
SCRIPT = """
import sys
from dataclasses import replace
from cluster.launch import ray_session
from cluster.training.driver import train
from cluster.training.plan import plan_run
from vidssl.recipe import load_recipe
recipe = load_recipe(sys.argv[1], sys.argv[2:])
def run():
    train(replace(plan_run(recipe), kept=4), lambda line: print(line, flush=True))
if recipe.trainer.in_process:
    run()
else:
    with ray_session(recipe.trainer.workers + 1):  # as many as are asked for, whatever this machine has
        run()
"""

HEADROOM = 1.2


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        workers: W; 0: in the driver's process.
        bank: Whether it mined and wrote checkpoints.
        step_s: Mean time of a step, log rows included, checkpoints not.
        checkpoint_s: What a step takes longer with a checkpoint in it.
        worked_s: Median time of the passes in it, less than `STEP_S` where the load held.
        start_s: From the command to the first step.
    """

    workers: int
    bank: bool
    step_s: float
    checkpoint_s: float
    worked_s: float
    start_s: float

    @property
    def overhead(self) -> float:
        """Share of a step of `STEP_S` that is ours, with a checkpoint in so many steps as the published recipes have it."""
        return (self.step_s + self.checkpoint_s / PUBLISHED_EVERY) / STEP_S - 1


@dataclass(frozen=True)
class Rates:
    """What the model is made of; seconds and bytes.

    Attributes:
        push_s: Processor time of the bank's actor per push of B rows, Ray's share and the answer included.
        push_bytes: To the bank, per rank and step.
        answer_bytes: Back.
        order_s: Of a rank to know a step of an order of 10 million.
    """

    push_s: float
    push_bytes: int
    answer_bytes: int
    order_s: float


def main(words: Sequence[str] | None = None) -> int:
    """Measure, model, simulate; tables and JSON. 1 where the overhead with most workers is over 5 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    measured: list[Measured] = []
    if not given.model_only:
        with tempfile.TemporaryDirectory() as place:
            measured = _all_measured(Path(place), given.workers, given.steps)
    rates = measured_rates()
    rows = [simulated(world, rates) for world in (1, 4, 16, 64, 256)]
    print("\n".join([*_measured_table(measured), "", *_model_table(rows)]))
    facts = {"measured": [asdict(one) for one in measured], "rates": asdict(rates), "simulated": rows}
    write_result(result_path("scaling", given.out), facts)
    most = max((one.overhead for one in measured if one.workers == max(given.workers) and one.bank), default=0.0)
    return int(most > 0.05)


def _all_measured(home: Path, workers: Sequence[int], steps: int) -> list[Measured]:
    table = make_motion_set(home / "videos", videos=VIDEOS, frames=24, size=128, seed=0)
    pack("csv", table, home / "packed", PackOptions())
    (home / "scaling.yaml").write_text(RECIPE)
    found = [_measured(home, 0, True, 60)]
    for world in workers:
        for bank in (False, True):
            found.append(_measured(home, world, bank, steps))
            print(json.dumps(asdict(found[-1])), flush=True)
    return found


def _measured(home: Path, workers: int, bank: bool, steps: int) -> Measured:
    name = f"w{workers}-{'bank' if bank else 'plain'}"
    trace = home / name
    trace.mkdir()
    env = hooked(
        home / "site", CHANGE, {"SCALING_TRACE": str(trace), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    )
    off = [] if bank else ["mining.where=off", "method.name=infonce", f"trainer.checkpoint_every_steps={10 * steps}"]
    told = [f"name={name}", f"data={home / 'packed'}", f"trainer.storage={home / 'runs'}", f"trainer.workers={workers}"]
    began = time.time()
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            SCRIPT,
            str(home / "scaling.yaml"),
            *told,
            f"trainer.steps={steps}",
            *off,
        ],
        env=env,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in trace.glob("*.jsonl")]
    first = min(ranks, key=lambda rows: rows[0][0])
    gaps = [after[0] - before[0] for before, after in pairwise(first)]
    saved = [gaps[at] for at in range(EVERY - 1, len(gaps), EVERY)] if bank else []
    others = [gap for at, gap in enumerate(gaps) if at >= 10 and (not bank or (at + 1) % EVERY)]
    step_s = statistics.fmean(others)
    return Measured(
        workers,
        bank,
        step_s,
        statistics.fmean(saved) - step_s if saved else 0.0,
        statistics.median(row[1] for rows in ranks for row in rows),
        first[0][0] - began,
    )


def measured_rates(batch: int = 32, dim: int = 128, slots: int = 16384, pushes: int = 2000) -> Rates:
    """What a push costs the bank's real actor when many are on their way to it; and the order's work, at 10 million videos."""
    import ray

    from benchmarks.bank_load import Load
    from cluster.bank.actor import start_bank
    from cluster.bank.spec import Push, Wanted
    from cluster.launch import ray_session
    from vidssl.batch import Embeddings

    load = Load(world=1, batch=batch, n_slots=slots, dim=dim, options={"threads": 1})
    rng, none = np.random.default_rng(0), np.zeros(0, np.int64)
    with ray_session(2):
        actor, flying, began = start_bank(load.spec()), [], 0.0
        pid = int(ray.get([actor.process_id.remote()])[0])
        for number in range(pushes + 100):
            if number == 100:
                ray.get(flying)
                flying, began = [], _cpu_s(pid)
            rows = rng.standard_normal((batch, dim), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            slot = rng.choice(slots, batch, replace=False)
            views = {"residual": rows, "rgb": rows}
            flying.append(
                actor.serve.remote(Push(0, 1, 0, Embeddings(views, slot, number, 0), Wanted(none, none, none)))
            )
            if len(flying) > 16:
                _, flying = ray.wait(flying, num_returns=8)
        ray.get(flying)
        push_s = (_cpu_s(pid) - began) / pushes
    order = Order(np.arange(10_000_000), batch, rank=0, world=256, seed=0)
    order.take(Cursor())
    before = time.perf_counter()
    walk = order.walk()
    for _ in range(100):
        next(walk)
    each = (time.perf_counter() - before) / 100
    return Rates(push_s, 2 * batch * dim * 4 + 8 * batch, batch * load.k * (8 + dim * 4), each)


def _cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def simulated(
    world: int, rates: Rates, seconds: float = 60.0, hop_s: float = 2e-3, jitter: float = 0.05
) -> dict[str, Any]:
    """A bank and W ranks that push once a step: how long answers take, and for how many steps one must look ahead.

    Args:
        world: W.
        rates: Measured.
        seconds: That are simulated.
        hop_s: From a rank to the bank and back, without its work: an assumption about the network.
        jitter: Of the moment in which ranks push, as a share of the step.
    """
    rng = np.random.default_rng(world)
    pushes = [
        (step * STEP_S + STEP_S * jitter * rng.random(), rank)
        for step in range(int(seconds / STEP_S))
        for rank in range(world)
    ]
    took, free = [], 0.0
    for at, _ in sorted(pushes):  # one after the other: its threads share an interpreter
        free = max(free, at) + rates.push_s
        took.append(free - at + hop_s)
    answer = float(np.quantile(took, 0.99))
    traffic = world * (rates.push_bytes + rates.answer_bytes) / STEP_S
    return {
        "workers": world,
        "answer_p99_s": answer,
        "busy": world * rates.push_s / STEP_S,
        "lookahead": int(np.ceil(HEADROOM * answer / STEP_S)),
        "bank_mb_per_s": traffic / 1e6,
        "mined_rows_per_s": world * 32 / STEP_S,
        "gradient_mb_per_rank": 2 * (world - 1) / world * 4 * 7.9e6 / 1e6,
        "checkpoint_files": world + 2,
    }


def _measured_table(measured: Sequence[Measured]) -> list[str]:
    lines = [
        "| workers | step without bank, s | step with all, s | a checkpoint, s | over 0.2 s | start to first step, s |",
        "|---|---|---|---|---|---|",
    ]
    for world in dict.fromkeys(one.workers for one in measured):
        own = {one.bank: one for one in measured if one.workers == world}
        plain = own.get(False)
        before = "-" if plain is None else f"{plain.step_s:.4f}"
        lines.append(
            f"| {world or 'in process'} | {before} | {own[True].step_s:.4f} | {own[True].checkpoint_s:.2f} | "
            f"{100 * own[True].overhead:.1f} % | {own[True].start_s:.1f} |"
        )
    return lines


def _model_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| workers | bank busy | answer p99 | lookahead | bank traffic | rows to mine | gradients per rank (S3D) | files of a checkpoint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['workers']} | {100 * row['busy']:.1f} % | {1e3 * row['answer_p99_s']:.0f} ms | {row['lookahead']} | "
            f"{row['bank_mb_per_s']:.1f} MB/s | {row['mined_rows_per_s']:,.0f}/s | {row['gradient_mb_per_rank']:.0f} MB | {row['checkpoint_files']} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
