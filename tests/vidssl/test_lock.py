"""One at a time works in a folder, on one machine or many, and an owner that is gone does not block it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vidssl import lock
from vidssl.errors import BusyError, StorageError
from vidssl.lock import held, owner_of
from vidssl.marks import LOCK

HOLD = (
    "import sys, time; from pathlib import Path; from vidssl.lock import held\n"
    "with held(Path(sys.argv[1]), 'train'):\n"
    "    print('held', flush=True); time.sleep(600)"
)


def started(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True)


def holder(folder: Path) -> subprocess.Popen[str]:
    child = started(HOLD, folder)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    child = holder(tmp_path)
    try:
        sentence = rf"is in use by `vidssl train` \(process {child.pid} on .+\), since \d{{4}}-.+; wait for it, stop it"
        with pytest.raises(BusyError, match=sentence), held(tmp_path, "evaluate"):
            pass
        owner = owner_of(tmp_path)
        assert owner is not None
        assert owner.pid == child.pid
    finally:
        child.kill()
        child.wait()


def test_the_lock_of_a_killed_owner_is_taken_over_with_a_word(tmp_path):
    child = holder(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert owner_of(tmp_path) is None
    said: list[str] = []
    with held(tmp_path, "train", said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(said) == 1
    assert f"process {child.pid}" in said[0]
    assert said[0].endswith("which is gone, is taken over")
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_was_used_again_does_not_keep_the_lock(tmp_path):
    with held(tmp_path, "train"):
        owner = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(owner | {"began": owner["began"] - 1}))
    said: list[str] = []
    with held(tmp_path, "train", said.append):
        assert len(said) == 1


def elsewhere(folder: Path) -> Path:
    """A lock of an owner on another machine, as of now."""
    with held(folder, "train"):
        owner = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(owner | {"host": "node-7", "machine": "other", "pid": 1}))
    return folder / LOCK


def test_on_another_machine_the_heartbeat_decides(tmp_path):
    path = elsewhere(tmp_path)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        began = time.monotonic()
        with pytest.raises(BusyError, match="process 1 on node-7"), held(tmp_path, "train"):
            pass
        assert time.monotonic() - began < 5  # its next beat is enough
    finally:
        beating.set()
        thread.join()
    then = time.time() - lock.STALE_S - 5
    os.utime(path, (then, then))
    said: list[str] = []
    with held(tmp_path, "train", said.append):
        assert "node-7" in said[0]


def test_an_owner_elsewhere_that_died_just_now_is_waited_for_and_taken_over(tmp_path, monkeypatch):
    """As when a job's machine dies and the job is begun again on another: it must not be refused for a minute and a half."""
    monkeypatch.setattr(lock, "STALE_S", 1.5)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    elsewhere(tmp_path)
    said: list[str] = []
    with held(tmp_path, "train", said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(said) == 2
    assert (
        "`vidssl train` (process 1 on node-7) holds it and says nothing; it counts as gone in 1 s, until then it is"
        in said[0]
    )
    assert said[1].endswith("which is gone, is taken over")


def test_an_owner_elsewhere_that_ends_while_it_is_watched_makes_room_at_once(tmp_path):
    path = elsewhere(tmp_path)
    threading.Timer(0.5, path.unlink).start()
    began = time.monotonic()
    with held(tmp_path, "train"):
        assert time.monotonic() - began < 5


def test_the_heartbeat_moves_on_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with held(tmp_path, "train"):
        os.utime(tmp_path / LOCK, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime > 1


def test_an_owner_whose_lock_is_taken_says_so_and_leaves_the_new_one_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    said: list[str] = []
    with held(tmp_path, "train", said.append):
        theirs = json.loads((tmp_path / LOCK).read_text()) | {"token": "theirs"}
        (tmp_path / LOCK).write_text(json.dumps(theirs))
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "was taken over by another" in said[0]
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "theirs"


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with held(tmp_path, "train"):
        with held(tmp_path, "evaluate"):
            assert (tmp_path / LOCK).is_file()
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_made_for_its_lock_goes_when_nothing_was_put_into_it(tmp_path):
    with held(tmp_path / "runs" / "a", "train"):
        pass
    assert not (tmp_path / "runs" / "a").exists()
    with held(tmp_path / "runs" / "b", "train"):
        (tmp_path / "runs" / "b" / "log").touch()
    assert [path.name for path in (tmp_path / "runs" / "b").iterdir()] == ["log"]


def test_of_many_that_want_a_dead_owners_lock_one_at_a_time_gets_it(tmp_path):
    child = holder(tmp_path)
    child.kill()
    child.wait()
    code = (
        "import sys, os, time; from pathlib import Path; from vidssl.errors import BusyError; from vidssl.lock import held\n"
        "folder, inside = Path(sys.argv[1]), Path(sys.argv[1]) / 'inside'\n"
        "got = wrong = 0\n"
        "for _ in range(60):\n"
        "    try:\n"
        "        with held(folder, 'train'):\n"
        "            try: os.close(os.open(inside, os.O_CREAT | os.O_EXCL))\n"
        "            except FileExistsError: wrong += 1\n"
        "            got += 1; inside.unlink(missing_ok=True)\n"
        "    except BusyError: time.sleep(0.001)\n"
        "print(got, wrong)"
    )
    children = [started(code, tmp_path) for _ in range(4)]
    results = [tuple(map(int, child.communicate(timeout=120)[0].split())) for child in children]
    assert sum(got for got, _ in results) > 0
    assert [wrong for _, wrong in results] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"file/run cannot be written \(Not a directory\)"),
        held(tmp_path / "file" / "run", "train"),
    ):
        pass


def test_what_a_killed_comer_left_beside_the_lock_is_swept_away_once_it_is_old(tmp_path):
    old, new = tmp_path / f"{LOCK}.old", tmp_path / f"{LOCK}.new"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 2 * lock.STALE_S,) * 2)
    with held(tmp_path, "test"):
        assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_was_made_for_a_lock_goes_again_when_the_lock_cannot_be_written(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from vidssl.lock import held\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # every byte is refused, as on a full disk
        "with held(Path(sys.argv[1]), 'train'): pass"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "new")], capture_output=True, text=True)
    assert "StorageError" in done.stderr
    assert "new cannot be written (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []
