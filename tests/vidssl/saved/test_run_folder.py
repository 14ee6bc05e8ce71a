"""Files of a run that are torn or of another shape: read as far as they can be, with a word, or named in a sentence."""

from __future__ import annotations

import json

import pytest

from vidssl.errors import CheckpointError, RecipeError, StorageError
from vidssl.saved.run_folder import RunFolder, open_run


def test_rows_of_a_log_that_are_none_are_left_out_with_a_word(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(
        b'{"step": 0, "loss": 1.5}\n[1]\n"x"\n{"loss": 2}\n{"step": "one"}\n\xff\xfe\n{"step": 4, "x": null}\n{"st'
    )
    assert folder.read_log() == [{"step": 0, "loss": 1.5}, {"step": 4}]
    assert "5 lines are no logged steps and are left out (first: 2)" in caplog.text


def test_a_line_torn_by_a_kill_is_no_matter(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.log.write_text('{"step": 0}\n{"st')
    assert folder.read_log() == [{"step": 0}]
    assert caplog.text == ""
    assert RunFolder(tmp_path / "none").read_log() == []


def test_a_log_that_cannot_be_cut_stays_as_it_was(small_disk):
    folder = RunFolder(small_disk(0.02))
    whole = "".join(json.dumps({"step": step}) + "\n" for step in range(600))
    folder.log.write_text(whole)
    (folder.path / "filler").write_bytes(b"x" * 8000)
    with pytest.raises(StorageError, match=r"log\.jsonl cannot be written: the disk .* is full"):
        folder.forget_log_after(590)
    assert folder.log.read_text() == whole
    assert {path.name for path in folder.path.iterdir()} == {"log.jsonl", "filler"}


@pytest.mark.parametrize("content", [b'{"data_hash": "a', b"[]", b"3", b"\xff", b"[" * 100_000])
def test_torn_facts_are_named_with_what_to_do(tmp_path, content):
    folder = RunFolder(tmp_path)
    assert folder.read_facts() == {}
    folder.facts.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged \([^\n]*\); .*remove it to go on without$"):
        folder.read_facts()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- 1\n", b"{", b"a: *x", b"name: 3\nmethod: 7\n"])
def test_a_recipe_of_another_shape_is_one_sentence(tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        open_run(tmp_path).read_recipe()
    assert "\n" not in str(caught.value)
