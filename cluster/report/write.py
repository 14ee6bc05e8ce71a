"""`vidssl report RUN`: one self-contained page about a run, from what lies in its folder.

The page loads nothing: pictures and style are inside, so it can be mailed, archived and opened from a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.evaluation.evaluator import About, FeatureResult, Result
from cluster.evaluation.kept import evaluators, read_results
from cluster.evaluation.retrieval import RetrievalResult
from cluster.finetune.results import FinetuneResult, read_finetuned
from cluster.page.parts import Section, page
from cluster.report import classifiers, results, training
from cluster.report.mined import mined_part
from cluster.report.published import published_part
from cluster.report.run import Facts, open_reported, read_log
from cluster.report.swept import swept_parts
from vidssl.errors import DataError, StorageError
from vidssl.evaluation.protocol import Protocol
from vidssl.files import storage_error, write_whole
from vidssl.health import Health
from vidssl.recipe import Recipe
from vidssl.saved.embeddings import Embedded, load_embeddings
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    from cluster.report.frames import StripReader

__all__ = ["write_report"]


@dataclass(frozen=True)
class _Kept:
    """The results that lie in a run."""

    measured: Mapping[str, Result]
    finetuned: Mapping[str, FinetuneResult]

    @property
    def retrieval(self) -> RetrievalResult | None:
        found = self.measured.get("retrieval")
        return found if isinstance(found, RetrievalResult) else None

    @property
    def health(self) -> Health | None:
        """Of the embeddings, from whichever evaluation measured it."""
        return next(
            (one.health for one in self.measured.values() if isinstance(one, FeatureResult) and one.health), None
        )

    @property
    def protocols(self) -> dict[str, Protocol]:
        return {name: one.protocol for name, one in (*self.measured.items(), *self.finetuned.items())}


def write_report(run_dir: str | Path, data: str | Path | None = None) -> Path:
    """Write `report.html` into a run from whatever is there; parts that are missing are named in words.

    Args:
        run_dir: The run or card folder.
        data: The packed data, for the pictures; default: where the recipe says.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: no run there, a run of phases, or a result file that is damaged.
        StorageError: the page cannot be written.
    """
    folder, recipe, facts = open_reported(run_dir)
    about = About(str(run_dir), recipe, _taught(recipe))
    kept = _Kept(read_results(folder.evaluation, about.run), read_finetuned(folder.evaluation, about.run))
    log, health = read_log(folder.log), kept.health
    prototypes = training.prototype_health(log.rows, recipe)
    with ExitStack() as opened:
        strips, reason = _strips(recipe, kept.retrieval, data, opened)
        sections = _results(kept, about, _store(folder), strips, reason)
    if (mined := mined_part(folder.path, about.run)) is not None:
        sections.append(mined)
    sections += swept_parts(folder.path)
    sections += [
        training.curves_part(log, health, prototypes),
        training.protocol_part(kept.protocols, recipe, facts),
        training.again(recipe, facts, about.run),
    ]
    alarms = [f"The embeddings have {health.verdict}."] if health and health.collapsed else []
    alarms += [f"Prototypes {prototypes.verdict}."] if prototypes and prototypes.alarm else []
    alarms += _mixed(kept, about.run)
    try:
        write_whole(folder.report, page(folder.path.name, _subtitle(recipe, facts, kept.retrieval), sections, alarms))
    except OSError as error:
        instead = "make room, or copy the run to a folder that can be written, and type vidssl report again"
        raise storage_error(error, folder.report, instead=instead) from error
    return folder.report


def _results(
    kept: _Kept, about: About, store: Embedded | None, strips: StripReader | None, reason: str
) -> list[Section]:
    """Everything that was measured: retrieval first, then classifiers, comparisons and pictures, then the other evaluations."""
    own = {name: one.part(kept.measured.get(name), about) for name, one in evaluators().items() if not one.as_card}
    parts = [
        own.pop("retrieval"),
        classifiers.classifiers_part(kept.measured, kept.finetuned, about),
        classifiers.fusion_part(kept.measured, about),
        published_part(kept.measured, kept.finetuned),
        results.neighbours_part(kept.retrieval, strips, store, reason),
        results.classes_part(kept.retrieval),
        results.map_part(store),
        *own.values(),
    ]
    return [part for part in parts if part is not None]


def _mixed(kept: _Kept, run: str) -> list[str]:
    """A sentence where the page shows results of several checkpoints."""
    by: dict[str, list[str]] = {}
    for name, protocol in kept.protocols.items():
        by.setdefault(protocol.checkpoint_sha256, []).append(name)
    if len(by) < 2:
        return []
    who = "; ".join(f"{', '.join(names)} of {checkpoint}" for checkpoint, names in by.items())
    return [f"This page shows results of different checkpoints ({who}): type vidssl evaluate {run} what=all."]


def _taught(recipe: Recipe) -> str | None:
    """How labels entered the training; None where they did not."""
    method, mining, bound = recipe.method, recipe.mining, "this is an upper bound, no self-supervised result."
    if method.traits.reads_labels:
        return f"Labels were used in training ({method.traits.title}): {bound}"
    if recipe.mines and mining.traits.reads_labels:
        return f"Labels chose the positives (mining.strategy={mining.strategy}): {bound}"
    return None


def _second(recipe: Recipe) -> str:
    """What the second stream does, in words."""
    method = recipe.method
    if recipe.mines:
        return f", positives mined with the help of {method.second_view}"
    return "" if method.streams == "one" else method.traits.second.format(view=method.second_view)


def _subtitle(recipe: Recipe, facts: Facts, retrieval: RetrievalResult | None) -> str:
    """One sentence: what was trained on what."""
    method, model = recipe.method, recipe.model
    parts = [f"<b>{method.name}</b> on a <b>{model.backbone}</b> encoder, {method.view} stream{_second(recipe)}"]
    if retrieval:
        about = retrieval.protocol
        parts.append(f"{about.steps} steps, {len(retrieval.classes)} classes, seed {about.seed}")
    parts.append(escape(f"data {facts.data_hash or 'unknown'}"))
    if facts.started is not None:
        parts.append(escape(f"{facts.started} on {facts.machine or 'an unnamed machine'}"))
    return " · ".join(parts)


def _store(folder: RunFolder) -> Embedded | None:
    path = folder.evaluation / "embeddings.zarr"
    return load_embeddings(path) if path.exists() else None


def _strips(
    recipe: Recipe, retrieval: RetrievalResult | None, data: str | Path | None, opened: ExitStack
) -> tuple[StripReader | None, str]:
    """The reader of frames, or None and why there are none."""
    if retrieval is None:
        return None, "not evaluated yet"
    if data is None and recipe.data is None:
        return None, "the run names no data"
    from cluster.report.frames import StripReader
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    try:
        root = place_of(data or recipe.data or "")
        manifest = load_manifest(root)
    except (DataError, StorageError) as error:
        return None, f"the data cannot be read ({error})"
    wanted = retrieval.protocol.data_hash
    if manifest.hash != wanted:
        return None, f"{root} holds other data ({manifest.hash}) than was evaluated ({wanted})"
    return opened.enter_context(StripReader(manifest, recipe.clips)), ""
