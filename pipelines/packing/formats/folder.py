"""A folder of class folders: CLASS/file.

Every file in a class folder becomes a row (a verdict says later whether it is a video); hidden files are passed over,
and so are text files beside the class folders.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.packing.listing import Catalog, Format, Row, classes_of, files_below, is_sidecar
from pipelines.packing.options import PackOptions

__all__ = ["FOLDER"]


def _read(root: Path, options: PackOptions) -> Catalog:
    del options
    paths, notes = files_below(root)
    rows = [
        Row(path, path.split("/")[0] if "/" in path else None, "all", path) for path in paths if not is_sidecar(path)
    ]
    return Catalog(root, tuple(rows), classes_of(rows), notes)


FOLDER = Format(_read, looks_for="CLASS/file")
