"""Fixtures that every layer's tests may use."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.pipelines.stores import s3, s3_server  # noqa: F401

torch.set_num_threads(1)

LONGEST = (
    "tests/cluster/training/test_driver.py",
    "tests/cluster/finetune/test_workers.py",
    "tests/cluster/bank/test_actor.py",
    "tests/cluster/test_pack.py",
    "tests/cluster/training/test_finite.py",
    "tests/cluster/sweep/test_trials.py",
    "tests/cluster/test_launch.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests that take long first, else one process would be alone with them at the end; then those of many tests."""
    files = [item.nodeid.partition("::")[0] for item in items]
    tests = Counter(files)
    order = sorted(range(len(items)), key=lambda at: (files[at] not in LONGEST, -tests[files[at]]))
    items[:] = [items[at] for at in order]


@pytest.fixture(scope="module")
def usual_signals() -> Iterator[None]:
    """Ctrl-C and a closed terminal mean to this module's tests, and to what they start, what they mean in a terminal.

    What a shell puts in the background ignores the one, what nohup starts the other, and children inherit both. The
    other modules keep that: who starts the suite under nohup wants it to outlive the terminal.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def clips_root() -> Path:
    """Real clips, where this machine has them."""
    given = os.environ.get("VIDSSL_CLIPS")
    if not given:
        pytest.skip("VIDSSL_CLIPS is not set: no real clips here")
    return Path(given).resolve()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a session, loopback only, without dashboard."""
    from cluster.launch import ray_session

    with ray_session(cores=2, namespace="vidssl-tests"):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes disks of a few megabytes: `small_disk(3)` is the folder where one of 3 MB is mounted."""
    mounted: list[Path] = []

    def make(megabytes: float, *options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        words = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            ",".join([f"size={int(megabytes * 1024)}k", *options]),
            "tmpfs",
            str(place),
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine does not let the tests mount a disk ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
