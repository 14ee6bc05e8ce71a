"""The cache of what was read from a store: its bound, its order of leaving, two processes in it, kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.dataset.cache import BLOCK, TOTAL, Cache
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.reader import ShardReader
from tests.pipelines.small_packs import make_pack
from tests.pipelines.stores import environment, web
from vidssl.errors import DataError
from vidssl.marks import mark

LIMIT = 64 * BLOCK


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Manifest:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264")


def taken(folder: Path) -> int:
    """Bytes of whole blocks, of everything but the cache's own three files; what is half written counts too."""
    found = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.parent != folder:
                found += -(-path.stat().st_size // BLOCK) * BLOCK
        except FileNotFoundError:  # it went while we looked
            continue
    return found


def quiet(sentence: str) -> None:
    raise AssertionError(sentence)


def test_what_was_kept_comes_back_and_nothing_else(tmp_path):
    cache = Cache(tmp_path / "cache", LIMIT, quiet)
    cache.put("data/shard/0-9", b"some bytes")
    again = Cache(tmp_path / "cache", LIMIT, quiet)
    assert again.get("data/shard/0-9", 10) == b"some bytes"
    assert again.has("data/shard/0-9")
    assert again.get("data/shard/0-9", 11) is None
    assert again.get("data/shard/10-9", 10) is None
    again.drop("data/shard/0-9")
    assert cache.get("data/shard/0-9", 10) is None


def test_what_was_read_longest_ago_goes_first(tmp_path):
    cache = Cache(tmp_path, 10 * BLOCK, quiet)
    for number in range(10):
        cache.put(f"data/a/{number}", bytes(BLOCK))
        os.utime(tmp_path / f"data/a/{number}", (number, number))
    assert cache.get("data/a/0", BLOCK) is not None  # read now, so it is the youngest
    cache.put("data/a/new", bytes(BLOCK))
    kept = {path.name for path in (tmp_path / "data/a").iterdir()}
    assert kept == {"0", "new", *"23456789"}
    cache.put("data/a/large", bytes(11 * BLOCK))
    assert not cache.has("data/a/large")


PROGRAM = """\
import random, sys, time
from pathlib import Path
from pipelines.dataset.cache import BLOCK, Cache

def quiet(sentence):
    raise AssertionError(sentence)

folder, limit, seconds, seed = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
cache, draw, end, wrong, hits = Cache(folder, limit, quiet), random.Random(seed), time.monotonic() + seconds, 0, 0
while time.monotonic() < end:
    number = draw.randrange(100)
    data = random.Random(number).randbytes(1 + 120 * number)
    found = cache.get(f"data/shard-{number % 3}/{number}", len(data))
    hits += found is not None
    wrong += found is not None and found != data
    cache.put(f"data/shard-{number % 3}/{number}", data)
print(wrong, hits)
"""


def filling(folder: Path, seconds: float, first: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, str(folder), str(LIMIT), str(seconds), str(first)]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)


def test_the_bound_holds_at_every_moment_while_two_processes_write_and_read(tmp_path):
    two, most = [filling(tmp_path, 1.5, first) for first in (0, 75)], 0
    while any(process.poll() is None for process in two):
        most = max(most, taken(tmp_path))
        time.sleep(0.01)
    for process in two:
        wrong, hits = map(int, process.communicate()[0].split())
        assert wrong == 0
        assert hits > 0
    assert LIMIT / 2 < most <= LIMIT
    assert taken(tmp_path) <= int((tmp_path / TOTAL).read_text()) <= LIMIT


def test_kills_at_any_moment_leave_no_half_file_and_no_lock_and_the_bound_holds(tmp_path):
    draw = random.Random(0)
    for number in range(4):
        process = filling(tmp_path, 30, 31 * number)
        while not (tmp_path / TOTAL).is_file():
            time.sleep(0.01)
        time.sleep(0.25 + 0.3 * draw.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert taken(tmp_path) <= LIMIT
    last = filling(tmp_path, 0.5, 0)
    wrong, hits = map(int, last.communicate()[0].split())
    assert (wrong, last.returncode) == (0, 0)
    assert hits > 0
    assert taken(tmp_path) <= LIMIT


def test_a_torn_total_is_counted_anew(tmp_path):
    cache = Cache(tmp_path, 4 * BLOCK, quiet)
    for number in range(4):
        cache.put(f"data/a/{number}", bytes(BLOCK))
    (tmp_path / TOTAL).write_text("")
    cache.put("data/a/new", bytes(BLOCK))
    assert taken(tmp_path) <= 4 * BLOCK
    assert cache.has("data/a/new")


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        DataError, match=r"holds files that vidssl did not make, and they are left alone; give another loader\.cache"
    ):
        Cache(tmp_path, LIMIT, quiet)
    mark(tmp_path, "run")
    with pytest.raises(DataError, match="was made as a run, not as a cache"):
        Cache(tmp_path, LIMIT, quiet)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_full_disk_under_the_cache_is_said_once_and_done_without(small_disk):
    said: list[str] = []
    cache = Cache(small_disk(0.1) / "cache", 10**9, said.append)
    for number in range(10):
        cache.put(f"data/a/{number}", bytes(5 * BLOCK))
    assert len(said) == 1
    assert "is full" in said[0]
    assert said[0].endswith("going on without keeping what is read in it")
    assert cache.get("data/a/0", 5 * BLOCK) == bytes(5 * BLOCK)


def test_a_second_pass_asks_the_store_for_nothing_and_damage_in_the_cache_is_read_again(pack, tmp_path):
    with web(pack.folder) as (address, server):
        manifest, cache = load_manifest(address), Cache(tmp_path / "cache", 10**8, quiet)
        first = ShardReader(manifest, cache=cache)
        first.want(range(4))
        videos = [first.read(instance)[0].tobytes() for instance in range(len(pack))]
        path = min(path for path in (tmp_path / "cache" / pack.hash).rglob("*") if path.is_file())
        path.write_bytes(bytes(path.stat().st_size))
        again = ShardReader(manifest, cache=Cache(tmp_path / "cache", 10**8, quiet))
        assert [again.read(instance)[0].tobytes() for instance in range(len(pack))] == videos
        assert any(path.read_bytes())
        server.kill()  # the indexes are known
        again.want(range(len(pack)))
        assert [again.read(instance)[0].tobytes() for instance in range(len(pack))] == videos
        first.close(), again.close()
