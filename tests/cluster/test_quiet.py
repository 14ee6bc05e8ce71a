"""What Ray prints of its own becomes one line, once, and what the run says itself is left out."""

from __future__ import annotations

import ray._private.worker as worker
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api import data_parallel_trainer

from cluster.quiet import end_at_once, quiet_ray


def test_a_message_is_one_short_line_once_and_those_of_lost_nodes_are_none(monkeypatch, capsys):
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    quiet_ray()
    dump = "Raylet is terminated. Termination is unexpected.\n" + "    [state-dump] numbers\n" * 40
    for lines in (
        [dump],
        ["\n  2 Workers killed due to memory pressure " + "x" * 300 + "\nmore"],
        ["  2 Workers killed"],
        [""],
    ):
        for _ in range(2):
            worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert [line[:40] for line in said.err.splitlines()] == [
        "ray: 2 Workers killed due to memory pres",
        "ray: 2 Workers killed",
    ]
    assert all(len(line) <= 166 for line in said.err.splitlines())


def test_only_a_ray_of_this_command_alone_does_without_the_cleaner(monkeypatch):
    name = "PlacementGroupCleanerCallback"
    monkeypatch.setattr(data_parallel_trainer, name, object)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    end_at_once()
    assert getattr(data_parallel_trainer, name) is object
    monkeypatch.delenv("RAY_ADDRESS")
    end_at_once()
    assert getattr(data_parallel_trainer, name) is ControllerCallback
