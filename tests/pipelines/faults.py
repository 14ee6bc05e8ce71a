"""A disk that fails: reads of shards that end with EIO, made by a library put in front of the C library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")


def failing_disk(folder: Path, one_in: int) -> dict[str, str]:
    """The environment of a process whose reads of shards and indexes fail, one in so many; `faults` counts them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here: a failing disk cannot be made")
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library), "FAULTS_SHARE": str(one_in), "FAULTS_LOG": str(folder / "log")}


def faults(folder: Path) -> int:
    """How many reads have failed."""
    log = folder / "log"
    return log.stat().st_size if log.is_file() else 0
