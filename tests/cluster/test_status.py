"""`vidssl status`: what a run's folder says of it, whether it lives, has ended, or went without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.cli import main
from cluster.status import status_of
from vidssl.files import write_json
from vidssl.lock import held
from vidssl.marks import LOCK, mark
from vidssl.recipe import recipe_from_tree
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.phases import finish_phase
from vidssl.saved.run_folder import RunFolder

ROW = {
    "epoch": 2,
    "loss": 1.25,
    "clips_per_second": 80.0,
    "wait_ratio": 0.02,
    "step_ms": 100.0,
    "bank/fallback_ratio": 0.01,
}


@pytest.fixture
def run(tmp_path):
    """Makes a run of 40 steps of 8 videos, two clips each, that logged and saved so many."""

    def make(name="one", logged=10, saved=0, epochs=False):
        folder = RunFolder(tmp_path / "runs" / name)
        folder.path.mkdir(parents=True)
        mark(folder.path, "run")
        length = {"epochs": 4} if epochs else {"steps": 40}
        tree = {"name": name, "clips": {"per_video": 2}, "trainer": {"workers": 2, "batch": 4, **length}}
        folder.recipe.write_text(recipe_from_tree(tree).to_yaml())
        write_json(folder.facts, {"steps": 40} if epochs else {})
        folder.log.write_text("".join(json.dumps(ROW | {"step": step}) + "\n" for step in range(logged)))
        if saved:
            save_checkpoint(folder, Meta(saved, "r", "d", 1, 0), 0, {}, {})
        return folder

    return make


def of(folder):
    return status_of(folder, folder.read_recipe())


@pytest.mark.parametrize("epochs", [False, True])
def test_a_live_run_says_how_far_it_is_how_fast_and_how_long_it_takes(run, epochs):
    folder = run(logged=10, saved=8, epochs=epochs)
    with held(folder.path, "train"):
        status = of(folder)
    assert (status.state, status.step, status.total) == ("training", 10, 40)
    assert status.rate == pytest.approx(80)
    assert status.left_s == pytest.approx(30 * 16 / 80)
    assert f"process {os.getpid()} on" in status.words
    assert "loss 1.2500, wait 2 %, fallback 1 %" in status.words


def test_a_live_run_that_logs_nothing_any_more_is_silent(run, capsys):
    folder = run(logged=10)
    then = time.time() - 600
    for path in (folder.log, folder.recipe):
        os.utime(path, (then, then))
    with held(folder.path, "train"):
        assert main(["status", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert "silent" in said
    assert "no step for 10.0 min" in said


def test_another_command_at_work_there_is_named(run):
    folder = run(saved=40)
    with held(folder.path, "evaluate"):
        status = of(folder)
    assert (status.state, status.words.partition(",")[0]) == ("busy", "evaluate")


@pytest.mark.parametrize(
    ("saved", "state", "words"),
    [(0, "begun", "no checkpoint yet; to go on: vidssl train --resume"), (20, "stopped", "to go on: vidssl train"), (40, "finished", "loss")],
)  # fmt: skip
def test_how_a_run_ended(run, saved, state, words):
    folder = run(saved=saved)
    status = of(folder)
    assert (status.state, status.total) == (state, 40)
    assert status.words.startswith(words)
    assert status.step == (saved or 10)


def test_a_run_that_failed_says_why(run, capsys):
    folder = run(saved=20)
    write_json(folder.failure, {"kind": "DataError", "sentence": "the disk is gone", "again": False})
    assert main(["status", str(folder.path)]) == 0
    assert "failed            10/40                     the disk is gone" in capsys.readouterr().out


def test_a_run_whose_process_was_killed_is_lost(run):
    folder = run(saved=20)
    code = (
        "import sys, time; from pathlib import Path; from vidssl.lock import held\n"
        "with held(Path(sys.argv[1]), 'train'): print('here', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "here\n"
    assert of(folder).state == "training"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    status = of(folder)
    assert status.state == "lost"
    assert "went without a word, checkpoint of step 20; to go on: vidssl train --resume" in status.words


def test_all_runs_of_a_folder_and_all_phases_of_a_run_have_a_line(run, tmp_path, capsys, monkeypatch):
    run("a", saved=40)
    run("b", saved=20)
    whole = run("cycle")
    recipe = recipe_from_tree(
        {"name": "cycle", "phases": [{"name": "first-0"}, {"name": "second-0", "start": "first-0"}]}
    )
    whole.recipe.write_text(recipe.to_yaml())
    inner = RunFolder(whole.path / "first-0")
    inner.path.mkdir()
    inner.recipe.write_text(recipe_from_tree({"name": "first-0", "trainer": {"steps": 5}}).to_yaml())
    save_checkpoint(inner, Meta(5, "r", "d", 1, 0), 0, {}, {})
    finish_phase(recipe.phases[0], inner.read_recipe(), whole.path)
    (tmp_path / "runs" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["a", "finished", "40/40"],
        ["b", "stopped", "20/40"],
        ["cycle/first-0", "finished", "5/5"],
        ["cycle/second-0", "waiting", "0/?"],
    ]


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "is no run folder and holds none; type vidssl status RUN" in capsys.readouterr().err


def test_what_a_killed_command_left_in_a_run_s_folder_is_removed_and_nothing_else(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder, live = run("dead", saved=8), run("live")
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom vidssl.lock import held\n"
        "with held(Path(sys.argv[1]), 'train'):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder.path)], check=False)
    for flag in (folder.stop_flag, folder.resize_flag, folder.path / ".recipe.yaml.1.part"):
        flag.touch()
    (folder.path / ".ray" / "small").mkdir(parents=True)
    (folder.path / "mine.part").touch()  # no name of ours
    foreign = tmp_path / "runs" / "foreign"
    foreign.mkdir()
    for name in ("recipe.yaml", "STOP", LOCK):
        (foreign / name).touch()
    kept = {path for path in folder.path.rglob("*") if not path.name.startswith((".ray", "small", "STOP", "RESIZE"))}
    with held(live.path, "train"):
        live.stop_flag.touch()
        assert main(["status", str(tmp_path / "runs"), "--clean"]) == 0
        assert live.stop_flag.exists()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{folder.path}: removed {LOCK}, of a process that is gone"
    assert {line.split()[2].rstrip(",") for line in said[:5]} >= {LOCK, "STOP", "RESIZE", ".ray"}
    assert said[-2:] == [
        "RAY_ADDRESS is not set: on a machine by itself, Ray ends with the command that started it",
        f"{len(said) - 2} thing(s) removed",
    ]
    assert {path.name for path in foreign.iterdir()} == {"recipe.yaml", "STOP", LOCK}
    assert (folder.path / "mine.part").exists()
    left = set(folder.path.rglob("*"))
    assert {path.name for path in kept - left} == {LOCK, ".recipe.yaml.1.part"} & {path.name for path in kept - left}
    assert not {LOCK, "STOP", "RESIZE", ".ray"} & {path.name for path in left}
    assert main(["status", str(folder.path), "--clean"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was left"


@pytest.mark.ray
@pytest.mark.slow
def test_a_placement_group_of_a_killed_command_is_found_and_removed_and_another_s_is_not(tmp_path):
    """A head of its own; both groups outlive their processes, and one of these was ours."""
    group = (
        "import os, ray\nfrom ray.util import placement_group\nray.init(logging_level='ERROR')\n"
        "ray.get(placement_group([{'CPU': 1}], lifetime='detached').ready())\n"
        "class Stays:\n    def there(self): return True\n"
        "ray.get(ray.remote(num_cpus=0)(Stays).options(lifetime='detached').remote().there.remote())\nos._exit(9)\n"
    )
    for name in ("vidssl", "other"):
        (tmp_path / name).write_text(group)
    script = (
        "import os, subprocess, sys\nfrom ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'object_store_memory': 10**8})\n"
        "env = os.environ | {'RAY_ADDRESS': cluster.address}\n"
        "for name in ('vidssl', 'other'):\n"
        "    subprocess.run([sys.executable, '-W', 'ignore', name], env=env, cwd=sys.argv[1], check=False)\n"
        "for again in range(2):\n"
        "    subprocess.run([sys.executable, '-W', 'ignore', '-m', 'cluster', 'status', '--clean'], env=env, check=True)\n"
        "cluster.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    said = [line for line in done.stdout.splitlines() if "removed" in line or "left" in line]
    assert len(said) == 4, done.stdout
    assert "removed a placement group (1 CPU) of `" in said[0]
    assert "removed an actor Stays of `" in said[1]
    assert all("vidssl`, process" in line for line in said[:2])
    assert said[2:] == ["2 thing(s) removed", "nothing was left"]
