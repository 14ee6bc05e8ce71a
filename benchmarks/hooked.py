"""Code of a benchmark inside of training's workers: a `sitecustomize` that every Python finds, which changes a module as it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["hooked"]

_ROOT = Path(__file__).parents[1]
_FINDER = """
import sys

class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "cluster.training.worker":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            change(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _Finder())
"""


def hooked(folder: Path, change: str, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of processes whose `cluster.training.worker` is changed.

    Args:
        folder: For the file.
        change: Source of a function `change(module)`.
        more: Variables beside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(change + _FINDER)
    kept = {
        name: word for name, word in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }  # it slows every start
    return {**kept, **more, "PYTHONPATH": os.pathsep.join([str(folder), str(_ROOT)])}
