"""What is in this data set? A packed folder in numbers: its manifest, its verdicts, and a look at some of its frames."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from pipelines.dataset.place import Address
    from pipelines.dataset.reader import ShardReader

__all__ = [
    "Contents",
    "Looks",
    "Verdicts",
    "contents_of",
    "counted",
    "look_at",
    "names_of",
    "read_verdicts",
    "strip_of",
]

_COPY = re.compile(r"(?:^|; )a (mirrored )?copy of '(.*)'(?: \(duplicates=drop\))?$")
_LOOKED_AT: Final = 200
_SECONDS: Final = 2.0
"""Of the middle of a video, in which its motion is measured."""


@dataclass(frozen=True)
class Verdicts:
    """The rows of `verdicts.csv`.

    Attributes:
        rows: As they were written.
        missing: In words, why there are none; empty: they are there.
    """

    rows: tuple[Mapping[str, str], ...]
    missing: str = ""

    def of(self, verdict: str) -> list[Mapping[str, str]]:
        """Rows with that verdict."""
        return [row for row in self.rows if row["verdict"] == verdict]

    @cached_property
    def copies(self) -> list[tuple[str, str, bool]]:
        """(copy, what it copies, whether it is mirrored), as the reasons say."""
        found = [(row["path"], _COPY.search(row["reason"])) for row in self.rows]
        return [(path, match[2], bool(match[1])) for path, match in found if match]

    @cached_property
    def refusals(self) -> list[tuple[str, int, str]]:
        """(kind of reason, how many, one of them), most frequent first; the left out ones with their own words."""
        kinds: dict[str, list[str]] = {}
        for row in (*self.of("rejected"), *self.of("left out")):
            words = row["reason"] if not _COPY.search(row["reason"]) else "a copy of another video (duplicates=drop)"
            kinds.setdefault(re.sub(r"\d+(?:\.\d+)?", "…", words), []).append(row["path"])
        return sorted(
            ((kind, len(paths), paths[0]) for kind, paths in kinds.items()), key=lambda one: (-one[1], one[0])
        )


@dataclass(frozen=True, eq=False)
class Contents:
    """A packed folder in numbers.

    Attributes:
        manifest: The pack.
        verdicts: What was said of every video of the source.
        seconds: [N], of each packed video.
    """

    manifest: Manifest
    verdicts: Verdicts
    seconds: NDArray[np.float64]

    @property
    def hours(self) -> float:
        """Of all that is packed."""
        return float(self.seconds.sum()) / 3600

    @property
    def options(self) -> Mapping[str, Any]:
        """How it was packed; empty where the manifest does not say."""
        try:
            tree = json.loads(self.manifest.source.get("options", ""))
        except ValueError:
            return {}
        return tree if isinstance(tree, dict) else {}

    @cached_property
    def of_class(self) -> list[tuple[str, int]]:
        """Videos of each class, most first; those without a label last."""
        count = np.bincount(self.manifest.samples.label + 1, minlength=len(self.manifest.classes) + 1).tolist()
        named = sorted(zip(self.manifest.classes, count[1:], strict=True), key=lambda one: (-one[1], one[0]))
        return named + ([("(no label)", count[0])] if count[0] else [])

    @cached_property
    def group_sizes(self) -> NDArray[np.int64]:
        """Videos of each group, most first."""
        return np.sort(np.bincount(self.manifest.samples.group))[::-1]

    def splits(self) -> Iterator[tuple[str, int, float, int, int]]:
        """(split, videos, hours, classes, groups)."""
        samples = self.manifest.samples
        for name in self.manifest.splits:
            rows = self.manifest.rows(name)
            labels = set(samples.label[rows].tolist()) - {-1}
            yield (
                name,
                len(rows),
                float(self.seconds[rows].sum()) / 3600,
                len(labels),
                len(set(samples.group[rows].tolist())),
            )

    @cached_property
    def torn(self) -> int:
        """Groups that lie in more than one split."""
        pairs = np.unique(np.stack([self.manifest.samples.group, self.manifest.samples.split]), axis=1)
        return int((np.bincount(pairs[0]) > 1).sum())

    def originals(self) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """What the originals are: (property, its most frequent values and how often)."""
        rows = self.verdicts.of("packed")
        if rows:
            yield "size", Counter(f"{row['width']}×{row['height']}" for row in rows).most_common()
            yield "frame rate", Counter(f"{float(row['fps']):.4g} fps" for row in rows).most_common()
            yield "codec", Counter(row["codec"] for row in rows).most_common()

    def lines(self) -> list[str]:
        """The whole as text."""
        manifest, length = self.manifest, np.percentile(self.seconds, [5, 50, 95])
        size = sum(shard.bytes for shard in manifest.shards)
        said = [
            f"{counted(len(manifest), 'video')}, {self.hours:.2f} hours, {size / 1e6:.1f} MB in {counted(len(manifest.shards), 'shard')}, data {manifest.hash}",
            f"lengths {length[1]:.1f} s in the middle, 5 to 95 %: {length[0]:.1f} to {length[2]:.1f} s; "
            f"{manifest.short_side} px, {'own rates' if manifest.fps is None else f'{manifest.fps:g} fps'}, {manifest.codec}",
            f"{counted(len(manifest.classes), 'class')}, {counted(manifest.groups, 'group')}, the largest of {counted(self.group_sizes[0], 'video')}",
            *(
                f"split {name}: {counted(n, 'video')}, {h:.2f} hours, {counted(c, 'class')}, {counted(g, 'group')}"
                for name, n, h, c, g in self.splits()
            ),
        ]
        if (cut := self.options.get("cut")) is not None:
            sources = {str(name).rpartition("#t=")[0] or str(name) for name in manifest.samples.name}
            said.append(f"cut={cut}: clips of {counted(len(sources), 'source')}")
        if self.torn:
            said.append(f"{self.torn} groups lie in more than one split")
        said.append(self.verdicts.missing or f"{self.duplicates}; {manifest.rejected} rejected")
        return said + [f"  {number} × {kind}, e.g. '{path}'" for kind, number, path in self.verdicts.refusals[:5]]

    @property
    def duplicates(self) -> str:
        """What is known of copies, in words."""
        how = self.options.get("duplicates", "keep")
        if how == "keep":
            return "copies were not looked for (vidssl pack … duplicates=siblings does)"
        copies = self.verdicts.copies
        mirrored = sum(one[2] for one in copies)
        done = "left out" if how == "drop" else "siblings of what they copy"
        are = "is a copy" if len(copies) == 1 else "are copies"
        return f"{counted(len(copies), 'video')} {are} ({mirrored} mirrored), {done}"


@dataclass(frozen=True, eq=False)
class Looks:
    """What some videos look like.

    Attributes:
        instance: [n], which were looked at.
        motion: [n], mean grey levels by which a pixel changes in a quarter of a second.
        unreadable: How many could not be read.
    """

    instance: NDArray[np.int64]
    motion: NDArray[np.float64]
    unreadable: int


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 video", "2 classes"."""
    many = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else many}"


def contents_of(folder: str | Path) -> Contents:
    """A packed folder in numbers.

    Raises:
        DataError: no packed folder, or a damaged one.
    """
    from pipelines.dataset.manifest import load_manifest

    manifest = load_manifest(folder)
    verdicts = read_verdicts(manifest.root)
    if manifest.fps is not None:
        return Contents(manifest, verdicts, manifest.samples.frames / manifest.fps)
    of = {row["path"]: float(row["seconds"]) for row in verdicts.rows}
    own = [
        of.get(str(name), float(n) / 25) for name, n in zip(manifest.samples.name, manifest.samples.frames, strict=True)
    ]
    return Contents(manifest, verdicts, np.array(own))


def read_verdicts(root: Path | Address) -> Verdicts:
    """What was said of every video of the source of the pack in `root`; missing or damaged ones are said in words."""
    from pipelines.dataset.store import open_store

    wanted = {"path", "verdict", "reason", "fps", "width", "height", "codec", "seconds"}
    try:
        text = open_store(root).read("verdicts.csv").decode("utf-8", "surrogateescape")
        rows = tuple(csv.DictReader(io.StringIO(text, newline="")))
        if rows and not (wanted <= rows[0].keys() and all(None not in row.values() for row in rows)):
            return Verdicts((), "verdicts.csv is damaged, so nothing is known of the originals")
        if not all(math.isfinite(float(row[name])) for row in rows for name in ("fps", "seconds")):
            raise ValueError("a number that is none")
    except OSError as error:
        return Verdicts(
            (), f"verdicts.csv cannot be read ({error.strerror or error}), so nothing is known of the originals"
        )
    except (ValueError, csv.Error):
        return Verdicts((), "verdicts.csv is damaged, so nothing is known of the originals")
    return Verdicts(rows)


def look_at(contents: Contents, reader: ShardReader, seed: int = 0) -> Looks:
    """Measure the motion of some videos, drawn at random."""
    from pipelines.loading.decode import decode_clips

    count = len(contents.manifest)
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:_LOOKED_AT])
    seen: list[int] = []
    motion: list[float] = []
    for instance in drawn.tolist():
        try:
            video, table = reader.read(instance)
            rate = float(table[0]) / max(float(contents.seconds[instance]), 1e-3)
            step = max(round(rate / 4), 1)
            number = min(int(_SECONDS * 4) + 1, max((int(table[0]) - 1) // step + 1, 1))
            start = max(int(table[0]) - number * step, 0) // 2
            frames = decode_clips(video, table, [start], number, step, picture="luma")[0].astype(np.float32)
        except DataError:
            continue
        seen.append(instance)
        motion.append(float(np.abs(np.diff(frames, axis=0)).mean()) if len(frames) > 1 else 0.0)
    return Looks(np.array(seen, np.int64), np.array(motion), len(drawn) - len(seen))


def strip_of(reader: ShardReader, instance: int, shown: int) -> str | None:
    """Frames from the beginning to the end of a video as a picture; None where it cannot be read."""
    from cluster.page.pictures import film_strip
    from pipelines.loading.decode import decode_clips

    try:
        video, table = reader.read(instance)
        step = max((int(table[0]) - 1) // max(shown - 1, 1), 1)
        return film_strip(decode_clips(video, table, [0], min(shown, int(table[0])), step)[0], height=84)
    except DataError:
        return None


def names_of(manifest: Manifest, paths: Sequence[str]) -> list[int]:
    """Instances of videos by their names; those that are not packed are left out."""
    of = {str(name): at for at, name in enumerate(manifest.samples.name)}
    return [of[path] for path in paths if path in of]
