"""`auto` asks a table that was measured on this machine, keeps it, and measures nothing where nothing can be kept."""

from __future__ import annotations

import logging

import pytest

from vidssl.mining import choice
from vidssl.mining.choice import ASK_FROM, Table, cache_file, choose_backend, measured


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kept in (choice.table, choice._log_choice):
        kept.cache_clear()
    yield tmp_path / "cache"
    choice.table.cache_clear()


@pytest.fixture
def measuring(monkeypatch):
    calls = []

    def measure(hardware, threads):
        calls.append(threads)
        return Table(hardware, 0.005, (9.0, 9.0, 9.0), (3.0, 4.0, 20.0))

    monkeypatch.setattr(choice, "measured", measure)
    return calls


@pytest.mark.parametrize(
    ("n_slots", "first", "on_gpu", "half", "expected"),
    [
        (2048, 5, True, False, "torch"),
        (2048, 5, False, False, "numpy"),
        (ASK_FROM - 1, 900, False, False, "numpy"),
        (ASK_FROM, ASK_FROM // 10, False, False, "numpy"),
        (ASK_FROM, ASK_FROM // 100, False, False, "numpy"),
        (ASK_FROM, ASK_FROM // 300, False, False, "faiss"),
        (ASK_FROM, ASK_FROM // 300, False, True, "numpy"),
    ],
)
def test_auto_takes_faiss_where_the_table_says_that_it_is_faster(n_slots, first, on_gpu, half, expected, measuring):
    assert choose_backend(n_slots, first, on_gpu, half) == expected


def test_a_machine_is_measured_once_and_its_table_is_read_afterwards(measuring, cache, caplog):
    with caplog.at_level(logging.INFO, "vidssl.mining.choice"):
        first = choice.table(1)
    (path,) = (cache / "vidssl").glob("mining-*.json")
    assert "FAISS is faster for first stages up to 0.50% of the bank" in caplog.text
    assert str(path) in caplog.text
    choice.table.cache_clear()
    assert choice.table(1) == first
    assert measuring == [1]
    choice.table(2)  # another number of threads is another machine
    assert measuring == [1, 2]


@pytest.mark.parametrize("spoiled", ["", "{}", "[1]", '{"hardware": "another", "faiss_up_to": 1}'])
def test_a_table_that_is_damaged_or_of_another_machine_is_not_believed(spoiled, measuring, cache):
    path = cache_file(choice._hardware(1))
    path.parent.mkdir(parents=True)
    path.write_text(spoiled)
    assert choice.table(1).faiss_up_to == 0.005


def test_where_nothing_can_be_kept_nothing_is_measured_and_it_says_so(measuring, cache, caplog):
    cache.write_text("a file where the folder should be")
    assert choose_backend(ASK_FROM, 100, False) == "numpy"
    assert measuring == []
    assert "cannot be kept" in caplog.text
    assert "numpy mines" in caplog.text


def test_the_measurement_itself_gives_times_of_both_for_every_share(monkeypatch):
    monkeypatch.setattr(choice, "PROBE", (4096, 4))
    found = measured("here", threads=1)
    assert len(found.numpy_ms) == len(found.faiss_ms) == len(choice.SHARES)
    assert all(ms > 0 for ms in found.numpy_ms + found.faiss_ms)
    assert found.faiss_up_to in (0.0, *choice.SHARES)


def test_the_choice_of_auto_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "vidssl.mining.choice"):
        for _ in range(3):
            choose_backend(2048, 5, False)
    assert [record.getMessage() for record in caplog.records] == [
        "mining backend: numpy (bank of up to 4096 slots, cpu)"
    ]
