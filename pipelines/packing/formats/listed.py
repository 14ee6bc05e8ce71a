"""What annotation lists say of videos, held against each other and against the files that are there.

| a list holds | what becomes of it |
|---|---|
| a line that cannot be read | passed over; one sentence with their number and the first |
| a video twice, saying the same | one row; one sentence |
| a video in two splits | kept in the later of train, val, test, so that nothing tested is trained on; one sentence |
| a video with two labels | left out and named in `verdicts.csv`; one sentence |
| a video that is not there | left out and named in `verdicts.csv`; one sentence with the share, by split |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.packing.listing import Catalog, LeftOut, Row, files_below, is_video_name
from vidssl.errors import DataError

__all__ = ["SPLITS", "Listed", "Lists", "Videos", "catalog_of"]

SPLITS: Mapping[str, str] = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
"""What lists call a split → what we call it."""

_LATER = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Listed:
    """One line of a list.

    Attributes:
        name: What makes two lines one video.
        source: What the video was cut from.
        label: Class name; None: the list gives none.
        split: Ours.
        where: File and line, for people.
        start: Of its range in the source, seconds; None: all of it.
        stop: End of the range, seconds.
    """

    name: str
    source: str
    label: str | None
    split: str
    where: str
    start: float | None = None
    stop: float | None = None


@dataclass
class Lists:
    """All lists of a data set while they are read."""

    listed: list[Listed] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def settled(self) -> tuple[list[Listed], list[LeftOut], list[str]]:
        """One entry per video, those that the lists contradict, and sentences on all that was odd.

        Raises:
            DataError: there are lines, and not one can be read.
        """
        if self.broken and not self.listed:
            raise DataError(f"not one of {_many(len(self.broken), 'line')} can be read, e.g. {self.broken[0]}")
        first: dict[str, Listed] = {}
        odd: dict[str, list[str]] = {"broken": self.broken, "repeated": [], "moved": []}
        torn: dict[str, LeftOut] = {}
        for one in self.listed:
            before = first.setdefault(one.name, one)
            if before is one:
                continue
            where = f"'{one.name}' ({before.where}, {one.where})"
            if before.label and one.label and before.label != one.label:
                reason = f"listed as '{before.label}' ({before.where}) and as '{one.label}' ({one.where})"
                torn.setdefault(one.name, LeftOut(one.name, reason))
            else:
                odd["moved" if before.split != one.split else "repeated"].append(where)
            split = max(before.split, one.split, key=_rank)
            first[one.name] = replace(before, label=before.label or one.label, split=split)
        kept = [one for name, one in first.items() if name not in torn]
        return kept, list(torn.values()), _sentences(odd, list(torn.values()))


class Videos:
    """The videos that are there, found by their names without folder and ending.

    Args:
        root: Folder they lie below.
        first: Says which of several of one name to take before the others; without it, the first by path.
    """

    def __init__(self, root: Path, first: Callable[[str], bool] = lambda path: False) -> None:
        paths, self._notes = files_below(root)
        self._all = [path for path in paths if is_video_name(path)]
        self._again: list[tuple[str, str]] = []
        self.of_stem: dict[str, str] = {}
        for path in sorted(self._all, key=lambda path: (not first(path), path)):
            if (before := self.of_stem.setdefault(Path(path).stem, path)) != path:
                self._again.append((before, path))

    def noted(self, catalog: Catalog) -> Catalog:
        """The catalogue with sentences on files that are there twice, and on those that no list needs."""
        notes = [*catalog.notes, *self._notes]
        if self._again:
            kept, other = self._again[0]
            more = f" (and {len(self._again) - 1} more like it)" if len(self._again) > 1 else ""
            notes.append(f"passed over '{other}', which is called like '{kept}'{more}")
        known = {row.source for row in catalog.rows} | {other for _, other in self._again}
        if unused := [path for path in self._all if path not in known]:
            those = f"{len(unused)} of {_many(len(self._all), 'file')}"
            notes.append(f"passed over {those} that no list asks for, e.g. '{unused[0]}'")
        return replace(catalog, notes=tuple(notes))


def catalog_of(
    root: Path, lists: Lists, find: Callable[[Listed], Row | None], classes: tuple[str, ...], wanted: str
) -> Catalog:
    """The catalogue of all lists.

    Args:
        root: Folder of the videos.
        lists: What was read.
        find: The row of an entry; None: its file is not there.
        classes: Class names in the order of their numbers.
        wanted: How its file would be called, for people.

    Raises:
        DataError: as `Lists.settled`.
    """
    kept, left_out, notes = lists.settled()
    rows: list[Row] = []
    missing: list[Listed] = []
    for one in kept:
        row = find(one)
        if row is None:
            missing.append(one)
        else:
            rows.append(row)
    if missing and rows:
        notes.append(_missing(kept, missing))
    left_out += [LeftOut(one.name, f"no file {wanted} is there ({one.where})") for one in missing]
    rows.sort(key=lambda row: row.path)
    return Catalog(root, tuple(rows), classes, tuple(notes), tuple(left_out))


def _missing(kept: Sequence[Listed], missing: Sequence[Listed]) -> str:
    of, gone = Counter(one.split for one in kept), Counter(one.split for one in missing)
    shares = ", ".join(f"{split} {gone[split]} of {of[split]}" for split in sorted(of, key=_rank))
    return (
        f"{_many(len(missing), 'listed video')} of {len(kept)} ({100 * len(missing) / len(kept):.2g} %; {shares}) "
        f"{_are(missing)} not there and left out, e.g. '{missing[0].name}'; verdicts.csv names them all"
    )


def _sentences(odd: Mapping[str, list[str]], torn: Sequence[LeftOut]) -> list[str]:
    """One sentence for each oddity that was met."""
    said = []
    if some := odd["broken"]:
        said.append(f"passed over {_many(len(some), 'broken line')}, e.g. {some[0]}")
    if some := odd["repeated"]:
        said.append(f"passed over {_many(len(some), 'line')} that say the same again, e.g. {some[0]}")
    if some := odd["moved"]:
        said.append(
            f"{_many(len(some), 'video')} listed in two splits {_are(some)} kept in the later of train, val, test only, "
            f"e.g. {some[0]}"
        )
    if torn:
        said.append(
            f"left out {_many(len(torn), 'video')} with two labels, e.g. '{torn[0].path}', {torn[0].reason}; "
            "verdicts.csv names them all"
        )
    return said


def _rank(split: str) -> tuple[int, str]:
    return (_LATER.index(split) if split in _LATER else len(_LATER), split)


def _many(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
