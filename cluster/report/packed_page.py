"""`vidssl report PACKED`: one self-contained page about a data set, before anything is trained on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cluster.page.histogram import counts, histogram
from cluster.page.parts import Section, card, page, pairs, table, tiles
from cluster.report.packed import Contents, Looks, contents_of, counted, look_at, names_of, strip_of
from vidssl.errors import DataError
from vidssl.files import storage_error, write_whole

if TYPE_CHECKING:
    from pipelines.dataset.reader import ShardReader

__all__ = ["is_packed", "write_data_report"]

_CLASSES: Final = 12
_SHOWN: Final = 6
"""Frames of a strip."""
_PAIRS: Final = 6
_OURS: Final = "· vidssl report</title>".encode()


def is_packed(folder: str | Path) -> bool:
    """Whether a folder, or an address, is packed data and not a run."""
    from pipelines.dataset.manifest import MANIFEST
    from pipelines.dataset.place import address_of

    place = Path(folder)
    return address_of(folder) is not None or (place / MANIFEST).is_file() or place.name == MANIFEST


def write_data_report(packed: str | Path, out: str | None, say: Callable[[str], None]) -> Path:
    """Write the page of a packed folder, and say the same in a few lines.

    Args:
        packed: The folder, or its address in a store.
        out: The page to write; None: `report.html` in the folder.
        say: Told the lines.

    Returns:
        Path of the page.

    Raises:
        DataError: no packed folder, a damaged one, a store and no `out`, or an `out` that is no page of ours.
        StorageError: the page cannot be written.
    """
    from pipelines.dataset.reader import ShardReader

    contents = contents_of(packed)
    root = contents.manifest.root
    if out is None and not isinstance(root, Path):
        raise DataError(
            f"a page is written to a folder, and {root} is in a store; type vidssl report {packed} out=PAGE.html"
        )
    place = Path(str(root)) / "report.html" if out is None else Path(out)
    _refuse_strange(place)
    reader = ShardReader(contents.manifest)
    try:
        looks = look_at(contents, reader)
        text = page(root.name, _subtitle(contents), _sections(contents, looks, reader))
    finally:
        reader.close()
    say("\n".join(contents.lines()))
    try:
        write_whole(place, text)
    except OSError as error:
        instead = f"type vidssl report {packed} out=PAGE.html to write it elsewhere"
        raise storage_error(error, place, instead=instead) from error
    return place


def _refuse_strange(place: Path) -> None:
    """What is there and is no page of ours is not written over."""
    if os.path.isdir(place):
        raise DataError(f"{place} is a folder; give the name of a page, e.g. out={place / 'report.html'}")
    if not os.path.lexists(place):
        return
    try:
        ours = os.path.isfile(place) and _begins_as_ours(place)
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror}); give another name, out=PAGE.html") from error
    if not ours:
        raise DataError(f"{place} is no page of a data report, and is left alone; give another name, out=PAGE.html")


def _begins_as_ours(place: Path) -> bool:
    with place.open("rb") as stream:
        return _OURS in stream.read(4096)


def _sections(contents: Contents, looks: Looks, reader: ShardReader) -> list[Section]:
    return [
        _whole(contents),
        _pictures(contents, reader),
        _lengths(contents),
        _motion(looks, reader),
        _originals(contents),
        _classes(contents),
        _duplicates(contents, reader),
        _refused(contents),
        _made(contents),
    ]


def _subtitle(contents: Contents) -> str:
    manifest = contents.manifest
    name = escape(manifest.source.get("format", "packed data"))
    return f"<b>{len(manifest)}</b> videos, <b>{contents.hours:.2f}</b> hours · {name} · data {escape(manifest.hash)}"


def _whole(contents: Contents) -> Section:
    manifest, verdicts = contents.manifest, contents.verdicts
    size = sum(shard.bytes for shard in manifest.shards)
    unlabelled = int((manifest.samples.label < 0).sum())
    copies = "not looked for" if contents.options.get("duplicates", "keep") == "keep" else f"{len(verdicts.copies)}"
    items = [
        (f"{len(manifest)}", "videos", f"{contents.hours:.2f} hours"),
        (f"{len(manifest.classes)}", "classes", f"{counted(unlabelled, 'video')} without a label"),
        (f"{manifest.groups}", "groups", f"the largest holds {counted(contents.group_sizes[0], 'video')}"),
        (
            f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB",
            "stored",
            counted(len(manifest.shards), "shard"),
        ),
        (f"{manifest.rejected}", "rejected", f"{len(verdicts.of('left out'))} left out by the source's lists"),
        (copies, "copies", contents.duplicates if copies != "not looked for" else "vidssl pack … duplicates=siblings"),
    ]
    head = ("split", "videos", "hours", "classes", "groups")
    rows = [(name, f"{n}", f"{hours:.2f}", f"{c}", f"{g}") for name, n, hours, c, g in contents.splits()]
    torn = f'<p class="note">{contents.torn} groups lie in more than one split.</p>' if contents.torn else ""
    lead = (
        "Videos of one group were cut from one source, or are copies: they are never each other's positive or negative."
    )
    return Section("The whole", lead, tiles(items) + table(head, rows) + torn)


def _pictures(contents: Contents, reader: ShardReader) -> Section:
    manifest = contents.manifest
    rng = np.random.default_rng(0)
    named = [(at, name) for at, name in enumerate(manifest.classes)]
    if len(named) > _CLASSES:
        named = [named[at] for at in np.sort(rng.permutation(len(named))[:_CLASSES]).tolist()]
    shown: list[tuple[int, str]] = []
    for label, name in named or [(-1, "(no label)")]:
        rows = np.flatnonzero(manifest.samples.label == label)
        shown += [(int(row), name) for row in rng.permutation(rows)[: 1 if named else _CLASSES]]
    lead = (
        f"{len(shown)} videos drawn at random, of {'different classes' if named else 'all'}, as they are stored: "
        f"{_SHOWN} frames from the beginning (left) to the end."
    )
    return Section("What it looks like", lead, _strips(reader, [(at, name, _told(contents, at)) for at, name in shown]))


def _strips(reader: ShardReader, shown: Sequence[tuple[int, str, str]]) -> str:
    """Film strips with a name and a note each."""
    cells = []
    for instance, name, note in shown:
        picture = strip_of(reader, instance, _SHOWN)
        image = (
            f'<img src="{picture}" alt="{escape(name)}" loading="lazy">'
            if picture
            else '<div class="gone">this video could not be read</div>'
        )
        caption = f"<figcaption><span>{escape(name)}</span><small>{escape(note)}</small></figcaption>"
        cells.append(f'<figure class="shot">{image}{caption}</figure>')
    return f'<div class="query pair">{"".join(cells)}</div>' if cells else '<p class="missing">Nothing to show.</p>'


def _told(contents: Contents, instance: int) -> str:
    samples = contents.manifest.samples
    return f"{contents.seconds[instance]:.1f} s, {samples.width[instance]}×{samples.height[instance]}"


def _lengths(contents: Contents) -> Section:
    parts = np.percentile(contents.seconds, [0, 5, 50, 95, 100])
    body = [card("of what is packed", histogram(contents.seconds, "s"))]
    frames = contents.manifest.samples.frames.astype(np.float64)
    body.append(card("in stored frames", histogram(frames, "")))
    lead = (
        f"From {parts[0]:.1f} to {parts[4]:.1f} s, half of them below {parts[2]:.1f} s; 5 to 95 %: {parts[1]:.1f} to {parts[3]:.1f} s. "
        "A clip of a recipe must fit: shorter videos end in repeated frames."
    )
    return Section("Lengths", lead, f'<div class="grid wide">{"".join(body)}</div>')


def _motion(looks: Looks, reader: ShardReader) -> Section:
    if not len(looks.motion):
        return Section("Motion", "No video could be read.", "")
    still = int((looks.motion < 0.5).sum())
    lead = (
        f"By how many grey levels a pixel changes in a quarter of a second, on average, in the middle of {len(looks.motion)} videos drawn "
        f"at random; {still} of them hardly move (below 0.5). Where little moves, methods that learn from motion find little."
    )
    order = np.argsort(looks.motion, kind="stable")
    ends = [(int(at), "the stillest") for at in order[:2]] + [(int(at), "the liveliest") for at in order[-2:][::-1]]
    shown = [(int(looks.instance[at]), words, f"{looks.motion[at]:.2f}") for at, words in ends]
    lost = f'<p class="note">{looks.unreadable} more could not be read.</p>' if looks.unreadable else ""
    bars = card("grey levels per quarter second", histogram(looks.motion, ""))
    body = f'<div class="grid">{bars}</div><div class="grid later"></div>{_strips(reader, shown)}{lost}'
    return Section("Motion", lead, body)


def _originals(contents: Contents) -> Section:
    lead = "What was packed, before it was scaled and resampled; how many videos are of each kind."
    if contents.verdicts.missing:
        return Section("The originals", lead, f'<p class="missing">{escape(contents.verdicts.missing)}.</p>')
    cards = [card(name, counts(values)) for name, values in contents.originals()]
    return Section("The originals", lead, f'<div class="grid">{"".join(cards)}</div>')


def _classes(contents: Contents) -> Section:
    sizes = [number for name, number in contents.of_class if name != "(no label)"]
    if not sizes:
        return Section("Classes", "No video has a label.", '<p class="missing">Nothing to compare.</p>')
    lead = (
        f"Videos of each of {len(sizes)} classes, from {max(sizes)} down to {min(sizes)}. Training reads no label; what is "
        "measured afterwards does."
    )
    return Section("Classes", lead, counts(contents.of_class, most=40))


def _duplicates(contents: Contents, reader: ShardReader) -> Section:
    copies = contents.verdicts.copies
    lead = f"{escape(contents.duplicates[0].upper() + contents.duplicates[1:])}."
    shown: list[tuple[int, str, str]] = []
    for copy, original, mirrored in copies:
        both = names_of(contents.manifest, [original, copy])
        if len(both) == 2 and len(shown) < 2 * _PAIRS:
            words = "its mirrored copy" if mirrored else "its copy"
            shown += [(both[0], original, "original"), (both[1], copy, words)]
    body = _strips(reader, shown) if shown else ""
    if copies:
        rows = [
            (copy, ("mirrored copy of " if mirrored else "copy of ") + original)
            for copy, original, mirrored in copies[:20]
        ]
        more = f'<p class="note">and {len(copies) - 20} more in verdicts.csv</p>' if len(copies) > 20 else ""
        body += table(("video", "is a"), rows, words=(0, 1)) + more
    sizes = contents.group_sizes
    big = sizes[sizes > 1]
    body += f'<p class="note">{len(big)} groups hold more than one video, {int(big.sum())} videos in all.</p>'
    return Section("Duplicates and siblings", lead, body)


def _refused(contents: Contents) -> Section:
    kinds = contents.verdicts.refusals
    lead = "Every video of the source has a verdict; verdicts.csv has them all. Numbers are left out here: … stands for them."
    if contents.verdicts.missing:
        return Section("What was refused", lead, f'<p class="missing">{escape(contents.verdicts.missing)}.</p>')
    if not kinds:
        return Section("What was refused", lead, '<p class="missing">Nothing.</p>')
    rows = [(f"{number}", kind, path) for kind, number, path in kinds[:20]]
    more = f'<p class="note">and {len(kinds) - 20} more kinds of reasons</p>' if len(kinds) > 20 else ""
    return Section("What was refused", lead, table(("videos", "reason", "one of them"), rows, words=(1, 2)) + more)


def _made(contents: Contents) -> Section:
    manifest = contents.manifest
    known = [(key, value) for key, value in manifest.source.items() if key not in ("options", "content", "version")]
    items = [("data", manifest.hash), *known]
    items += [(key, json.dumps(value).strip('"')) for key, value in contents.options.items() if value is not None]
    if manifest.flow is not None:
        items.append(("flow", ", ".join(f"{key} {value}" for key, value in vars(manifest.flow).items())))
    return Section("How it was packed", "The words of vidssl pack, defaults too.", pairs(items))
