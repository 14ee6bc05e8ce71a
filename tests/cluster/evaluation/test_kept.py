"""Result files: those of earlier versions, those of other shapes, and that what is read is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.evaluation.kept import keep_results, read_results
from cluster.finetune.results import read_finetuned
from vidssl.errors import CheckpointError
from vidssl.records import to_tree

BEFORE = json.loads((Path(__file__).parent / "written_before.json").read_text())
"""Folder/file → content, written by the version before results had classes (two runs and a card's worth of cases)."""


@pytest.fixture
def before(tmp_path):
    for name, tree in BEFORE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree))
    return tmp_path


def everything(folder):
    return read_results(folder, "RUN") | read_finetuned(folder, "RUN")


def test_files_that_were_written_before_are_read_with_every_key_and_value(before):
    found = {
        f"{folder.name}/{name}.json": to_tree(one)
        for folder in before.iterdir()
        for name, one in everything(folder).items()
    }
    assert set(found) == set(BEFORE)

    def holds(new, old, where):
        if isinstance(old, dict):
            for key, value in old.items():
                holds(new[key], value, f"{where}.{key}")
        else:
            assert new == old, where

    for name, tree in BEFORE.items():
        holds(found[name], tree, name)


def test_what_is_kept_is_what_is_read(before, tmp_path):
    found = read_results(before / "one", "RUN")
    assert len(found) == 7
    keep_results(tmp_path / "again", found)
    assert read_results(tmp_path / "again", "RUN") == found


@pytest.mark.parametrize("name", sorted({name.partition("/")[2] for name in BEFORE}))
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"protocol"',
        "[]",
        "17",
        '"text"',
        "null",
        '{"protocol": 3, "results": 3}',
        '{"protocol": {}, "results": {}}',
        '{"step": 1, "loss": 2}',
    ],
)
def test_a_torn_or_foreign_result_is_one_sentence(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(
        CheckpointError, match=r"(is damaged|is of another shape) .*; remove it and type vidssl \w+ RUN"
    ) as error:
        everything(tmp_path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_results_of_two_streams_say_how_they_are_made_again(tmp_path):
    (tmp_path / "linear-joint.json").write_text("{")
    with pytest.raises(CheckpointError, match="type vidssl evaluate RUN what=linear view=joint"):
        read_results(tmp_path, "RUN")


def test_files_of_somebody_else_beside_the_results_are_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text("no JSON at all")
    assert everything(tmp_path) == {}
