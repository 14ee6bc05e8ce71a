"""Files and folders are whole or absent, and full disks are named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidssl.files import disk_words, folder_aside, remove_parts, write_json, write_whole, written_aside


def test_an_error_leaves_the_former_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "before")
    with pytest.raises(TypeError, match="bytes-like"), written_aside(path) as stream:
        stream.writelines([b"after", "half way"])
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_number_that_json_has_no_word_for_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_the_former_one_whole(tmp_path):
    target = tmp_path / "card"
    for names in (["a", "b"], ["c"]):
        with folder_aside(target) as folder:
            for name in names:
                (folder / name).write_text(name)
        assert sorted(path.name for path in target.iterdir()) == names
    with pytest.raises(FileNotFoundError), folder_aside(target) as folder:
        (folder / "d").rename(folder / "e")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


def test_a_file_that_is_being_replaced_when_the_process_is_killed_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "state.json"
    code = (
        "import sys; from pathlib import Path; from vidssl.files import write_json\n"
        "number = 0\n"
        "while True: number += 1; write_json(Path(sys.argv[1]), [number] * 20000)"
    )
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.15)
        child.send_signal(signal.SIGKILL)
        child.wait()
        rows = json.loads(path.read_text())
        assert len(rows) == 20000
        assert len(set(rows)) == 1
        path.unlink()
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_others_are_not_ours_to_remove(tmp_path):
    for name in ("film.part", ".film.part", ".film.1-2.part"):
        (tmp_path / name).write_text("theirs")
    remove_parts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_is_named_with_what_was_needed_and_what_is_free(tmp_path):
    said = disk_words(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "not" / "there", 3_000_000)
    assert "is full (3.0 MB needed, " in said
    assert said.endswith("free)")
    assert next(part for part in said.split() if os.path.ismount(part))
    read_only = disk_words(OSError(errno.EROFS, os.strerror(errno.EROFS)), Path("/somewhere"))
    assert read_only == "/somewhere cannot be written (Read-only file system)"
