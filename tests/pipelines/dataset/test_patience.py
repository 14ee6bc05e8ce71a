from __future__ import annotations

import errno
import os
import re
import threading

import pytest

from pipelines.dataset import patience as module
from pipelines.dataset.patience import Patience, Stopped, read_whole
from vidssl.errors import StorageError


def failing(times: int, number: int = errno.EIO):
    """An attempt that fails so often, then answers with how often it was made."""
    made = []

    def ask() -> int:
        made.append(1)
        if len(made) <= times:
            raise OSError(number, os.strerror(number))
        return len(made)

    return ask


def test_an_answer_is_waited_for_with_growing_pauses(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, pause: pauses.append(pause) or False)
    said: list[str] = []
    patience = Patience(240.0, said.append)
    assert patience.insist("shard-00003.tar", failing(9)) == 10
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert patience.retries == 9
    assert said == [
        "shard-00003.tar could not be read (Input/output error) and is tried again; later retries are counted, not said"
    ]


def test_a_retry_is_said_once_and_every_one_is_counted():
    said: list[str] = []
    patience = Patience(10.0, said.append)
    assert [patience.insist(name, failing(1)) for name in ("a.tar", "b.tar", "a.tar")] == [2, 2, 2]
    assert patience.retries == 3
    assert len(said) == 1


def test_a_wait_is_said_when_it_begins_and_when_it_ends(monkeypatch):
    monkeypatch.setattr(module, "SAY_AFTER_S", 0.2)
    said: list[str] = []
    patience = Patience(30.0, said.append)
    for _ in range(2):
        patience.insist("shard-00003.tar", failing(5, errno.ENOENT))
    away = "shard-00003.tar cannot be reached (No such file or directory): waiting for it, 30 s at most"
    back = re.compile(r"shard-00003\.tar is back after \d+ s: going on")
    assert said[1::2] == [away, away]
    assert all(back.fullmatch(sentence) for sentence in said[2::2])
    assert len(said) == 5
    assert patience.waited_s >= 2 * 1.55


def test_it_gives_up_after_its_limit_with_an_error_that_is_not_final():
    patience = Patience(0.3)
    with pytest.raises(
        StorageError,
        match=r"shard-00003\.tar could not be reached for 0 s \(Stale file handle\); when it is back go on with --resume",
    ) as told:
        patience.insist("shard-00003.tar", failing(99, errno.ESTALE))
    assert not told.value.final
    assert patience.retries >= 2


def test_no_patience_is_one_attempt():
    patience = Patience(0.0)
    with pytest.raises(StorageError, match="could not be reached for 0 s"):
        patience.insist("x", failing(1))
    assert patience.retries == 0


def test_what_is_no_error_of_the_disk_is_not_tried_again():
    with pytest.raises(ZeroDivisionError):
        Patience(9.0).insist("x", lambda: 1 // 0)


def test_who_no_longer_wants_the_answer_ends_the_wait():
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        Patience(3600.0, lambda sentence: None, stop).insist("x", failing(10**6))


def test_a_small_file_that_is_not_there_is_an_answer(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_whole("nothing", (tmp_path / "nothing").read_bytes)
    (tmp_path / "some").write_bytes(b"abc")
    assert read_whole("some", (tmp_path / "some").read_bytes) == b"abc"
