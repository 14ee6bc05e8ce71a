"""Real trainings in a row: each starts from finished ones, a killed one goes on, one can be made again alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cluster.training.phases import phase_table, train_phases
from cluster.training.plan import plan_run
from pipelines.dataset.manifest import load_manifest
from tests.cluster.training.test_driver import run_cli, wait_for_steps
from vidssl.errors import CheckpointError, DataError, RecipeError
from vidssl.recipe import load_recipe
from vidssl.saved.checkpoint import checkpoint_steps, latest_step, read_checkpoint, step_of_epoch, weights_hash
from vidssl.saved.phases import phase_folder, read_records, state_of
from vidssl.saved.trained import encoder_state

pytestmark = pytest.mark.usefixtures("usual_signals")

CYCLE = """\
name: cycle
clips: {frames: 4, stride: 2, size: 32}
augment: {flip: false}
model: {backbone: tiny, dim: 16, width: 4}
method: {name: cpr, view: rgb, second_view: residual, queue: 8, momentum: 0.9, hold_until_full: true}
mining: {where: inline, stages: 3, ratio: 0.8, topk: 2}
trainer: {workers: 1, batch: 4, steps: 6, checkpoint_every_steps: 3, log_every_steps: 1, deterministic: true}
phases:
  - name: first-0
    words: {method.name: infonce, method.hold_until_full: false}
  - name: second-0
    words: {method.name: infonce, method.hold_until_full: false, method.view: "${method.second_view}", method.second_view: "${method.view}"}
  - {name: first-1, start: first-0, second: second-0}
"""


def cycle(folder: Path, packed: Path, *words: str):
    (folder / "cycle.yaml").write_text(CYCLE)
    return load_recipe(str(folder / "cycle.yaml"), [f"data={packed}", f"trainer.storage={folder}", *words])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
@pytest.mark.slow  # three trainings
def test_a_cycle_starts_from_finished_phases_and_one_can_be_made_again_alone(packed, tmp_path, ray_cluster):
    recipe = cycle(tmp_path, packed)
    said: list[str] = []
    outcome = train_phases(plan_run(recipe), said.append)
    assert (outcome.steps, outcome.stopped) == (18, False)
    root = outcome.folder.path
    assert [state_of(phase, root) for phase in recipe.phases] == ["done"] * 3
    records = read_records(root)
    assert records["first-1"].inputs == {"start": records["first-0"].weights, "second": records["second-0"].weights}
    _, state, _ = read_checkpoint(phase_folder(root, "first-1"), 6)
    frozen = {k.removeprefix("streams.residual.query."): v for k, v in state["method"].items() if "residual.query" in k}
    trained = encoder_state(root / "second-0", "residual")
    assert all(frozen[key].equal(value) for key, value in trained.items())
    # Again: nothing to do. One alone: what came from it is said to be stale, and kept.
    assert train_phases(plan_run(recipe), said.append).steps == 0
    assert train_phases(plan_run(recipe), said.append, only="second-0").steps == 6
    again = read_records(root)
    assert again["second-0"].weights == records["second-0"].weights  # deterministic: the same training
    assert [state_of(phase, root) for phase in recipe.phases] == ["done"] * 3
    assert "start first-0, second second-0" in phase_table(recipe, root)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow  # three trainings
def test_a_phase_starts_from_another_as_it_was_after_an_epoch(packed, tmp_path, ray_cluster):
    text = CYCLE.replace("start: first-0", "start: first-0@1").replace("steps: 6", "epochs: 2")
    (tmp_path / "cycle.yaml").write_text(
        text.replace("checkpoint_every_steps: 3", "checkpoint_every_steps: 4, keep: 1")
    )
    recipe = load_recipe(str(tmp_path / "cycle.yaml"), [f"data={packed}", f"trainer.storage={tmp_path}"])
    root = train_phases(plan_run(recipe)).folder.path
    first = phase_folder(root, "first-0")
    kept, last = sorted(checkpoint_steps(first))
    assert last == latest_step(first)
    assert step_of_epoch(first, 1) == kept == -(-len(load_manifest(packed).training_rows()) // 4)
    assert read_records(root)["first-1"].inputs["start"] == weights_hash(first, kept)
    with pytest.raises(CheckpointError, match=r"first-0 kept no checkpoint of epoch 2; .*trainer\.keep_epochs=\[2\]"):
        encoder_state(root / "first-0@2", "rgb")
    then, end = encoder_state(root / "first-0@1", "rgb"), encoder_state(root / "first-0", "rgb")
    assert any(not rows.equal(end[key]) for key, rows in then.items())


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_phase_goes_on_where_it_stood(packed, tmp_path):
    (tmp_path / "cycle.yaml").write_text(CYCLE)
    # Long enough that its worker, which lives a moment longer than its killed driver, does not come to the end.
    longer = ["second-0:trainer.steps=200", "second-0:trainer.checkpoint_every_steps=5"]
    process = run_cli("train", "cycle.yaml", f"data={packed}", *longer, "--no-evaluation", cwd=tmp_path)
    root = tmp_path / "runs" / "cycle"
    wait_for_steps(root / "second-0", 8, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    first = read_records(root)["first-0"]
    again = run_cli("train", "--resume", "runs/cycle", "--no-evaluation", cwd=tmp_path)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "phase first-0: finished before, kept" in said
    assert "resumed at step" in said
    assert read_records(root)["first-0"] == first
    rows = [json.loads(line) for line in (root / "second-0" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(200))


def test_every_phase_is_checked_before_the_first_one_runs(packed, tmp_path):
    with pytest.raises(RecipeError, match=r"mining.stages=9 mining.ratio=0.1 leave 0 of 8 slots"):
        plan_run(cycle(tmp_path, packed, "first-1:mining.stages=9", "first-1:mining.ratio=0.1"))
    with pytest.raises(DataError, match=r"holds no optical flow.*type method.second_view=residual"):
        plan_run(cycle(tmp_path, packed, "method.second_view=flow"))
    assert not (tmp_path / "cycle").exists()


def test_a_phase_is_not_started_from_an_unfinished_one_and_nothing_is_made(packed, tmp_path):
    plan = plan_run(cycle(tmp_path, packed))
    with pytest.raises(CheckpointError, match=r"phase 'first-1' takes its start stream from 'first-0', which is not"):
        train_phases(plan, only="first-1")
    with pytest.raises(RecipeError, match=r"no phase 'third' in this recipe; there are first-0, second-0, first-1"):
        train_phases(plan, only="third")
    assert not (tmp_path / "cycle").exists()
