"""One small packed set for the tests of this layer: real videos, made and packed once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 packed videos of ten motions, with splits train and test."""
    from pipelines.pack import PackOptions, pack
    from pipelines.synthetic import make_motion_set

    root = tmp_path_factory.mktemp("motion")
    table = make_motion_set(root / "videos", videos=40, frames=24, size=128, seed=0)
    pack("csv", table, root / "packed", PackOptions())
    return root / "packed"
