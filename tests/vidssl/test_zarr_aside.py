"""A zarr store that cannot be written leaves nothing, whatever zarr does behind the error."""

from __future__ import annotations

import errno
import time

import numpy as np
import pytest
import zarr
from zarr.storage import _local

from vidssl.zarr_aside import zarr_aside


def test_chunks_that_zarr_writes_behind_an_error_do_not_bring_the_folder_back(tmp_path, monkeypatch):
    put = _local._put

    def slow_or_full(path, *args, **options):
        if path.name == "0":
            raise OSError(errno.ENOSPC, "No space left on device")
        if path.name == "1":
            time.sleep(0.3)
        return put(path, *args, **options)

    with pytest.raises(OSError, match="No space left"), zarr_aside(tmp_path / "e.zarr") as aside:  # noqa: PT012
        array = zarr.open_group(str(aside), mode="w").create_array("x", shape=(4,), chunks=(2,), dtype="f4")
        monkeypatch.setattr(_local, "_put", slow_or_full)
        array[:] = np.ones(4)
    time.sleep(0.6)  # what goes on behind an error would have written by now
    assert list(tmp_path.iterdir()) == []
