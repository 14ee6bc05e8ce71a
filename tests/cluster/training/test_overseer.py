"""Workers whose driver has died end; workers of a run that another driver goes on with write nothing more."""

from __future__ import annotations

import os
import time

import pytest

from cluster.training import overseer
from cluster.training.overseer import Overseer
from vidssl.errors import BusyError
from vidssl.lock import held, token_of
from vidssl.marks import LOCK
from vidssl.saved.run_folder import RunFolder


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(overseer, "LOOK_S", 0.0)
    monkeypatch.setattr(overseer, "STALE_S", 0.3)


def test_while_the_driver_lives_nothing_happens(tmp_path):
    with held(tmp_path, "train"):
        seen = Overseer(RunFolder(tmp_path), token_of(tmp_path))
        for _ in range(8):
            os.utime(tmp_path / LOCK)
            assert not seen.gone()
            seen.refuse_another()
            time.sleep(0.1)


def test_a_driver_that_says_nothing_any_more_is_gone(tmp_path):
    with held(tmp_path, "train"):
        seen = Overseer(RunFolder(tmp_path), token_of(tmp_path))
        assert not seen.gone()
        time.sleep(0.4)
        assert seen.gone()
        seen.refuse_another()  # nobody else has it: the last checkpoint may be written
        os.utime(tmp_path / LOCK)
        assert not seen.gone()


def test_a_lock_that_is_old_when_it_is_first_seen_is_given_time_as_after_a_sleep(tmp_path):
    with held(tmp_path, "train"):
        os.utime(tmp_path / LOCK, (1, 1))
        seen = Overseer(RunFolder(tmp_path), token_of(tmp_path))
        assert not seen.gone()


def test_where_another_driver_goes_on_nothing_more_is_written(tmp_path):
    with held(tmp_path, "train"):
        token = token_of(tmp_path)
    with held(tmp_path, "train"):
        seen = Overseer(RunFolder(tmp_path), token)
        assert seen.gone()
        with pytest.raises(BusyError, match=rf"another process goes on with {tmp_path} now: .*write nothing more"):
            seen.refuse_another()


def test_a_store_that_is_away_is_no_driver_that_died(tmp_path):
    seen = Overseer(RunFolder(tmp_path / "away"), "token")
    time.sleep(0.4)
    assert not seen.gone()
    seen.refuse_another()
    assert not Overseer(RunFolder(tmp_path), "").gone()
