"""One slow rank is named with its node and what it is slow with; noise, and ranks that are all slow, are not."""

from __future__ import annotations

import json
import time

import torch
from torch import nn

from cluster.training.laggard import ForwardTime, Laggard, OwnTime
from vidssl.saved.run_folder import RunFolder

FAST, SLOW = OwnTime(5, 100, (10, 40, 10)), OwnTime(300, 100, (20, 380, 15))


def laggard(folder):
    (folder / "ranks.json").write_text(json.dumps([{"pid": 1, "node": f"10.0.0.{rank}"} for rank in range(4)]))
    return Laggard(RunFolder(folder))


def test_a_rank_that_waits_for_its_data_is_named_once_with_the_stage(tmp_path):
    seen = laggard(tmp_path)
    said = [seen.judge([FAST, FAST, SLOW, FAST], 450) for _ in range(6)]
    assert said[:2] == ["", ""]
    assert said[2] == (
        "rank 2 on 10.0.0.2 is slow: 400 ms of its own in a step of 450 ms, where the other ranks take 105; 300 ms of it waiting "
        "for data, most of a batch's 415 ms being decode; all wait for it"
    )
    assert said[3:] == ["", "", ""]


def test_a_rank_that_computes_slowly_is_named_for_that(tmp_path):
    seen = laggard(tmp_path)
    said = [seen.judge([OwnTime(1, 90), OwnTime(2, 260)], 300) for _ in range(3)]
    assert said[2].endswith("where the other ranks take 91; 260 ms of it in its forward pass; all wait for it")


def test_noise_and_ranks_that_take_turns_say_nothing(tmp_path):
    seen = laggard(tmp_path)
    for row in range(12):
        assert not seen.judge([SLOW if rank == row % 4 else FAST for rank in range(4)], 450)
        assert not laggard(tmp_path).judge([FAST, OwnTime(5, 140)], 250)
    assert not any(seen.judge([SLOW] * 4, 450) for _ in range(6))
    assert not any(seen.judge([OwnTime(0.1, 1), OwnTime(0.1, 9)], 500) for _ in range(6))  # too little to matter
    assert not any(seen.judge([SLOW], 450) for _ in range(6))


def test_forward_passes_are_timed_and_nothing_else():
    class Slow(nn.Module):
        def forward(self, rows):
            time.sleep(0.05)
            return rows

    module = Slow()
    timed = ForwardTime(module)
    for _ in range(3):
        module(torch.zeros(1))
        time.sleep(0.02)
    assert 0.15 <= timed.taken() < 0.2
    assert timed.taken() == 0.0
