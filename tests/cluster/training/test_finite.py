"""A loss that is no number ends a run at its step, on all ranks, and nothing of it reaches a checkpoint."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cluster.training.driver import train
from cluster.training.failure import Halt
from cluster.training.finite import FiniteWatch
from cluster.training.plan import plan_run
from tests.cluster.training.small_runs import leftovers, small
from vidssl.errors import VidsslError
from vidssl.saved.checkpoint import latest_step, read_checkpoint
from vidssl.saved.run_folder import RunFolder


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.slow])])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
def test_a_rate_of_1e30_stops_at_the_step_and_leaves_a_finite_checkpoint(packed, tmp_path, workers):
    words = [
        f"trainer.workers={workers}",
        "optim.name=sgd",
        "optim.lr=1e30",
        "optim.schedule=constant",
        "trainer.log_every_steps=20",
    ]
    recipe = small(packed, tmp_path, *words, "trainer.checkpoint_every_steps=1", "trainer.steps=40", "trainer.keep=9")
    said: list[str] = []
    with pytest.raises(VidsslError) as stopped:
        train(plan_run(recipe), said.append)
    found = re.search(
        r"the loss is not a finite number at step (\d+) of 40 \(rank [01], videos ([\d, ]+)\)", str(stopped.value)
    )
    assert found, stopped.value
    assert len(found[2].split(", ")) == 4
    assert "with a lower optim.lr (it is 1e+30)" in str(stopped.value)
    folder = RunFolder(tmp_path / "small")
    last = latest_step(folder)
    assert last == int(found[1]) - 1  # the step before it
    assert f"the last good one is {folder.checkpoints / f'step-{last:08d}'}" in str(stopped.value)
    _, shared, _ = read_checkpoint(folder, last)
    assert all(bool(t.isfinite().all()) for t in shared["method"].values() if t.is_floating_point())
    assert not any("worker was lost" in line or "begin again" in line for line in said)
    assert leftovers(folder.path) == []


def test_a_loss_is_looked_at_in_its_own_step_on_a_cpu(tmp_path, packed):
    watch = FiniteWatch(small(packed, tmp_path), RunFolder(tmp_path / "small"), 24)
    ids = np.arange(20)
    watch.note(0, torch.tensor(1.0), ids)
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(
            Halt, match=r"at step 2 of 24 \(rank 0, videos 0, 1, .*15, … 20 in all\): nothing of it was"
        ):
            watch.note(1, torch.tensor(bad), ids)
    watch.settle()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_loss_on_a_gpu_is_looked_at_a_few_steps_later_and_before_anything_is_saved(tmp_path, packed):
    device = torch.device("cuda")
    watch = FiniteWatch(small(packed, tmp_path), RunFolder(tmp_path / "small"), 24)
    ids = np.arange(4)
    watch.note(0, torch.tensor(float("nan"), device=device), ids)
    with pytest.raises(Halt, match=r"at step 1 of 24"):
        watch.settle()
    watch.note(1, torch.tensor(float("nan"), device=device), ids)
    watch.note(2, torch.tensor(1.0, device=device), ids)
    with pytest.raises(Halt, match=r"at step 2 of 24"):
        watch.note(3, torch.tensor(1.0, device=device), ids)
