"""`vidssl embed RUN|CARD`: the vectors of all videos of a data set, one zarr store, with the protocol that makes them again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cluster.keywords import EmbedWords, own_words
from cluster.looking.look import Look
from cluster.subject import Subject, looked_at, open_subject
from vidssl.errors import RecipeError
from vidssl.evaluation.encode import EncoderReader
from vidssl.evaluation.retrieval import unit_rows
from vidssl.records import to_tree
from vidssl.saved.embeddings import Embedded, refuse_no_store, save_embeddings

if TYPE_CHECKING:
    from pipelines.loading.crops import Crops
    from vidssl.evaluation.encode import Described

__all__ = ["describe", "embed_run", "embedded", "forget_parts", "views_of"]


def embed_run(path: str | Path, words: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> Path:
    """Encode every video of a data set with a run's or a card's encoder and store the vectors.

    Args:
        path: A run folder or a card folder.
        words: `out=PATH` (default RUN/embeddings.zarr), `view=rgb|residual|…|all` (default: the trained view), and
            the words of `cluster.subject.open_subject`.
        say: Told how far a long look is.

    Returns:
        The store.

    Raises:
        VidsslError: as `open_subject`; an unknown view; `out` that is something else.
    """
    own, words = own_words(EmbedWords, words)
    subject = open_subject(path, words)
    store = subject.home / "embeddings.zarr" if own.out is None else Path(own.out).expanduser().resolve()
    refuse_no_store(store)
    views = views_of(subject, own.view)
    with looked_at(subject, say) as subject:
        readers = [EncoderReader(subject.encoder(name), name) for name in views]
        found = describe(subject, readers, views, subject.manifest.rows())
        save_embeddings(embedded(subject, found, views), store)
    forget_parts(subject)
    return store


def views_of(subject: Subject, asked: str | None) -> tuple[str, ...]:
    """Views to encode: the trained one, the asked one, or all that there are.

    Raises:
        RecipeError: a view without an encoder.
    """
    have = subject.views
    if asked is None:
        return (subject.trained_view,)
    if asked != "all" and asked not in have:
        raise RecipeError(
            f"{subject.home.name} has no encoder of view={asked}; type view= one of {', '.join(have)}, all"
        )
    return have if asked == "all" else (asked,)


def describe(
    subject: Subject,
    readers: Iterable[nn.Module],
    views: Sequence[str],
    rows: NDArray[np.int64],
    crops: Crops | None = None,
) -> Described:
    """Show the windows of some videos to readers, cut as the protocol says; each window is decoded once.

    Args:
        subject: Whose lookers look.
        readers: Modules in evaluation mode, see `vidssl.evaluation.encode.EncoderReader`.
        views: Streams that they need.
        rows: int64 [N], the videos.
        crops: Which part of the frame; None: the protocol's.

    Raises:
        DataError: no video could be read.
    """
    from pipelines.loader import LoaderSpec

    recipe, (rule, usual) = subject.recipe, subject.window_rule
    given = (recipe.clips, recipe.augment, recipe.loader, tuple(views), recipe.evaluation.batch, recipe.seed)
    spec = LoaderSpec(*given, recipe.model.flow_channels)
    look = Look(subject.manifest, spec, subject.windows, rule, crops or usual, recipe.evaluation.crop, tuple(readers))
    return subject.looking.describe(look, rows, kept_parts(subject))


def kept_parts(subject: Subject) -> Path:
    """Where finished parts of a look are kept until its result is stored."""
    return subject.out_folder / "looked"


def forget_parts(subject: Subject) -> None:
    """Remove them: what they were for is stored."""
    shutil.rmtree(kept_parts(subject), ignore_errors=True)


def embedded(subject: Subject, found: Described, views: Sequence[str]) -> Embedded:
    """What was described, as a store with its protocol."""
    samples, row = subject.manifest.samples, found.instance
    packages = ("vidssl", "torch", "numpy", "nvidia-dali-cuda130", "av")
    made = {
        "views": list(views),
        "videos": len(row),
        "classes": list(subject.manifest.classes),
        "unreadable": [int(i) for i in found.missing],
        "versions": {name: version(name) for name in packages},
    }
    return Embedded(
        feature={view: found.rows[f"feature/{view}"] for view in views},
        embedding={view: unit_rows(found.rows[f"embedding/{view}"]).astype(np.float32) for view in views},
        instance=row,
        group=samples.group[row].astype(np.int64),
        label=samples.label[row].astype(np.int64),
        split=np.array(subject.manifest.splits)[samples.split[row]],
        name=np.array(samples.name[row]),
        protocol=to_tree(subject.protocol()) | made,
    )
