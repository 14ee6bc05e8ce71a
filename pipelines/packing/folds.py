"""The other official splits of a pack, without a second copy of it: `fold=all`.

PACKED/fold2 and PACKED/fold3 are packed folders of their own. Their shards are links to those of PACKED, their manifest and columns
say who trains and who is asked in that split. What reads a pack reads them: `data=PACKED/fold2`. The split that stands in a sample's
JSON, inside of the shards, is that of split 1; nothing of ours reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.dataset.manifest import Manifest, content_hash, load_manifest, write_manifest
from pipelines.packing.catalog import read_catalog
from pipelines.packing.formats.official import NoLists
from pipelines.packing.listing import Catalog
from pipelines.packing.options import PackOptions
from pipelines.packing.plan import KIND, make_plan
from vidssl.errors import DataError
from vidssl.lock import held
from vidssl.marks import mark, refuse_foreign

__all__ = ["OTHER_FOLDS", "fold_folder", "folds_of", "write_folds"]

OTHER_FOLDS = (2, 3)

Say = Callable[[str], None]


def fold_folder(packed: Path, fold: int) -> Path:
    """Where split `fold` of a pack lies; that of split 1 is the pack itself."""
    return packed if fold == 1 else packed / f"fold{fold}"


def folds_of(packed: Path) -> tuple[int, ...]:
    """Official splits that lie in a packed folder, 1 first."""
    return (1, *(fold for fold in OTHER_FOLDS if (fold_folder(packed, fold) / "manifest.json").is_file()))


def write_folds(format: str, src: str | Path, first: Manifest, options: PackOptions, say: Say) -> tuple[int, ...]:
    """Write the folders of the splits 2 and 3, or find them written.

    Args:
        format: As it was packed.
        src: The source, whose official lists are read; its videos are not.
        first: The pack, made with `fold=1`.
        options: Of the pack.
        say: Told of a split that has no lists.

    Returns:
        The splits that there are, 1 first.

    Raises:
        DataError: the lists name other videos or classes than were packed, or a folder of ours is in the way of somebody else's.
        OSError: the folder cannot be written.
    """
    there = [1]
    with held(first.folder, "pack", say):
        for fold in OTHER_FOLDS:
            chosen = options.model_copy(update={"fold": fold})
            try:
                catalog = read_catalog(format, src, chosen)
            except NoLists as error:
                say(f"no split {fold}: {error}")
                continue
            source = {**first.source, **make_plan(format, src, catalog, chosen)}
            _write(_told_apart(first, catalog, source, fold))
            there.append(fold)
    return tuple(there)


def _told_apart(first: Manifest, catalog: Catalog, source: dict[str, str], fold: int) -> Manifest:
    """The pack with the splits of another fold."""
    rows = {row.path: row for row in catalog.rows}
    names = [str(name) for name in first.samples.name]
    strange = next((name for name in names if name not in rows), None)
    if strange is not None:
        raise DataError(
            f"{first.root} holds {strange}, which {catalog.root} does not; split {fold} needs the files that were packed"
        )
    labels = {name: number for number, name in enumerate(catalog.classes)}
    given = np.array([labels.get(rows[name].label or "", -1) for name in names], first.samples.label.dtype)
    # A video in neither list of a split is known by its folder alone, which a flat source does not have.
    if catalog.classes != first.classes or ((given != first.samples.label) & (given >= 0)).any():
        raise DataError(
            f"the lists of split {fold} name other classes than {first.root} holds; give those of one release"
        )
    split = np.array([catalog.splits.index(rows[name].split) for name in names], first.samples.split.dtype)
    return replace(
        first,
        root=fold_folder(first.folder, fold),
        splits=catalog.splits,
        samples=replace(first.samples, split=split),
        source=source,
    )


def _write(manifest: Manifest) -> None:
    place = manifest.folder
    refuse_foreign(place, KIND, "move it away")
    if _is_there(manifest):
        return
    place.mkdir(exist_ok=True)
    mark(place, KIND)
    for number, shard in enumerate(manifest.shards):
        for name in (shard.name, manifest.index_name(number)):
            _link(place / name)
    write_manifest(manifest)


def _is_there(manifest: Manifest) -> bool:
    try:
        return load_manifest(manifest.folder).hash == content_hash(manifest)
    except DataError:
        return False


def _link(place: Path) -> None:
    """A link to the file of the same name one folder up; what another pack of ours left there goes."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        raise DataError(f"{place} is a file where a link to the shard is to be; move it away")
    os.symlink(os.path.join(os.pardir, place.name), place)
