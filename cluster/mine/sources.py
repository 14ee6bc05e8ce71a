"""Whose rows are mined in? The bank of a run, a store of embeddings, or embeddings that are made here and now.

So recipes that mine inline, checkpoints that were imported and IIC, which keep no bank, are measured like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cluster.keywords import OF_A_TRAINED
from cluster.mine.study import About, Rows, Study, study_of_bank, study_of_rows
from cluster.mine.words import MineWords
from vidssl.errors import DataError, RecipeError
from vidssl.evaluation.protocol import Protocol
from vidssl.evaluation.retrieval import unit_rows
from vidssl.mining.snapshots import latest_snapshot, read_info
from vidssl.recipe import Recipe, recipe_from_file, recipe_from_tree
from vidssl.saved.card import is_card
from vidssl.saved.embeddings import load_embeddings
from vidssl.saved.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from cluster.subject import Subject

__all__ = ["Opened", "open_rows"]

Say = Callable[[str], None]

_LEAST = 3
"""Videos that can be compared."""


@dataclass(frozen=True, eq=False)
class Opened:
    """Rows to mine in.

    Attributes:
        study: They.
        recipe: Of the run or card, with the words of this command.
        protocol: How they were embedded here; None where they lay on a disk.
    """

    study: Study
    recipe: Recipe
    protocol: Protocol | None = None


def open_rows(home: Path, search: MineWords, words: Sequence[str], say: Say) -> Opened:
    """The rows that `rows=` names, of a run or card that is there.

    Args:
        home: Its folder.
        search: The own words of `vidssl mine`.
        words: `mining.…`, and what `cluster.subject.open_subject` takes.
        say: Told what is embedded, which may take a while.

    Raises:
        VidsslError: as `open_subject` and `study_of_bank`; words that would change what was trained; too few videos.
    """
    for word in words:
        if not word.startswith(("mining.", *OF_A_TRAINED)):
            raise RecipeError(
                f"'{word}' cannot be set for what is trained; type mining.*, evaluation.*, loader.*, trainer.device or data"
            )
    if search.rows not in ("auto", "bank", "encoder"):
        return _stored(home, search, words)
    folder = None if is_card(home) else open_run(home)
    if search.rows == "bank" or (search.rows == "auto" and folder is not None and _has_bank(folder, search)):
        if folder is None:
            raise RecipeError("rows=bank: a card has no bank; type rows=encoder, or leave it out")
        recipe = recipe_from_file(folder.recipe, words)
        return Opened(study_of_bank(folder, recipe, search), recipe)
    return _embedded(home, search, words, say)


def _has_bank(folder: RunFolder, search: MineWords) -> bool:
    """Whether there is a snapshot, of the data that is named, and nothing else is asked for."""
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    path = latest_snapshot(folder.bank)
    if path is None or search.second is not None:
        return False
    known = read_info(path).extra.get("data_hash")
    if search.data is None or known is None:
        return True
    return load_manifest(place_of(search.data), verify="nothing").hash == known


def _embedded(home: Path, search: MineWords, words: Sequence[str], say: Say) -> Opened:
    from cluster.embed import forget_parts
    from cluster.subject import looked_at, open_subject

    ours = [word for word in words if word.startswith("mining.")]
    looking = [word for word in words if word not in ours]
    subject = open_subject(home, [*looking, *([f"data={search.data}"] if search.data else [])])
    rows = subject.manifest.training_rows()
    if search.videos is not None and search.videos < len(rows):
        rows = np.sort(np.random.default_rng(search.seed).choice(rows, search.videos, replace=False))
    pairs = _streams(subject, search, looking)
    say(f"embedding {len(rows)} training videos: {', '.join(view for _, view in pairs)}")
    found: list[tuple[NDArray[np.int64], Rows]] = []
    for one, view in pairs:
        with looked_at(one, say) as one:
            found.append(_vectors(one, view, rows))
    for one, _ in pairs:
        forget_parts(one)
    instance = found[0][0]
    for there, _ in found[1:]:
        instance = np.intersect1d(instance, there)
    if len(instance) < _LEAST:
        raise DataError(
            f"{subject.manifest.root} holds {len(instance)} training videos that can be read; mining needs more"
        )
    names = [view for _, view in pairs]
    if len(set(names)) < len(names):
        names = [f"{one.home.name}.{view}" for one, view in pairs]
    views = {name: vectors[np.isin(there, instance)] for name, (there, vectors) in zip(names, found, strict=True)}
    samples, manifest = subject.manifest.samples, subject.manifest
    recipe = recipe_from_tree(subject.recipe.model_dump(mode="json"), ours) if ours else subject.recipe
    about = About(f"embeddings of {home.name}", len(rows), manifest.hash, tuple(manifest.classes))
    group, label = samples.group[instance].astype(np.int64), samples.label[instance].astype(np.int64)
    return Opened(study_of_rows(views, group, label, search, recipe, about), recipe, subject.protocol())


def _streams(subject: Subject, search: MineWords, looking: Sequence[str]) -> list[tuple[Subject, str]]:
    """Whose encoder looks at which view: the main one first, the trained one last."""
    from cluster.subject import open_subject

    if search.second is not None:
        second = open_subject(search.second, [*looking, f"data={search.data or subject.manifest.root}"])
        return [(second, second.trained_view), (subject, subject.trained_view)]
    others = [view for view in subject.views if view != subject.trained_view]
    return [(subject, view) for view in (*others[:1], subject.trained_view)]


def _vectors(subject: Subject, view: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Rows]:
    """Who could be read, and their unit embeddings."""
    from cluster.embed import describe
    from vidssl.evaluation.encode import EncoderReader

    found = describe(subject, [EncoderReader(subject.encoder(view), view)], (view,), rows)
    return found.instance, unit_rows(found.rows[f"embedding/{view}"]).astype(np.float32)


def _stored(home: Path, search: MineWords, words: Sequence[str]) -> Opened:
    """Rows of `vidssl embed`; the recipe says which view is the trained one."""
    path = Path(search.rows).expanduser()
    if not path.is_dir():
        raise RecipeError(f"rows={search.rows} is unknown; type rows=auto, bank, encoder or a store of `vidssl embed`")
    store, recipe = load_embeddings(path), _recipe(home, words)
    trained = recipe.method.view if recipe.method.view in store.embedding else next(iter(store.embedding))
    others = [view for view in (recipe.method.second_view, *store.embedding) if view in store.embedding]
    others = [view for view in dict.fromkeys(others) if view != trained]
    chosen = np.flatnonzero(store.split == "train") if (store.split == "train").any() else np.arange(len(store))
    if len(chosen) < _LEAST:
        raise DataError(f"{path} holds {len(chosen)} training videos; mining needs more")
    views = {view: store.embedding[view][chosen] for view in (*others[:1], trained)}
    classes = tuple(str(name) for name in store.protocol.get("classes", ()))
    about = About(str(path), len(chosen), str(store.protocol.get("data_hash", "")), classes)
    return Opened(study_of_rows(views, store.group[chosen], store.label[chosen], search, recipe, about), recipe)


def _recipe(home: Path, words: Sequence[str]) -> Recipe:
    from vidssl.saved.card import read_card

    if is_card(home):
        return recipe_from_tree({"name": home.name} | read_card(home).recipe(), words)
    return recipe_from_file(open_run(home).recipe, words)
