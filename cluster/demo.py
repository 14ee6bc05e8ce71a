"""`vidssl demo`: the whole flow once, on videos that it makes itself, with the figures that say whether it worked.

The class of a video is its motion; shapes, colours, backgrounds and camera pans are shared by all classes, so an
encoder that recognises scenes, and a colour histogram, stay near chance.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vidssl.errors import DataError
from vidssl.recipe import load_recipe
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    from cluster.evaluation.evaluator import Result

__all__ = ["run_demo"]

VIDEOS, FRAMES = 360, 56
_MARK = "demo.json"

Say = Callable[[str], None]


def run_demo(out: Path, words: Sequence[str], seed: int, say: Say) -> dict[str, Any]:
    """Make, pack, train, evaluate and report into `out`; returns what `out/demo.json` holds.

    Args:
        out: Folder that is new, empty, or holds an earlier demo (which is replaced).
        words: `key=value` words for the recipe `cpr-demo`.
        seed: Of data, weights and order.
        say: Takes each line for the user.

    Raises:
        DataError: `out` holds something else.
    """
    from cluster.evaluation.evaluate import evaluate_run
    from cluster.launch import ray_session
    from cluster.report.write import write_report
    from cluster.training.driver import prepare, train

    began = time.monotonic()
    out = _own_folder(out)
    settings = [f"data={out / 'packed'}", f"trainer.storage={out}", "name=run", f"seed={seed}", *words]
    recipe = load_recipe("cpr-demo", settings)
    with ray_session(os.cpu_count() or 1):
        _make_and_pack(out, seed, say)
        folder = prepare(recipe, fresh=True, argv=["demo", f"--seed={seed}", *words])
        outcome = train(folder.read_recipe(), folder, say)
    if outcome.stopped:
        raise KeyboardInterrupt
    results = evaluate_run(folder.path, [])
    page = write_report(folder.path)
    figures = {"seconds": round(time.monotonic() - began, 1), "seed": seed} | _figures(folder, results)
    (out / _MARK).write_text(json.dumps(figures, indent=1))
    for line in _table(figures):
        say(line)
    say(f"report: {page}")
    return figures


def _own_folder(out: Path) -> Path:
    out = out.expanduser().resolve()
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise DataError(f"{out} holds files that are no demo; type vidssl demo --out OTHER")
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / _MARK).write_text("{}")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); type vidssl demo --out FOLDER") from error
    return out


def _make_and_pack(out: Path, seed: int, say: Say) -> None:
    from cluster.pack import run_pack
    from pipelines.synthetic import make_motion_set

    before = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        table = make_motion_set(
            out / "videos", videos=VIDEOS, frames=FRAMES, seed=seed, each=partial(pool.map, chunksize=16)
        )
    say(f"made {VIDEOS} videos of {len(_classes())} motions in {time.monotonic() - before:.0f} s: {table.parent}")
    before = time.monotonic()
    manifest = run_pack("csv", table, out / "packed", [], workers=None)
    say(f"packed {len(manifest)} of {VIDEOS} into {len(manifest.shards)} shards in {time.monotonic() - before:.0f} s")


def _classes() -> list[str]:
    from pipelines.synthetic import MOTIONS

    return list(MOTIONS)


def _figures(folder: RunFolder, results: Mapping[str, Result]) -> dict[str, Any]:
    from cluster.evaluation.mining import MiningResult
    from cluster.evaluation.retrieval import RetrievalResult

    retrieval, mining = results["retrieval"], results["mining"]
    assert isinstance(retrieval, RetrievalResult)
    assert isinstance(mining, MiningResult)
    recall = {name: row.r1 for name, row in (retrieval.results or {}).items()}
    mined = {name: row.precision for name, row in (mining.results or {}).items()}
    log = folder.read_log()
    return {
        "r_at_1": recall["trained"],
        "r_at_1_untrained": recall["untrained"],
        "r_at_1_histogram": recall["histogram"],
        "chance": recall["chance"],
        "precision_at_k": mined,
        "clips_per_second": median(row["clips_per_second"] for row in log),
        "wait_ratio": median(row["wait_ratio"] for row in log),
        "bank_age_steps": max((row.get("bank_age_steps", -1.0) for row in log), default=-1.0),
    }


def _table(figures: dict[str, Any]) -> list[str]:
    mined = figures["precision_at_k"]

    def percent(name: str, value: float, note: str) -> str:
        return f"  {name:26}{100 * value:6.1f} %   {note}"

    return [
        "retrieval, share of test videos whose nearest training video shows the same motion (R@1)",
        percent("trained encoder", figures["r_at_1"], f"after {figures['seconds']:.0f} s in all"),
        percent("untrained encoder", figures["r_at_1_untrained"], "the same network before training"),
        percent("colour histogram", figures["r_at_1_histogram"], "what colours alone can tell"),
        percent("chance", figures["chance"], ""),
        "mined positives of the same motion (precision@k; labels are used here only, never by the miner)",
        percent("cascade (CPR)", mined["cascade"], "both streams in turn"),
        percent("single stream / sum", mined["single"], f"the sum of both streams: {100 * mined['sum']:.1f} %"),
        percent("random", mined["random"], ""),
        f"  {figures['clips_per_second']:.0f} clips/s; waited for data {100 * figures['wait_ratio']:.0f} % of the time; mined positives at most {figures['bank_age_steps']:.0f} steps old",
    ]
