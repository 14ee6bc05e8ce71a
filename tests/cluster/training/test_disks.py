"""Disks that are full, or that fail for a moment, under a run that really trains on them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from cluster.training.driver import train
from cluster.training.folder import enter
from cluster.training.plan import plan_resume, plan_run
from tests.cluster.training.small_runs import leftovers, small
from vidssl.errors import DiskFullError
from vidssl.saved.checkpoint import latest_step, read_checkpoint

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data's own settings, read inside Ray Train
]


@pytest.mark.slow  # two trainings
def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_once_there_is_room(
    packed, tmp_path, small_disk, ray_cluster
):
    disk, said = small_disk(3), []
    words = ("trainer.steps=12", "trainer.checkpoint_every_steps=4", "model.width=5", f"trainer.storage={disk}")
    with pytest.raises(DiskFullError) as full:
        train(plan_run(small(packed, tmp_path, *words)), said.append)
    for part in (
        "the checkpoint of step 12 is not written",
        f"cannot be written: the disk {disk} is full (",
        " MB needed, ",
        "the one of step 8 is kept",
        f"vidssl train --resume {disk / 'small'}",
    ):
        assert part in str(full.value)
    assert not any("begin again" in line or "worker was lost" in line for line in said)  # no attempt was spent on it
    folder = plan_resume(disk / "small").folder
    assert latest_step(folder) == 8
    read_checkpoint(folder, 8, 0)
    assert leftovers(folder.path) == []
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    plan = plan_resume(folder.path)
    assert plan.notes == (f"{folder.path} holds this run: it goes on from step 8 of 12",)
    assert train(plan, said.append).steps == 12
    assert latest_step(folder) == 12
    assert [row["step"] for row in folder.read_log()] == list(range(12))


@pytest.mark.slow  # a training
def test_where_the_bank_finds_no_room_the_model_of_that_step_is_on_disk(packed, tmp_path, small_disk, ray_cluster):
    words = ("trainer.steps=4", "trainer.checkpoint_every_steps=4")
    plan = plan_run(small(packed, tmp_path, *words))
    enter(plan, [], "cpu")
    plan.folder.bank.rmdir()
    plan.folder.bank.symlink_to(small_disk(0.02))
    with pytest.raises(DiskFullError, match=r"snap-4.* is full"):
        train(plan_run(small(packed, tmp_path, *words)), print)
    assert latest_step(plan.folder) == 4
    read_checkpoint(plan.folder, 4, 0)


@pytest.mark.slow  # Ray takes half a minute to begin the workers again
def test_a_disk_that_fails_for_a_moment_costs_one_attempt_and_the_run_ends_well(
    packed, tmp_path, small_disk, ray_cluster
):
    words = ("trainer.steps=80", "trainer.checkpoint_every_steps=4")  # long enough to be met by the listener half way
    plan, said, stood = plan_run(small(packed, tmp_path, *words)), [], []
    enter(plan, [], "cpu")
    disk = small_disk(20)
    plan.folder.checkpoints.rmdir()
    plan.folder.checkpoints.symlink_to(disk)

    def remount(how: str) -> None:
        """Again while a file of a checkpoint is just being written: no disk becomes read-only under one."""
        deadline = time.monotonic() + 20
        while subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=False).returncode:
            assert time.monotonic() < deadline, f"{disk} could not be remounted {how}"
            time.sleep(0.002)

    def listen(line: str) -> None:
        said.append(line)
        if line.startswith("step      6/") and "begin again" not in " ".join(said):
            remount("ro")
        if "begin again" in line:
            stood.append(latest_step(plan.folder))
            remount("rw")

    outcome = train(plan_run(small(packed, tmp_path, *words)), listen)
    assert outcome.steps == 80
    assert latest_step(plan.folder) == 80
    told = [line for line in said if "begin again" in line]
    assert len(told) == 1
    assert "Read-only file system" in told[0]
    assert stood[0] >= 4
    assert f"all go on from step {stood[0]}" in said
    assert [row["step"] for row in plan.folder.read_log()] == list(range(80))


def test_a_run_folder_that_cannot_be_written_is_named(packed, tmp_path, small_disk, ray_cluster):
    disk = small_disk(3, "ro")
    before = list(Path(disk).iterdir())
    plan = plan_run(small(packed, tmp_path, f"trainer.storage={disk}"))
    with pytest.raises(Exception, match=rf"{disk}/small cannot be written \(Read-only file system\)"):
        train(plan)
    assert list(Path(disk).iterdir()) == before
