"""Is a training step on this CPU as fast as that of another checkout? Every tiny recipe, both in turn, pair by pair.

    python -m benchmarks.steps OTHER_CHECKOUT [RECIPE …] [--pairs 10] [--steps 3] [--out FILE.json]

Each checkout runs in a process of its own that lives through all pairs; a pair is `--steps` steps of one, then of the
other, in alternating order. What counts is the median over pairs of the ratio of both times: what else the machine does
meanwhile acts on both. A step is the method's forward and backward pass, its memory and the optimizer, on the same made
clips; of a recipe with phases it is the last phase's. Loader and bank take no part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

HERE = Path(__file__).resolve().parent.parent
RECIPES = (
    "infonce-tiny", "ubernce-tiny", "infonce-cpr-tiny", "coclr-tiny", "cpr-tiny", "cpr-cycles-tiny", "cpr-real-tiny", "vicc-tiny",
    "iic-tiny", "iic-cpr-tiny",
)  # fmt: skip
VIDEOS, LATE = 96, 10_000
"""Videos of the data, and the step at which it begins: no warm-up is left."""


def main(words: list[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("other", help="folder of the other checkout")
    parser.add_argument("recipes", nargs="*", default=[])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out")
    given = parser.parse_args(words)
    rows = {}
    sys.stdout.write("recipe               here ms  other ms  here/other (median of pairs, quartiles)\n")
    for recipe in given.recipes or RECIPES:
        rows[recipe] = row = _pairs(recipe, Path(given.other).resolve(), given.pairs, given.steps)
        low, middle, high = row["ratio"]
        sys.stdout.write(
            f"{recipe:20} {row['here_ms']:7.1f} {row['other_ms']:9.1f}  {middle:.3f} ({low:.3f}–{high:.3f})\n"
        )
        sys.stdout.flush()
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1) + "\n")


def _pairs(recipe: str, other: Path, pairs: int, steps: int) -> dict[str, Any]:
    both = {"here": _started(recipe, HERE), "other": _started(recipe, other)}
    try:
        for one in both.values():
            _asked(one, steps)  # allocators and caches
        times: dict[str, list[float]] = {name: [] for name in both}
        for pair in range(pairs):
            for name in sorted(both, reverse=bool(pair % 2)):
                times[name].append(_asked(both[name], steps))
    finally:
        for one in both.values():
            one.kill()
            one.wait()
    ratios = [here / there for here, there in zip(times["here"], times["other"], strict=True)]
    return {
        "here_ms": 1e3 * statistics.median(times["here"]) / steps,
        "other_ms": 1e3 * statistics.median(times["other"]) / steps,
        "ratio": statistics.quantiles(ratios, n=4),
        "pairs": pairs,
    }


def _started(recipe: str, checkout: Path) -> subprocess.Popen[str]:
    words = [sys.executable, str(Path(__file__).resolve()), "--child", recipe]
    env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(words, text=True, env=env, cwd=checkout, stdin=pipe, stdout=pipe, stderr=nowhere)


def _asked(child: subprocess.Popen[str], steps: int) -> float:
    assert child.stdin is not None  # for the type checker: both are pipes
    assert child.stdout is not None
    child.stdin.write(f"{steps}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def _child(name: str) -> None:
    """Reads a number of steps, does them, answers with their seconds; again and again. Written for old checkouts too."""
    import torch

    from vidssl.batch import ClipBatch, Positives
    from vidssl.methods import build_method
    from vidssl.optimizers import build_optimizer
    from vidssl.recipe import load_recipe, phase_recipe
    from vidssl.views import make_views

    torch.set_num_threads(1)
    recipe = load_recipe(name)
    recipe = phase_recipe(recipe, recipe.phases[-1]) if recipe.phases else recipe
    rows, form, k = recipe.trainer.batch, recipe.clips, recipe.mining.topk
    method = build_method(recipe, instances=VIDEOS).train()
    optimizer = build_optimizer(recipe.optim, [one for one in method.parameters() if one.requires_grad])
    rgb = torch.randn(rows, form.per_video, 3, form.frames, form.size, form.size)
    clips = make_views(rgb, recipe.views)
    nothing, step = Positives.none(rows, k, recipe.model.dim, recipe.mining.stages), LATE
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            ids = (torch.arange(rows) + rows * step) % VIDEOS
            batch = ClipBatch(
                clips, ids, ids // 2, ids % 4, 0, step, torch.zeros(rows, form.per_video, dtype=torch.long)
            )
            out = method(batch, nothing if method.needs_positives(step) else None)
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            method.before_update(batch)
            if out.update:
                optimizer.step()
            step += 1
        sys.stdout.write(f"{time.perf_counter() - began}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.path = [place for place in sys.path if Path(place or ".").resolve() != HERE / "benchmarks"]
        _child(sys.argv[2])
    else:
        main()
