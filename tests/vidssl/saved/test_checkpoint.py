from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vidssl.errors import CheckpointError
from vidssl.saved.checkpoint import (
    Meta,
    checkpoint_path,
    latest_step,
    random_state,
    read_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from vidssl.saved.run_folder import RunFolder, open_run


def write(folder: RunFolder, step: int, keep: int = 2, value: float = 0.0) -> None:
    state = {"array": np.arange(3), "nested": {"number": np.float32(1.5), "list": [torch.ones(2), "text"]}}
    save_checkpoint(
        folder, Meta(step, "r", "d", 1, 0), 0, state, {"weight": torch.full((1000,), value)}, lambda: None, keep
    )


def test_what_was_saved_is_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 7, value=3.0)
    meta, shared, own = read_checkpoint(folder, 7, rank=0)
    assert meta.step == latest_step(folder) == 7
    assert shared["weight"].eq(3.0).all()
    assert own["array"].tolist() == [0, 1, 2]
    assert own["nested"]["number"] == 1.5


def test_only_the_newest_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        write(folder, step)
    assert not checkpoint_path(folder, 10).exists()
    assert latest_step(folder) == 30


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 5)
    (checkpoint_path(folder, 5) / "model.pt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"step-00000005 is damaged or incomplete"):
        read_checkpoint(folder, 5)


def test_random_draws_continue_where_they_were():
    state = random_state()
    drawn = torch.rand(4)
    restore_random_state(state)
    assert torch.equal(torch.rand(4), drawn)


def test_a_kill_while_writing_leaves_the_last_whole_checkpoint(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from vidssl.saved.checkpoint import *; from vidssl.saved.run_folder import RunFolder\n"
        "folder, step = RunFolder(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    save_checkpoint(folder, Meta(step, 'r', 'd', 1, 0), 0, {}, {'w': torch.full((200_000,), float(step))}, lambda: None)\n"
        "    print(step, flush=True)\n"
    )
    folder = RunFolder(tmp_path)
    for trial in range(3):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(3):
            child.stdout.readline()
        time.sleep(0.003 * trial)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        step = latest_step(folder)
        assert step is not None
        assert read_checkpoint(folder, step)[1]["w"].eq(float(step)).all()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        open_run(tmp_path)


def test_a_resumed_log_forgets_the_steps_it_will_log_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log.write_text('{"step": 0}\n{"step": 10}\n{"step": 20}\n{"st')
    folder.forget_log_after(20)
    assert [row["step"] for row in folder.read_log()] == [0, 10]
