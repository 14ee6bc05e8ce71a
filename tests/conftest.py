"""Fixtures that every layer's tests may use."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


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
