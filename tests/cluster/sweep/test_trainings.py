"""A sweep of whole trainings: what is done once is never done again, what halving stops, what is left; and one for real."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.sweep import trainings
from cluster.sweep.held_out import held_out_recall, kept_at
from cluster.sweep.trained import rung_row
from cluster.training.plan import plan_run, run_folder_of
from pipelines.dataset import manifest
from tests.cluster.sweep.worlds import held_out_of, written_manifest
from vidssl.errors import DataError, RecipeError, StorageError
from vidssl.marks import mark
from vidssl.recipe import load_recipe
from vidssl.records import write_record
from vidssl.saved.run_folder import RunFolder

QUERIES = 40
LR = "optim.lr=[0.001,0.002,0.003,0.004]"


class Cluster:
    """Trainings in this process that take no time: an encoder is as good as its rate and its rung say."""

    def __init__(self) -> None:
        self.trained, self.dies_after, self.breaks, self.asked = [], 10**9, "", 0

    def __call__(self, choice, sweep, rows, say):
        keeper = trainings._keeper(rows, sweep, say)
        while (training := choice.next()) is not None:
            for percent in trainings._rungs_left(training, sweep, rows):
                if len(self.trained) >= self.dies_after:
                    raise SystemExit(137)
                if training.arm == self.breaks:
                    result = {"failed": "the disk is gone", "run": training.recipe.name}
                else:
                    score = self._score(training, percent, rows.about.id)
                    row = rung_row(training, percent, lambda done=percent: done, score, rows.about.id)
                    result = dataclasses.asdict(row)
                    self.trained.append((training.arm, training.seed, percent))
                if "failed" in result:
                    choice.failed(training)
                if keeper.on_trial_result(None, None, result) == "STOP" or "failed" in result:
                    break
        return keeper.failed

    def _score(self, training, percent, asked):
        right = round(QUERIES * 200 * training.recipe.optim.lr * percent / 100)

        def score(path):
            found = held_out_of(percent, [1.0] * right + [0.0] * (QUERIES - right), asked)
            self.asked += 1
            path.mkdir(parents=True, exist_ok=True)
            mark(path, "run")
            write_record(path / "eval" / f"held-out-{percent:07d}.json", found)
            return found

        return score


@pytest.fixture
def here(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(trainings, "_run", cluster)
    monkeypatch.setattr(manifest, "_check_shards", lambda *asked: None)  # nobody reads a video here
    return cluster


@pytest.fixture
def data(tmp_path):
    return written_manifest(tmp_path / "packed")


def swept(data, *words, said=None, out=None):
    lines = [] if said is None else said
    typed = [f"data={data}", f"trainer.storage={data.parent / 'runs'}", *words]
    return trainings.run_trainings("infonce-tiny", typed, None if out is None else str(out), lines.append)


def rows_in(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_point_is_trained_once_and_the_best_can_be_trained_again(here, data):
    text, folder = swept(data, LR, "seeds=[0,1]"), data.parent / "runs" / "sweep-infonce-tiny"
    assert here.trained == [(f"lr={0.001 * i:g}", seed, 100) for seed in (0, 1) for i in (1, 2, 3, 4)]
    assert "lr=0.004 is ahead of 3 of 3 others" in text
    assert [row["state"] for row in rows_in(folder)] == ["finished"] * 8
    best = load_recipe(str(folder / "best.yaml"))
    assert (best.optim.lr, best.name, best.seed) == (0.004, "infonce-tiny-best", 0)
    assert plan_run(best).folder.path == data.parent / "runs" / "infonce-tiny-best"
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert len(list((folder / "tensorboard").glob("*/events*"))) >= 8
    swept(data, LR, "seeds=[0,1]")
    assert len(here.trained) == 8


def test_a_sweep_killed_anywhere_goes_on_with_what_is_missing_and_ends_as_an_undisturbed_one(here, data):
    asked, whole = (
        ["optim.lr=[0.003,0.001,0.002,0.004]", "schedule=asha", "first_rung=0.2", "reduction=2"],
        data.parent / "whole",
    )
    straight = swept(data, *asked, out=whole).replace(str(whole), "")
    once, whole_rows = list(here.trained), rows_in(whole)
    for number, dies in enumerate((2, 7)):
        here.trained, here.dies_after, out = [], dies, data.parent / f"out-{number}"
        with pytest.raises(SystemExit):
            swept(data, *asked, out=out)
        before, here.dies_after = len(here.trained), 10**9
        assert swept(data, *asked, out=out).replace(str(out), "") == straight
        ended = {row["arm"] for row in rows_in(out)[:before] if row["state"] != "goes on"}
        assert not ended & {arm for arm, _, _ in here.trained[before:]}
        drop = ("seconds",)
        assert [{k: v for k, v in row.items() if k not in drop} for row in rows_in(out)] == [
            {k: v for k, v in row.items() if k not in drop} for row in whole_rows
        ]
    assert len(once) < 4 * 4  # halving saved something


def test_halving_stops_a_training_that_is_behind_those_before_it(here, data):
    said = []
    swept(data, "optim.lr=[0.004,0.001,0.002]", "schedule=asha", "first_rung=0.5", "reduction=2", said=said)
    assert here.trained == [("lr=0.004", 0, 50), ("lr=0.004", 0, 100), ("lr=0.001", 0, 50), ("lr=0.002", 0, 50)]
    assert [line.split()[-1] for line in said if line.startswith("lr=")] == ["on", "finished", "stopped", "stopped"]


def test_a_point_more_trains_that_point_alone(here, data):
    swept(data, "optim.lr=[0.001,0.002]")
    swept(data, "optim.lr=[0.001,0.002,0.003]", "seeds=[0]")
    assert [arm for arm, _, _ in here.trained] == ["lr=0.001", "lr=0.002", "lr=0.003"]


def test_a_training_that_fails_is_named_and_the_others_are_kept_and_it_is_tried_again(here, data):
    here.breaks, said = "lr=0.002", []
    with pytest.raises(StorageError, match=r"1 of 4 trainings failed, .*lr=0.002-seed-0-\w+: the disk is gone"):
        swept(data, LR, said=said)
    assert any("lr=0.004" in line and "the best" in line for line in said[-1].splitlines())
    here.breaks, here.trained = "", []
    assert "is ahead of 3 of 3 others" in swept(data, LR)
    assert [arm for arm, _, _ in here.trained] == ["lr=0.002"]


@pytest.mark.parametrize("sampler", ["random", "optuna"])
def test_some_of_the_points_are_trained_and_a_killed_choice_ends_as_an_undisturbed_one(here, data, sampler):
    axes = [
        "optim.lr=[0.001,0.002,0.003,0.004]",
        "model.dim=[8,16,32]",
        f"sampler={sampler}",
        "points=5",
        "seeds=[0,1]",
    ]
    said = []
    straight = swept(data, *axes, out=data.parent / "whole", said=said)
    assert f"10 trainings of 24, chosen by {sampler}, 0 are done already" in said[0]
    whole, here.trained, here.dies_after = here.trained, [], 3
    assert len(set(whole)) == len(whole) == 10
    assert len({arm for arm, _, _ in whole}) == 5
    out = data.parent / "killed"
    with pytest.raises(SystemExit):
        swept(data, *axes, out=out)
    here.dies_after = 10**9
    assert swept(data, *axes, out=out).replace("killed", "whole") == straight
    assert here.trained == whole
    more = [word if word != "points=5" else "points=6" for word in axes]
    swept(data, *more, out=out)
    assert here.trained[:10] == whole
    assert len(here.trained) == 12


def test_rows_of_another_protocol_are_set_aside_and_not_mixed_in(here, data):
    swept(data, "optim.lr=[0.001,0.002]")
    said = []
    swept(data, "optim.lr=[0.001,0.002]", "evaluation.held_out=0.5", said=said)
    assert any("sweep.csv held rows of other data or another protocol; they are in sweep-" in line for line in said)
    assert here.asked == 4  # the answers of the first time were to other questions


def test_data_that_cannot_rank_is_refused_before_anything_is_made(here, tmp_path):
    lone = written_manifest(tmp_path / "lone", videos=40, classes=20)  # two videos of a class, one group
    with pytest.raises(DataError, match="no group of videos can be held out"):
        swept(lone, LR)
    with pytest.raises(RecipeError, match="no data given; type data=FOLDER"):
        trainings.run_trainings("infonce-tiny", [LR])
    with pytest.raises(RecipeError, match="keeps the copy of one training, and `vidssl sweep` is more than that"):
        swept(lone, LR, "trainer.copy_to=s3://bucket/runs")
    assert not (tmp_path / "runs").exists()


def typed(packed, out, workers, rates):
    return [
        sys.executable, "-m", "cluster", "sweep", "cpr-tiny", "level=train", f"data={packed}", f"optim.lr={json.dumps(rates)}",
        "schedule=asha", "first_rung=0.5", "reduction=2", f"trainer.workers={workers}", "trainer.steps=24", "trainer.batch=8",
        "trainer.checkpoint_every_steps=6", "method.warmup_steps=8", "method.queue=16", "mining.pool=8", "mining.topk=2",
        "evaluation.windows=1", "clips.frames=4", "clips.size=32", "model.width=4", "model.dim=16", "--out", str(out),
    ]  # fmt: skip


def ended_in(out):
    found = rows_in(out) if (out / "sweep.csv").is_file() else []
    return [row for row in found if row["state"] != "goes on"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("workers", "trainings", "kills"), [(0, 8, (1, 4)), (1, 3, (1,))])
def test_a_real_sweep_killed_hard_goes_on_and_repeats_nothing(packed: Path, tmp_path, workers, trainings, kills):
    """Of trainings in the trials' own processes, and of trainings of Ray Train's; killed when so many have ended."""
    out, said = tmp_path / "sweep", tmp_path / "said.txt"
    words = typed(packed, out, workers, [0.003 / 3**number for number in range(trainings)])
    for ended in kills:
        with said.open("wb") as file:
            first = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            deadline = time.monotonic() + 900
            while len(ended_in(out)) < ended:
                assert first.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.2)
            first.send_signal(signal.SIGKILL)
            first.wait()
    before = rows_in(out)
    done = {row["run"]: row for row in before if row["state"] != "goes on"}
    stamps = {name: sorted(p.stat().st_mtime_ns for p in (out / "trials" / name).rglob("*.pt")) for name in done}
    again = subprocess.run(words, capture_output=True, text=True, timeout=1500, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"{trainings} trainings, {len(done)} are done already" in again.stderr
    after = rows_in(out)
    assert {row["run"] for row in after if row["state"] != "goes on"} == {row["run"] for row in after}
    assert len({row["run"] for row in after}) == trainings
    assert [row for row in after if row["run"] in done] == [row for row in before if row["run"] in done]
    for name, times in stamps.items():
        assert sorted(p.stat().st_mtime_ns for p in (out / "trials" / name).rglob("*.pt")) == times
    finished = next(row for row in after if row["state"] == "finished")
    folder = RunFolder(out / "trials" / finished["run"])
    asked = json.loads((out / "sweep.json").read_text())["id"]
    kept = kept_at(folder, 24, asked)
    assert kept.r1 == pytest.approx(float(finished["r1"]), abs=1e-5)
    assert held_out_recall(folder.path, folder.read_recipe().evaluation, asked).hits == kept.hits  # asked again, here
    for row in after:
        steps = [one["step"] for one in RunFolder(out / "trials" / row["run"]).read_log()]
        assert steps == sorted(set(steps))
    best = load_recipe(str(out / "best.yaml"))
    rates = [float(row["arm"].partition("=")[2]) for row in after if row["state"] == "finished"]
    assert any(best.optim.lr == pytest.approx(rate, rel=1e-3) for rate in rates)
    assert run_folder_of(best).path.name == "cpr-tiny-best"
    assert (out / "sweep.png").is_file()
    assert not (out / ".tune").exists()
    assert "R@1" in again.stdout
