"""What does not say that we made it is neither removed nor written into."""

from __future__ import annotations

import pytest

from vidssl.errors import DataError
from vidssl.marks import LOCK, MARK, mark, mark_of, refuse_foreign, remove_marked


def test_absent_empty_and_marked_folders_may_be_written_into(tmp_path):
    refuse_foreign(tmp_path / "new", "run", "type name=OTHER")
    refuse_foreign(tmp_path, "run", "type name=OTHER")
    mark(tmp_path, "run")
    (tmp_path / "log.jsonl").touch()
    refuse_foreign(tmp_path, "run", "type name=OTHER")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"made_by": "somebody", "kind": "run", "version": "1"}'])
def test_a_filled_folder_without_our_mark_is_left_alone(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:
        (tmp_path / MARK).write_text(content)
    assert mark_of(tmp_path) is None
    with pytest.raises(
        DataError, match="holds files that vidssl did not make, and they are left alone; type name=OTHER"
    ):
        refuse_foreign(tmp_path, "run", "type name=OTHER")
    with pytest.raises(DataError, match="did not make"):
        remove_marked(tmp_path, "run", ["*"])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_of_another_kind_or_a_file_is_refused(tmp_path):
    mark(tmp_path, "pack")
    with pytest.raises(DataError, match="was made as a pack, not as a run"):
        refuse_foreign(tmp_path, "run", "type name=OTHER")
    (tmp_path / "a").touch()
    with pytest.raises(DataError, match="is a file and a folder is needed"):
        refuse_foreign(tmp_path / "a", "run", "type name=OTHER")


def test_only_what_we_made_is_removed_and_what_was_left_is_named(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    (run / LOCK).touch()
    mark(run, "run")
    assert remove_marked(run, "run", ["checkpoints", "log.jsonl"]) == ["notes.txt"]
    assert sorted(path.name for path in run.iterdir()) == [MARK, LOCK, "notes.txt"]
    (run / "notes.txt").unlink()
    (run / LOCK).unlink()
    assert remove_marked(run, "run", ["checkpoints"]) == []
    assert not run.exists()


def test_a_link_in_our_folder_is_removed_and_not_what_it_points_to(tmp_path):
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    (theirs / "film.mp4").touch()
    run.mkdir()
    (run / "eval").symlink_to(theirs)
    mark(run, "run")
    assert remove_marked(run, "run", ["eval"]) == []
    assert (theirs / "film.mp4").exists()


def test_a_folder_whose_maker_was_killed_while_he_marked_it_may_be_taken_again(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / f".{MARK}.host-1-2-3.part").write_text('{"made')  # as `vidssl.files` names it
    refuse_foreign(tmp_path, "pack", "give another OUT")


def test_a_folder_below_a_file_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be made: .*notes\.txt is a file; type name=OTHER"):
        refuse_foreign(tmp_path / "notes.txt" / "runs" / "one", "run", "type name=OTHER")
