"""A run goes on with other workers and another batch: what is said, what is refused, and what every epoch brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.training.folder import enter
from cluster.training.phases import _plan_one as plan_one
from cluster.training.plan import plan_resume, plan_run
from pipelines.dataset.manifest import load_manifest
from tests.cluster.training.small_runs import RECIPE, leftovers, small, tree
from tests.cluster.training.test_phases import CYCLE
from vidssl.errors import CheckpointError, DataError, RecipeError
from vidssl.mining.snapshots import load_snapshot, snapshot_at
from vidssl.recipe import Recipe, load_recipe, phase_recipe
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("usual_signals")

ELASTIC = """
import os, signal, sys
from cluster.launch import ray_session
from cluster.training.driver import train
from cluster.training.plan import plan_resume, plan_run
from vidssl.recipe import load_recipe

def stop_at(step):
    asked = []
    def listen(line):
        print(line)
        at = int(line.split()[1].partition("/")[0]) if line.startswith("step ") else 0
        if at >= step and not asked:  # asking twice ends the process at once
            asked.append(at)
            os.kill(os.getpid(), signal.SIGHUP)
    return listen

with ray_session(3):  # however many cores this machine has
    run = train(plan_run(load_recipe("small.yaml", sys.argv[1:])), stop_at(6))
    print("STOPPED", run.steps)
    run = train(plan_resume(run.folder.path, ["trainer.workers=1"]), stop_at(run.steps + 4))
    print("STOPPED", run.steps)
    train(plan_resume(run.folder.path, ["trainer.workers=3"]), print)
"""


def stands_at(
    packed: Path, folder: Path, step: int, seen: int | None, *words: str, recipe: Recipe | None = None
) -> RunFolder:
    """A run of one worker with a checkpoint of that step (which holds no weights)."""
    plan = plan_run(recipe or small(packed, folder, "trainer.workers=1", *words))
    enter(plan, ["train", "small.yaml"], "cpu")
    recipe, manifest = plan.recipe, plan.checked.manifest
    meta = Meta(step, recipe.fingerprint(), manifest.hash, 1, 0, len(manifest), recipe.settings(), seen=seen)
    save_checkpoint(plan.folder, meta, 0, {}, {})
    return plan.folder


def test_other_workers_go_on_with_a_sentence_and_are_the_run_s_from_then_on(packed, tmp_path):
    folder = stands_at(packed, tmp_path, 8, 32)
    plan = plan_resume(folder.path, ["trainer.workers=2"])
    assert (plan.start, plan.checked.total_steps, plan.finished) == (8, 24, False)
    assert plan.notes == (
        "the checkpoint of step 8 is of 1 worker(s) with 4 videos each, and 2 with 4 go on: a step takes 8 videos instead of "
        "4, optim.lr=0.001 is not scaled, trainer.steps=24 and the schedule of optim.lr go on in steps, and what is left of "
        "the epoch comes once each; this deterministic run is then not the straight one bit for bit",
        f"{folder.path} holds this run: it goes on from step 8 of 24",
    )
    assert folder.read_recipe().trainer.workers == 1  # a plan changes nothing
    enter(plan, [], "cpu")
    again = plan_resume(folder.path)  # killed before it wrote a checkpoint of its own
    assert again.recipe.trainer.workers == 2
    assert again.notes == plan.notes
    assert plan_resume(folder.path, ["trainer.workers=1"]).notes == plan.notes[1:]


def test_a_number_of_workers_that_is_typed_is_meant_whatever_the_run_had_before(packed, tmp_path):
    folder = stands_at(packed, tmp_path, 8, 32)
    for word, told in (
        ("0", (1, None, True)),
        ("[1,2]", (2, 1, False)),
        ("3", (3, None, False)),
        ("1", (1, None, False)),
    ):
        plan = plan_resume(folder.path, [f"trainer.workers={word}"])
        enter(plan, [], "cpu")
        now = plan_resume(folder.path).recipe.trainer
        assert (now.workers, now.min_workers, now.in_process) == told


def test_epochs_are_counted_in_samples_when_workers_change(packed, tmp_path):
    videos = len(load_manifest(packed).training_rows())
    folder = stands_at(packed, tmp_path, 8, 32, "trainer.steps=null", "trainer.epochs=9")
    for workers, batch in ((1, 4), (2, 4), (3, 4), (1, 8)):
        plan = plan_resume(folder.path, [f"trainer.workers={workers}", f"trainer.batch={batch}"])
        assert plan.checked.total_steps == 8 + -(-(9 * videos - 32) // (workers * batch))


def test_what_other_workers_cannot_do_is_refused_and_the_disk_stays_as_it_was(packed, tmp_path):
    folder = stands_at(packed, tmp_path, 8, 32, "trainer.steps=null", "trainer.epochs=9", "optim.warmup_steps=25")
    before = tree(tmp_path)
    for words, kind, sentence in (
        (["trainer.workers=-1"], RecipeError, r"trainer\.workers=-1"),
        (["trainer.workers=many"], RecipeError, r"trainer\.workers"),
        (["trainer.workers=30"], DataError, r"one step takes 120 \(trainer.batch=4 x trainer.workers=30\)"),
        (["trainer.workers=6"], RecipeError, r"optim\.warmup_steps=25 fills the run of \d+ steps"),
        (["trainer.workers=2", "seed=3"], CheckpointError, r"'seed=3' cannot be set; .*with trainer.workers=N trainer.batch=B"),
    ):  # fmt: skip
        with pytest.raises(kind, match=sentence):
            plan_resume(folder.path, words)
    with pytest.raises(CheckpointError) as refused:
        plan_run(
            small(
                packed,
                tmp_path,
                "trainer.workers=1",
                "trainer.steps=null",
                "trainer.epochs=9",
                "optim.warmup_steps=25",
                "trainer.batch=2",
            )
        )
    assert "trainer.batch is 4 there and 2 here" in str(refused.value)
    assert f"type vidssl train --resume {folder.path} trainer.batch=2 to go on with them, name=OTHER" in str(
        refused.value
    )
    assert tree(tmp_path) == before


def test_a_finished_run_of_a_version_that_left_the_ends_of_epochs_out_stays_finished(packed, tmp_path):
    videos = len(load_manifest(packed).training_rows())
    assert videos % 4
    steps = 9 * (videos // 4)
    plan = plan_resume(stands_at(packed, tmp_path, steps, None, "trainer.steps=null", "trainer.epochs=9").path)
    assert plan.finished
    assert plan.notes[-1].endswith("there is nothing to train; to begin again, type --fresh")


def test_a_phase_that_is_not_finished_goes_on_with_the_workers_of_now(packed, tmp_path):
    (tmp_path / "cycle.yaml").write_text(CYCLE)
    words = [f"data={packed}", f"trainer.storage={tmp_path}"]
    plan = plan_run(load_recipe(str(tmp_path / "cycle.yaml"), words))
    enter(plan, [], "cpu")
    phase, root = plan.recipe.phases[0], plan.folder.path
    own = phase_recipe(plan.recipe, phase, root)
    folder = stands_at(packed, root, 3, 12, recipe=own)
    again = plan_resume(root, ["trainer.workers=2"])
    assert again.recipe.trainer.workers == 2
    inner = plan_one(again.recipe, phase, root, again=False)
    assert (inner.folder, inner.start, inner.recipe.trainer.workers) == (folder, 3, 2)
    assert "is of 1 worker(s) with 4 videos each, and 2 with 4 go on" in inner.notes[0]


def videos_of(run: RunFolder, step: int) -> set[int]:
    """What all ranks together pushed to the bank after a step: the rows of its snapshot that are of this step."""
    snapshot = snapshot_at(run.bank, step + 1)
    assert snapshot is not None
    return set(np.flatnonzero(load_snapshot(snapshot).version == step).tolist())


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_then_one_then_three_see_each_video_of_each_epoch_exactly_once(packed, tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    words = ["trainer.batch=3", "trainer.steps=30", "trainer.checkpoint_every_steps=1", "trainer.keep=99"]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ELASTIC, f"data={packed}", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("STOPPED"))
    assert 6 <= first < second < 30
    for step, before, now in ((first, 2, 1), (second, 1, 3)):
        said = f"the checkpoint of step {step} is of {before} worker(s) with 3 videos each, and {now} with 3 go on: "
        assert done.stdout.count(said) == 1
    run = RunFolder(tmp_path / "runs" / "small")
    seen = [videos_of(run, step) for step in range(30)]
    assert [len(one) for one in seen] == [6] * first + [3] * (second - first) + [9] * (30 - second)
    videos = set(load_manifest(packed).training_rows().tolist())
    left, epochs = videos.copy(), 0
    for one in seen:
        if len(one) < len(left):
            assert one <= left
            left -= one
        else:  # the end of an epoch, and the start of the next with what is left of the step
            assert left <= one
            left, epochs = videos - (one - left), epochs + 1
    assert epochs >= 5
    rows = run.read_log()
    assert [row["step"] for row in rows] == list(range(30))
    assert rows[first]["bank/fallback_ratio"] == 0  # what the two workers had asked for was not lost
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert leftovers(run.path) == []
