"""`vidssl embed RUN|CARD`: the vectors of all videos of a data set, one zarr store, with the protocol that makes them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cluster.keywords import EmbedWords, own_words
from cluster.subject import Subject, open_subject
from vidssl.errors import RecipeError
from vidssl.evaluation.retrieval import unit_rows
from vidssl.records import to_tree
from vidssl.saved.embeddings import Embedded, refuse_no_store, save_embeddings

if TYPE_CHECKING:
    from pipelines.loading.crops import Crops
    from vidssl.evaluation.encode import Described, Reader

__all__ = ["describe", "embed_run", "embedded", "views_of"]


def embed_run(path: str | Path, words: Sequence[str] = ()) -> Path:
    """Encode every video of a data set with a run's or a card's encoder and store the vectors.

    Args:
        path: A run folder or a card folder.
        words: `out=PATH` (default RUN/embeddings.zarr), `view=rgb|residual|…|all` (default: the trained view), and
            the words of `cluster.subject.open_subject`.

    Returns:
        The store.

    Raises:
        VidsslError: as `open_subject`; an unknown view; `out` that is something else.
    """
    from vidssl.evaluation.encode import encoder_reader

    own, words = own_words(EmbedWords, words)
    subject = open_subject(path, words)
    store = subject.home / "embeddings.zarr" if own.out is None else Path(own.out).expanduser().resolve()
    refuse_no_store(store)
    views = views_of(subject, own.view)
    readers = [encoder_reader(subject.encoder(name), name) for name in views]
    found = describe(subject, readers, views, subject.manifest.rows())
    return save_embeddings(embedded(subject, found, views), store)


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
    readers: Iterable[Reader],
    views: Sequence[str],
    rows: NDArray[np.int64],
    crops: Crops | None = None,
) -> Described:
    """Show the windows of some videos to readers, cut as the protocol says; each window is decoded once."""
    from pipelines.loader import EvalLoader, LoaderSpec
    from vidssl.evaluation.encode import describe_videos

    recipe, (rule, usual) = subject.recipe, subject.window_rule
    given = (recipe.clips, recipe.augment, recipe.loader, tuple(views), recipe.evaluation.batch, recipe.seed)
    spec = LoaderSpec(*given, recipe.model.flow_channels)
    loader = EvalLoader(
        subject.manifest,
        spec,
        instances=rows,
        windows=subject.windows,
        device=subject.device,
        rule=rule,
        crops=crops or usual,
        share=recipe.evaluation.crop,
    )
    try:
        return describe_videos(loader, readers, rows)
    finally:
        loader.close()


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
