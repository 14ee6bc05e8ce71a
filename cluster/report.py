"""`vidssl report RUN`: one self-contained page about a run, from what lies in its folder.

The page loads nothing: pictures and style are inside, so it can be mailed, archived and opened from a disk.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import report_results as results
from cluster import report_training as training
from cluster.report_page import page
from vidssl.embeddings import Embedded, load_embeddings
from vidssl.errors import CheckpointError, DataError
from vidssl.recipe import Recipe
from vidssl.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from cluster.report_frames import StripReader

__all__ = ["write_report"]


def write_report(run_dir: str | Path, data: str | Path | None = None) -> Path:
    """Write `report.html` into a run from whatever is there; parts that are missing are named in words.

    Args:
        run_dir: The run folder.
        data: The packed data, for the pictures; default: where the recipe says.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: no run there, or a result file that is damaged.
    """
    folder = open_run(run_dir)
    recipe, facts, run = folder.read_recipe(), folder.read_facts(), str(run_dir)
    retrieval, mining = (_json(folder.evaluation / f"{name}.json") for name in ("retrieval", "mining"))
    store = _store(folder)
    with ExitStack() as opened:
        strips, reason = _strips(recipe, retrieval, data, opened)
        sections = [
            results.retrieval_part(retrieval, run),
            results.neighbours_part(retrieval, strips, store, reason),
            results.classes_part(retrieval),
            results.map_part(store),
            training.mining_part(mining, recipe, run),
            training.curves_part(folder.read_log(), retrieval["health"] if retrieval else None),
            training.protocol_part((("retrieval", retrieval), ("mining", mining)), recipe, facts),
            training.again(recipe, facts, run),
        ]
    text = page(folder.path.name, _subtitle(recipe, facts, retrieval), [part for part in sections if part is not None])
    aside = folder.report.with_suffix(f".tmp-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, folder.report)
    return folder.report


def _subtitle(recipe: Recipe, facts: dict[str, Any], retrieval: dict[str, Any] | None) -> str:
    """One sentence: what was trained on what."""
    method, model = recipe.method, recipe.model
    second = "" if method.name == "infonce" else f", positives mined with the help of {method.second_view}"
    told = [f"<b>{method.name}</b> on a <b>{model.backbone}</b> encoder, {method.view} stream{second}"]
    if retrieval:
        about = retrieval["protocol"]
        told.append(f"{about['steps']} steps, {len(retrieval['classes'])} classes, seed {about['seed']}")
    told.append(f"data {facts.get('data_hash', 'unknown')}")
    if "started" in facts:
        told.append(f"{facts['started']} on {facts.get('machine', 'an unnamed machine')}")
    return " · ".join(part if i == 0 else escape(part) for i, part in enumerate(told))


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it and evaluate again") from error


def _store(folder: RunFolder) -> Embedded | None:
    path = folder.evaluation / "embeddings.zarr"
    return load_embeddings(path) if path.exists() else None


def _strips(
    recipe: Recipe, retrieval: dict[str, Any] | None, data: str | Path | None, opened: ExitStack
) -> tuple[StripReader | None, str]:
    """The reader of frames, or None and why there are none."""
    if retrieval is None:
        return None, "not evaluated yet"
    if data is None and recipe.data is None:
        return None, "the run names no data"
    from cluster.report_frames import StripReader
    from pipelines.manifest import load_manifest

    root = Path(data or recipe.data or "").expanduser().resolve()
    try:
        manifest = load_manifest(root)
    except DataError as error:
        return None, f"the data cannot be read ({error})"
    wanted = retrieval["protocol"]["data_hash"]
    if manifest.hash != wanted:
        return None, f"{root} holds other data ({manifest.hash}) than was evaluated ({wanted})"
    return opened.enter_context(StripReader(manifest, recipe.clips)), ""
