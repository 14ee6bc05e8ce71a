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

from cluster.report import classifiers, results, training
from cluster.report.page import page
from cluster.report.published import published_part
from vidssl.errors import CheckpointError, DataError
from vidssl.recipe import Recipe
from vidssl.saved.card import is_card, read_card
from vidssl.saved.embeddings import Embedded, load_embeddings
from vidssl.saved.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from cluster.report.frames import StripReader

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
    folder, recipe, facts = _opened(run_dir)
    run, log = str(run_dir), folder.read_log()
    read = {path.stem: _json(path) for path in sorted(folder.evaluation.glob("*.json"))}
    found = {name: result for name, result in read.items() if "protocol" in result and "results" in result}
    retrieval, mining = found.get("retrieval"), found.get("mining")
    store, health = _store(folder), _health(found)
    prototypes = training.prototype_health(log, recipe)
    with ExitStack() as opened:
        strips, reason = _strips(recipe, retrieval, data, opened)
        sections = [
            results.retrieval_part(retrieval, run, _taught(recipe)),
            classifiers.classifiers_part(found, run),
            classifiers.fusion_part(found),
            published_part(found),
            results.neighbours_part(retrieval, strips, store, reason),
            results.classes_part(retrieval),
            results.map_part(store),
            training.mining_part(mining, recipe, run),
            training.curves_part(log, health, prototypes),
            training.protocol_part(tuple(found.items()), recipe, facts),
            training.again(recipe, facts, run),
        ]
    alarms = [f"The embeddings have {health['verdict']}."] if health and health.get("collapsed") else []
    alarms += [f"Prototypes {prototypes.verdict}."] if prototypes and prototypes.alarm else []
    alarms += _mixed(found, run)
    shown = [part for part in sections if part is not None]
    text = page(folder.path.name, _subtitle(recipe, facts, retrieval), shown, alarms)
    aside = folder.report.with_suffix(f".tmp-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, folder.report)
    return folder.report


def _opened(path: str | Path) -> tuple[RunFolder, Recipe, dict[str, Any]]:
    """The folder of a run or a card, what it says of itself as a recipe, and the facts of its making."""
    if not is_card(path):
        folder = open_run(path)
        return folder, folder.read_recipe(), folder.read_facts()
    from vidssl.recipe import recipe_from_tree

    card = read_card(path)
    folder = RunFolder(Path(path).expanduser().resolve())
    facts = {"data_hash": card.protocol.data_hash or "unknown", "command": f"taken from {card.protocol.source}"}
    return folder, recipe_from_tree({"name": folder.path.name} | card.recipe()), facts


def _health(found: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Of the embeddings, from whichever evaluation measured it."""
    return next((result["health"] for result in found.values() if result.get("health")), None)


def _mixed(found: dict[str, dict[str, Any]], run: str) -> list[str]:
    """A sentence where the page shows results of several checkpoints."""
    by: dict[str, list[str]] = {}
    for name, result in found.items():
        if "checkpoint_sha256" in result["protocol"]:
            by.setdefault(result["protocol"]["checkpoint_sha256"], []).append(name)
    if len(by) < 2:
        return []
    told = "; ".join(f"{', '.join(names)} of {mark}" for mark, names in by.items())
    return [f"This page shows results of different checkpoints ({told}): type vidssl evaluate {run} what=all."]


def _taught(recipe: Recipe) -> str | None:
    """How labels entered the training; None where they did not."""
    method, mining, told = recipe.method, recipe.mining, "this is an upper bound, no self-supervised result."
    if method.traits.reads_labels:
        return f"Labels were used in training ({method.traits.title}): {told}"
    if recipe.mines and mining.traits.reads_labels:
        return f"Labels chose the positives (mining.strategy={mining.strategy}): {told}"
    return None


def _second(recipe: Recipe) -> str:
    """What the second stream does, in words."""
    method = recipe.method
    if recipe.mines:
        return f", positives mined with the help of {method.second_view}"
    return "" if method.streams == "one" else method.traits.second.format(view=method.second_view)


def _subtitle(recipe: Recipe, facts: dict[str, Any], retrieval: dict[str, Any] | None) -> str:
    """One sentence: what was trained on what."""
    method, model = recipe.method, recipe.model
    told = [f"<b>{method.name}</b> on a <b>{model.backbone}</b> encoder, {method.view} stream{_second(recipe)}"]
    if retrieval:
        about = retrieval["protocol"]
        told.append(f"{about['steps']} steps, {len(retrieval['classes'])} classes, seed {about['seed']}")
    told.append(f"data {facts.get('data_hash', 'unknown')}")
    if "started" in facts:
        told.append(f"{facts['started']} on {facts.get('machine', 'an unnamed machine')}")
    return " · ".join(part if i == 0 else escape(part) for i, part in enumerate(told))


def _json(path: Path) -> dict[str, Any]:
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
    from cluster.report.frames import StripReader
    from pipelines.dataset.manifest import load_manifest

    root = Path(data or recipe.data or "").expanduser().resolve()
    try:
        manifest = load_manifest(root)
    except DataError as error:
        return None, f"the data cannot be read ({error})"
    wanted = retrieval["protocol"]["data_hash"]
    if manifest.hash != wanted:
        return None, f"{root} holds other data ({manifest.hash}) than was evaluated ({wanted})"
    return opened.enter_context(StripReader(manifest, recipe.clips)), ""
