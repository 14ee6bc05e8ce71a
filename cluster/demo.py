"""`vidssl demo`: the whole flow once, on videos that it makes itself, with the figures that say whether it worked.

The class of a video is its motion; shapes, colours, backgrounds and camera pans are shared by all classes, so an
encoder that recognises scenes, and a colour histogram, stay near chance.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from vidssl.errors import RecipeError
from vidssl.files import storage_error
from vidssl.lock import held
from vidssl.marks import mark, refuse_foreign, remove_marked
from vidssl.mining.metrics import CLASS_MINING_RECALL
from vidssl.recipe import Recipe, load_recipe, recipe_from_tree
from vidssl.records import write_record
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    from cluster.evaluation.evaluator import Result
    from pipelines.dataset.manifest import Manifest

__all__ = ["run_demo"]

VIDEOS, FRAMES = 360, 56
KIND = "demo"
"""What the mark of a demo's folder says."""
RESULT = "demo.json"
_OWN = ("data", "name", "seed", "trainer.storage", "trainer.copy_to")
_VIDEOS = {"videos/videos": "[0-9][0-9][0-9][0-9][0-9].mp4", "videos": "videos.csv"}
_PACKED = ("shard-*.tar", "shard-*.idx", "manifest.json", "samples.npz", "verdicts.csv", ".staging", ".*.part")

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoFigures:
    """Whether it worked: `demo.json`.

    Attributes:
        seconds: Of everything, Ray's start included.
        seed: Of data, weights and order.
        r_at_1: Share of test videos whose nearest training video has their class, trained encoder.
        r_at_1_untrained: The same before training.
        r_at_1_histogram: The same by colour histograms.
        chance: The same by drawing lots.
        precision_at_k: Way of mining → share of mined positives of the video's own class.
        class_mining_recall: Way of mining → share of a class's videos that another video of the class mined, median over
            classes.
        clips_per_second: Median over the logged steps.
        wait_ratio: Share of the time in which the step waited for data, likewise.
        bank_age_steps: Oldest mined positives of any logged step; None where nothing was mined.
    """

    seconds: float
    seed: int
    r_at_1: float
    r_at_1_untrained: float
    r_at_1_histogram: float
    chance: float
    precision_at_k: Mapping[str, float]
    class_mining_recall: Mapping[str, float]
    clips_per_second: float
    wait_ratio: float
    bank_age_steps: float | None


def run_demo(out: Path, words: Sequence[str], seed: int, say: Say) -> DemoFigures:
    """Make, pack, train, evaluate and report into `out`; returns what `out/demo.json` holds.

    Args:
        out: Folder that is new, empty, or holds an earlier demo (which is replaced; what a demo did not make stays).
        words: `key=value` words for the recipe `cpr-demo`.
        seed: Of data, weights and order.
        say: Takes each line for the user.

    Raises:
        RecipeError: a word that is wrong, or that a demo settles itself.
        DataError: `out` holds something else.
        DeviceError: more than this machine or cluster has. Nothing was made or removed by then.
    """
    from cluster.evaluation.evaluate import evaluate_run
    from cluster.launch import check_resources, ray_session, resolve_device
    from cluster.report.write import write_report
    from cluster.training.driver import train
    from cluster.training.plan import plan_run

    began = time.monotonic()
    out = out.expanduser().resolve()
    recipe = _checked(out, words, seed)
    refuse_foreign(out, KIND, "type vidssl demo --out OTHER")
    with ray_session(os.cpu_count() or 1):
        check_resources(recipe.trainer, resolve_device(recipe.trainer, say))
        with held(out, "demo", say):
            _begin(out, say)
            _make_and_pack(out, seed, say)
            outcome = train(plan_run(recipe), say, ["demo", f"--seed={seed}", *words])
            if outcome.stopped:
                raise KeyboardInterrupt
            results = evaluate_run(outcome.folder.path, [])
            page = write_report(outcome.folder.path)
            figures = _figures(outcome.folder, results, seed, began)
            write_record(out / RESULT, figures)
    for line in _table(figures):
        say(line)
    say(f"report: {page}")
    return figures


def _checked(out: Path, words: Sequence[str], seed: int) -> Recipe:
    """The demo's recipe, held against the data that it is going to make: all of this is known beforehand."""
    from cluster.training.checks import check_recipe

    for word in words:
        if word.partition("=")[0] in _OWN:
            raise RecipeError(
                f"'{word}' cannot be set for a demo, which makes its own data and run; type vidssl demo --out FOLDER --seed N, "
                "or vidssl train for your data"
            )
    settings = [f"data={out / 'packed'}", f"trainer.storage={out}", "name=run", f"seed={seed}"]
    recipe = load_recipe("cpr-demo", words)
    recipe = recipe_from_tree(recipe.model_dump(mode="json"), settings)
    check_recipe(recipe, manifest=_expected(out / "packed"))
    return recipe


def _expected(root: Path) -> Manifest:
    """As much of the manifest that packing will write as a recipe is held against."""
    from pipelines.dataset.manifest import Manifest, Samples
    from pipelines.synthetic import MOTIONS, is_test

    one = np.ones(VIDEOS, np.int32)
    split = np.array([is_test(index) for index in range(VIDEOS)], np.int8)
    names = np.array([f"videos/{index:05d}.mp4" for index in range(VIDEOS)])
    label = np.arange(VIDEOS, dtype=np.int32) % len(MOTIONS)
    size = (128 * one).astype(np.int16)
    samples = Samples(0 * one, label, np.arange(VIDEOS, dtype=np.int32), split, FRAMES * one, size, size, names)
    return Manifest(root, "", "h264", 128, 25.0, 16, tuple(MOTIONS), ("train", "test"), (), samples, groups=VIDEOS)


def _begin(out: Path, say: Say) -> None:
    """Remove what an earlier demo made, and mark the folder as a demo's."""
    from cluster.training.folder import clear

    try:
        clear(RunFolder(out / "run"))
        remove_marked(out / "packed", "pack", _PACKED)
        for name, pattern in _VIDEOS.items():
            for path in (out / name).glob(pattern):
                path.unlink()
            with suppress(OSError):  # refused by the system where anything is in it
                (out / name).rmdir()
        left = remove_marked(out, KIND, (RESULT,))
        out.mkdir(parents=True, exist_ok=True)
        mark(out, KIND)
    except OSError as error:
        raise storage_error(error, out, instead="type vidssl demo --out FOLDER") from error
    if left:
        say(f"left alone in {out}, because no demo made it: {', '.join(left)}")


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


def _figures(folder: RunFolder, results: Mapping[str, Result], seed: int, began: float) -> DemoFigures:
    from cluster.evaluation.mining import MiningResult
    from cluster.evaluation.retrieval import RetrievalResult

    retrieval, mining = results["retrieval"], results["mining"]
    assert isinstance(retrieval, RetrievalResult)
    assert isinstance(mining, MiningResult)
    recall = {name: row.r1 for name, row in (retrieval.results or {}).items()}
    log = folder.read_log()
    return DemoFigures(
        seconds=round(time.monotonic() - began, 1),
        seed=seed,
        r_at_1=recall["trained"],
        r_at_1_untrained=recall["untrained"],
        r_at_1_histogram=recall["histogram"],
        chance=recall["chance"],
        precision_at_k={name: row.precision for name, row in (mining.results or {}).items()},
        class_mining_recall={name: row.coverage_median for name, row in (mining.results or {}).items()},
        clips_per_second=median(row["clips_per_second"] for row in log),
        wait_ratio=median(row["wait_ratio"] for row in log),
        bank_age_steps=max((row["bank_age_steps"] for row in log if "bank_age_steps" in row), default=None),
    )


def _table(figures: DemoFigures) -> list[str]:
    mined, recall, age = figures.precision_at_k, figures.class_mining_recall, figures.bank_age_steps

    def percent(name: str, value: float, note: str) -> str:
        return f"  {name:26}{100 * value:6.1f} %   {note}"

    return [
        "retrieval, share of test videos whose nearest training video shows the same motion (R@1)",
        percent("trained encoder", figures.r_at_1, f"after {figures.seconds:.0f} s in all"),
        percent("untrained encoder", figures.r_at_1_untrained, "the same network before training"),
        percent("colour histogram", figures.r_at_1_histogram, "what colours alone can tell"),
        percent("chance", figures.chance, ""),
        "mined positives of the same motion (precision@k; labels are used here only, never by the miner)",
        percent("cascade (CPR)", mined["cascade"], "both streams in turn"),
        percent("single stream / sum", mined["single"], f"the sum of both streams: {100 * mined['sum']:.1f} %"),
        percent("random", mined["random"], ""),
        f"{CLASS_MINING_RECALL} (median over classes)",
        percent(
            "cascade (CPR)", recall["cascade"], f"the class mates themselves, by label: {100 * recall['oracle']:.1f} %"
        ),
        percent("single stream / sum", recall["single"], f"the sum of both streams: {100 * recall['sum']:.1f} %"),
        percent("random", recall["random"], ""),
        f"  {figures.clips_per_second:.0f} clips/s; waited for data {100 * figures.wait_ratio:.0f} % of the time; "
        + ("nothing was mined" if age is None else f"mined positives at most {age:.0f} steps old"),
    ]
