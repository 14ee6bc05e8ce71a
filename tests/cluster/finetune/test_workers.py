"""A fine-tuning on several ranks is the one of one process: the same batches, statistics, dropout and answers."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess

import numpy as np
import pytest
import torch

from cluster.finetune.fit import Fit
from cluster.finetune.run import finetune_run
from cluster.finetune.task import settle
from cluster.launch import ray_session
from tests.cluster.finetune.test_run import FAST, make_run, packed_motions, quiet
from tests.vidssl.methods.two_ranks import found_by_ranks
from vidssl.errors import DeviceError
from vidssl.evaluation.class_scores import load_scores

pytestmark = pytest.mark.usefixtures("usual_signals")

CPU = torch.device("cpu")
WORDS = [*FAST, "finetune.workers=2", "evaluation.batch=3"]


@pytest.fixture(scope="module")
def ray():
    """One for all tests of this module that need it."""
    with ray_session(2):
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return packed_motions(tmp_path_factory.mktemp("data"), 14)


def fit(path, words, stop_after=None):
    """What the rank that this is finds, alone or among others; stopped where the line of epoch `stop_after` is said."""
    said: list[str] = []

    def asked():
        return stop_after is not None and any(line.startswith(f"epoch {stop_after:>4}/") for line in said)

    task = settle(path, words)
    return Fit(task, CPU, said.append, asked).run(), said


def as_tensor(answers):
    """For a file that holds tensors alone."""
    return torch.frombuffer(bytearray(pickle.dumps(answers)), dtype=torch.uint8)


def on_one_rank(me, home):
    fine, _ = fit(home / "fine", WORDS)
    linear, _ = fit(home / "linear", [*WORDS, "finetune.backbone_lr=0"])
    stopped, _ = fit(home / "stopped", [*WORDS, "finetune.epochs=3"], stop_after=1)
    return {"fine": as_tensor(fine), "linear": as_tensor(linear), "stopped": stopped is None}


@pytest.fixture(scope="module")
def both(packed, tmp_path_factory):
    """Ranks' folder, and what each of the two found."""
    home = tmp_path_factory.mktemp("runs")
    for name in ("fine", "linear", "stopped"):
        make_run(home / name, packed)
    return home, found_by_ranks(on_one_rank, home)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fine", "linear"])
def test_two_ranks_are_one_process_with_the_whole_batch(both, packed, tmp_path, kind):
    _, ranks = both
    words = [*WORDS, "finetune.backbone_lr=0"] if kind == "linear" else WORDS
    alone, _ = fit(make_run(tmp_path / kind, packed).path, words)
    found = [pickle.loads(rank[kind].numpy().tobytes()) for rank in ranks]
    assert found[0].history == found[1].history
    np.testing.assert_array_equal(found[0].chosen.probability, found[1].chosen.probability)
    for got, wanted in zip(found[0].history, alone.history, strict=True):
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4)
        assert got[2:4] == pytest.approx(wanted[2:4])
    assert found[0].best == alone.best
    np.testing.assert_array_equal(found[0].chosen.instance, alone.chosen.instance)
    np.testing.assert_array_equal(found[0].chosen.label, alone.chosen.label)
    np.testing.assert_allclose(found[0].chosen.probability, alone.chosen.probability, atol=1e-4)
    assert found[0].chosen.rows == alone.chosen.rows


@pytest.mark.slow
def test_one_process_goes_on_where_two_ranks_were_stopped(both, packed, tmp_path):
    home, ranks = both
    assert [rank["stopped"] for rank in ranks] == [True, True]
    words = [*WORDS, "finetune.epochs=3"]
    resumed, said = fit(home / "stopped", words)
    assert said[0].startswith("going on after step ")
    straight, _ = fit(make_run(tmp_path / "straight", packed).path, words)
    for got, wanted in zip(resumed.history, straight.history, strict=True):
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4)
    np.testing.assert_allclose(resumed.last.probability, straight.last.probability, atol=1e-3)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
@pytest.mark.usefixtures("ray")
def test_ray_train_workers_find_what_one_process_finds_and_the_driver_says_their_lines(packed, tmp_path):
    one, many = make_run(tmp_path / "one", packed), make_run(tmp_path / "many", packed)
    finetune_run(one.path, [*FAST, "finetune.workers=0"], quiet)
    said: list[str] = []
    result = finetune_run(many.path, [*FAST, "finetune.workers=2"], said.append)
    assert said[0] == "fine-tuning with 2 worker(s), 1 core(s) each, 2 videos of a step each"
    assert [line[:12] for line in said[1:]] == ["epoch    1/2", "epoch    2/2"]
    assert result.protocol.device == "cpu"
    alone, found = (load_scores(run.evaluation / "finetune.npz")[0] for run in (one, many))
    np.testing.assert_allclose(found.probability, alone.probability, atol=1e-4)
    assert not (many.path / "finetune" / "ray").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [3, 4, 99])
def test_workers_that_cannot_share_the_batch_are_refused_with_those_that_can(packed, tmp_path, workers):
    run = make_run(tmp_path / "run", packed)
    sentence = rf"finetune\.workers={workers} cannot share finetune\.batch=4 .* type finetune\.workers= one of 1, 2"
    with pytest.raises(DeviceError, match=sentence):
        finetune_run(run.path, [*FAST, f"finetune.workers={workers}"], quiet)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("ray")
def test_a_worker_that_is_killed_costs_some_steps_and_no_number(packed, tmp_path):
    words = [*FAST, "finetune.epochs=12", "finetune.workers=2"]
    straight = finetune_run(make_run(tmp_path / "straight", packed).path, words, quiet)  # undisturbed, with two as well
    run, said, killed = make_run(tmp_path / "killed", packed), [], []

    def kill_one(line):
        said.append(line)
        if line.startswith("epoch    3/") and not killed:
            killed.append(one_worker())
            os.kill(killed[0], signal.SIGKILL)

    result = finetune_run(run.path, words, kill_one)
    assert killed
    assert result.results.last.epoch == 12
    for got, wanted in zip(result.history, straight.history, strict=True):
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-5)


def one_worker():
    """A Ray Train worker below this process."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    below, found = {str(os.getpid())}, []
    for _ in range(4):
        below |= {pid for pid, parent, _ in rows if parent in below}
        found = [int(pid) for pid, _, words in rows if pid in below and "ray::RayTrainWorker" in words]
    return found[0]
