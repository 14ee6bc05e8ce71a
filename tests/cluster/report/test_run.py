"""What a run says of itself: logs with other rows in them, facts that are torn."""

from __future__ import annotations

import json

import pytest

from cluster.report.run import open_reported, read_log
from vidssl.errors import CheckpointError
from vidssl.recipe import load_recipe
from vidssl.saved.run_folder import RunFolder

STEP = {"step": 3, "epoch": 0, "loss": 2.5}


def log_of(tmp_path, *lines):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_log(path)


@pytest.mark.parametrize(
    "other",
    [b"[1, 2]", b"3", b"null", b'"step"', b"{}", b'{"loss": 1}', b'{"step": "one"}', b'{"step": true}', b"\xff\xfe",
     b'{"step": NaN}', b'{"step": 1', b"[" * 100_000, b""],
)  # fmt: skip
def test_a_line_that_is_no_step_is_left_out_and_said(tmp_path, other):
    log = log_of(tmp_path, json.dumps(STEP).encode(), other, json.dumps(STEP | {"step": 4}).encode())
    assert [row["step"] for row in log.rows] == [3, 4]
    assert log.lost == "1 line of log.jsonl is no logged step and was left out."


def test_a_last_line_that_a_kill_cut_is_no_surprise(tmp_path):
    log = log_of(tmp_path, json.dumps(STEP).encode(), b'{"step": 4, "lo')
    assert len(log.rows) == 1
    assert log.lost == ""


def test_values_that_cannot_be_drawn_are_left_out_of_their_row(tmp_path):
    log = log_of(tmp_path, b'{"step": 1, "loss": NaN, "lr": 0.5, "note": "x", "more": {"a": 1}, "on": true}', b"")
    assert log.rows == ({"step": 1.0, "lr": 0.5},)


def test_a_run_without_a_log_has_no_rows(tmp_path):
    assert read_log(tmp_path / "log.jsonl").rows == ()


def test_facts_of_another_shape_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(load_recipe("cpr-tiny").to_yaml())
    assert open_reported(tmp_path)[2].command is None
    folder.facts.write_text(json.dumps({"command": "vidssl train x", "versions": {"torch": "2"}, "gpu": None}))
    assert open_reported(tmp_path)[2].command == "vidssl train x"
    for torn in ("{", "[]", '{"versions": 3}'):
        folder.facts.write_text(torn)
        with pytest.raises(CheckpointError, match=r"run.json is .*; remove it and write the report again"):
            open_reported(tmp_path)
