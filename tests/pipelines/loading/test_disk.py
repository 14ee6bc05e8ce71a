"""A disk that fails, goes away and comes back, and a loader that loses nothing by it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator

import pytest
import torch

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from tests.pipelines.faults import failing_disk, faults
from tests.pipelines.small_packs import damaged_copy, make_pack
from vidssl.errors import DataError, StorageError
from vidssl.recipe import Augment, Clips, Loader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Manifest:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264")


@pytest.fixture
def pack(whole, tmp_path) -> Manifest:
    shutil.copytree(whole.root, tmp_path / "pack")
    return load_manifest(tmp_path / "pack")


@pytest.fixture
def opened() -> Iterator:
    made: list[TrainLoader] = []

    def make(manifest: Manifest, batch: int = 4, **changes) -> TrainLoader:
        listeners = {name: changes.pop(name) for name in ("say", "on_bad") if name in changes}
        kind = spec(batch, **changes)
        made.append(TrainLoader(manifest, kind, rank=0, world=1, device=CPU, **listeners))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def spec(batch: int = 4, **changes) -> LoaderSpec:
    return LoaderSpec(Clips(frames=4, size=32), Augment(), Loader(decode="py", **changes), ("rgb",), batch, seed=0)


def seen(manifest: Manifest, epochs: int) -> dict[str, object]:
    """Everything that three epochs deliver."""
    loader = TrainLoader(manifest, spec(), rank=0, world=1, device=CPU)
    batches = [loader.next() for _ in range(epochs * loader.steps_per_epoch)]
    loader.close()
    return {
        "instances": [sorted(batch.instance.tolist()) for batch in batches],
        "clips": [zlib.crc32(batch.clips["rgb"].numpy().tobytes()) for batch in batches],
        "bad": len(loader.meter.bad),
        "retries": loader.meter.disk.retries,
    }


def test_no_sample_is_lost_when_one_read_in_twenty_fails_for_three_epochs_and_more(whole, tmp_path):
    program = (
        "import json, sys\nfrom pipelines.dataset.manifest import load_manifest\n"
        "from tests.pipelines.loading.test_disk import seen\nprint(json.dumps(seen(load_manifest(sys.argv[1]), 15)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(whole.root)],
        env=failing_disk(tmp_path, one_in=20), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, expected = json.loads(done.stdout), seen(whole, 15)
    assert faults(tmp_path) >= 3
    assert 0 < found.pop("retries") <= faults(tmp_path)
    assert expected.pop("retries") == 0
    assert found == expected
    assert found["bad"] == 0
    said = done.stderr.splitlines()
    assert re.fullmatch(r"\S+ could not be read \(Input/output error\) and is tried again; .*", said[-1])


def test_a_shard_that_is_away_is_waited_for_and_nothing_is_lost(pack, opened):
    expected = seen(pack, 3)
    said: list[str] = []
    away = [pack.shard_path(1).rename(pack.root / "away.tar"), pack.index_path(1).rename(pack.root / "away.idx")]
    threading.Timer(2.5, lambda: [away[0].rename(pack.shard_path(1)), away[1].rename(pack.index_path(1))]).start()
    loader = opened(pack, say=said.append)
    batches = [loader.next() for _ in range(6)]
    assert [zlib.crc32(batch.clips["rgb"].numpy().tobytes()) for batch in batches] == expected["clips"]
    assert loader.meter.bad == []
    assert loader.meter.disk.waited_s > 1
    assert loader.meter.wait_s > 1
    waits = [sentence for sentence in said if "could not be read" not in sentence]
    assert re.fullmatch(
        r"shard-00001\.\w+ cannot be reached \(No such file or directory\): waiting for it, 240 s at most", waits[0]
    )
    assert re.fullmatch(r"shard-00001\.\w+ is back after \d+ s: going on", waits[1])
    assert len(waits) == 2


def test_a_shard_that_is_still_being_copied_back_is_waited_for(pack, opened):
    expected, path = seen(pack, 1), pack.shard_path(0)
    data = path.read_bytes()
    path.write_bytes(data[:700])
    threading.Timer(1.0, path.write_bytes, [data]).start()
    said: list[str] = []
    loader = opened(pack, say=said.append)
    batches = [loader.next() for _ in range(2)]
    assert [zlib.crc32(batch.clips["rgb"].numpy().tobytes()) for batch in batches] == expected["clips"]
    assert loader.meter.bad == []
    assert re.match(r"shard-00000\.tar could not be read \(it ends before byte \d+\)", said[0])


def test_a_shard_that_stays_away_ends_the_run_with_an_error_that_is_not_final(pack, opened):
    pack.shard_path(1).unlink()
    loader = opened(pack, patience=0.5)
    with pytest.raises(StorageError, match=r"shard-00001\.tar could not be reached for \d s \(No such file") as told:
        loader.next()
    assert not told.value.final
    assert loader.meter.bad == []


def test_a_loader_that_waits_can_be_closed(pack, opened):
    pack.shard_path(0).unlink()
    loader = opened(pack, patience=3600.0)
    threading.Timer(0.5, loader.close).start()
    with pytest.raises(StopIteration):
        loader.next()
    assert "vidssl-loader" not in [thread.name for thread in threading.enumerate() if thread.is_alive()]


def test_an_evaluation_waits_for_a_shard_too(pack):
    loader = EvalLoader(pack, spec(), windows=1, device=CPU)
    expected = [batch.instance.tolist() for batch in loader]
    path = pack.shard_path(1)
    away = path.rename(pack.root / "away.tar")
    threading.Timer(1.0, lambda: away.rename(path)).start()
    assert [batch.instance.tolist() for batch in loader] == expected
    assert loader.meter.bad == []
    assert loader.meter.disk.retries > 0


def test_each_bad_sample_is_told_once_with_its_shard_reason_and_step(whole, opened, tmp_path):
    manifest = damaged_copy(whole, tmp_path / "bad", [1, 6], "head")
    told = []
    loader = opened(manifest, on_bad=told.append)
    wanted = {}
    for step in range(6):
        for instance in loader.upcoming(1).tolist():
            wanted.setdefault(instance, step)
        loader.next()
    assert {(bad.instance, bad.key, bad.shard, bad.step) for bad in told} == {
        (1, "00000001", "shard-00000.tar", wanted[1]),
        (6, "00000006", "shard-00001.tar", wanted[6]),
    }
    assert len(told) == 2
    assert told == sorted(loader.meter.bad, key=told.index)


def test_a_bit_that_was_wrong_on_the_way_only_is_read_again_and_makes_nothing_bad(pack, opened, monkeypatch):
    """The first read of every sample is wrong, the second is right: a cable, not a disk."""
    real, before = os.pread, set()

    def flaky(fd: int, size: int, begin: int) -> bytes:
        data = bytearray(real(fd, size, begin))
        place = (os.fstat(fd).st_ino, begin)
        if place not in before:
            before.add(place)
            data[len(data) // 2] ^= 4
        return bytes(data)

    expected = seen(pack, 1)
    monkeypatch.setattr(os, "pread", flaky)
    found = seen(pack, 1)
    assert found["clips"] == expected["clips"]
    assert found["bad"] == 0
    assert len(before) == 8


@pytest.mark.parametrize(("rate", "floor", "stops"), [(0.3, 0, False), (0.2, 0, True), (0.0, 2, False), (0.0, 1, True)])
def test_the_budget_is_a_share_of_the_videos_tried_with_a_floor(whole, opened, tmp_path, rate, floor, stops):
    manifest = damaged_copy(whole, tmp_path / "bad", [1, 6], "head")  # 2 of 8: a quarter
    loader = opened(manifest, batch=8, bad_rate=rate, bad_floor=floor)
    if not stops:
        loader.next()
        return
    with pytest.raises(
        DataError, match=rf"of 8 videos tried so far are bad, loader\.bad_floor={floor} or loader\.bad_rate={rate:g}"
    ):
        loader.next()


def test_a_pack_without_checksums_is_read_and_said_once(tmp_path, opened):
    manifest = make_pack(tmp_path / "old", "h264", checked=False)
    said: list[str] = []
    loader = opened(manifest, say=said.append)
    for _ in range(4):
        loader.next()
    assert said == [
        f"{manifest.root} was packed before samples had checksums: a damaged byte that still decodes is not noticed; "
        "pack again with fresh=true to have every read checked"
    ]
    assert loader.meter.bad == []
