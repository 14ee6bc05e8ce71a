"""Kinetics-400, -600 and -700: the official CSV files beside whatever could be downloaded.

| a file is called | what it is |
|---|---|
| `YOUTUBEID_000010_000020.mp4` | the clip from second 10 to 20, cut already |
| `YOUTUBEID.mp4` | the whole video: the clip is cut out of it while packing |

Files lie as they like: flat, in class folders, in split folders. Where a clip is there more than once, one in a folder named
`replacement…` goes first (CVDF's for clips that its archives damaged), then one that is cut already.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.packing.formats.listed import SPLITS, Listed, Lists, Videos, catalog_of
from pipelines.packing.formats.official import list_files
from pipelines.packing.listing import Catalog, Format, Row
from pipelines.packing.options import PackOptions
from pipelines.packing.part import Part
from vidssl.errors import DataError

__all__ = ["KINETICS"]

_LIST = re.compile(r"(?:.*[_.-])?(train|val|validate|validation|test)\.(?:csv|txt)")
_NEEDED = ("youtube_id", "time_start", "time_end")
_CUT = re.compile(r"(.+)_(\d+)_(\d+)")


def _read(root: Path, options: PackOptions) -> Catalog:
    """Rows of label, youtube_id, time_start, time_end, split (others do not matter); group = youtube_id.

    Raises:
        DataError: no list, one without a column that is needed, or one that cannot be read.
    """
    lists = Lists()
    files = list_files(root, options, _LIST, (".", "annotations"), "train.csv")
    for word, path in files.items():
        _take(path, SPLITS.get(word, "all"), lists)
    videos = Videos(root, first=_is_replacement)
    classes = tuple(sorted({one.label for one in lists.listed if one.label}))
    wanted = "called YOUTUBEID_000010_000020 (a clip) or YOUTUBEID (the whole video)"
    return videos.noted(catalog_of(root, lists, _finder(videos), classes, wanted))


def _take(path: Path, split: str, lists: Lists) -> None:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            table = csv.DictReader(stream, skipinitialspace=True)
            missing = [name for name in _NEEDED if name not in (table.fieldnames or ())]
            if missing:
                found = ", ".join(table.fieldnames or ()) or "nothing"
                raise DataError(f"{path} has no column '{missing[0]}' (its first line is: {found})")
            for fields in table:
                where = f"{path.name} line {table.line_num}"
                try:
                    lists.listed.append(_listed(fields, split, where))
                except ValueError as error:
                    lists.broken.append(f"{where}: {error}")
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _listed(fields: Mapping[str | None, str | None], split: str, where: str) -> Listed:
    """One line; ValueError says what is wrong with it."""
    text = {name: (fields.get(name) or "").strip() for name in (*_NEEDED, "label", "split")}
    if not text["youtube_id"] or "\0" in text["youtube_id"]:
        raise ValueError("it has no youtube_id")
    start, stop = (_seconds(name, text[name]) for name in ("time_start", "time_end"))
    if not 0 <= start < stop:
        raise ValueError(f"its range {start:g} to {stop:g} s holds nothing")
    if text["split"] and text["split"] not in SPLITS:
        raise ValueError(f"split '{text['split']}' is none of {', '.join(SPLITS)}")
    source = text["youtube_id"]
    name = f"{source}_{start:06g}_{stop:06g}"
    return Listed(name, source, text["label"] or None, SPLITS.get(text["split"], split), where, start, stop)


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{name} '{text}' is no number of seconds") from None
    if not seconds < 1e6:  # NaN neither
        raise ValueError(f"{name} '{text}' is no number of seconds")
    return seconds


def _finder(videos: Videos) -> Callable[[Listed], Row | None]:
    cut: dict[tuple[str, float, float], str] = {}
    for stem, path in videos.of_stem.items():
        if match := _CUT.fullmatch(stem):
            cut.setdefault((match[1], float(match[2]), float(match[3])), path)

    def find(one: Listed) -> Row | None:
        assert one.start is not None
        assert one.stop is not None
        path = cut.get((one.source, one.start, one.stop))
        if path is not None:
            return Row(path, one.label, one.split, one.source)
        path = videos.of_stem.get(one.source)
        if path is None:
            return None
        name = f"{path}#t={one.start:g},{one.stop:g}"
        return Row(name, one.label, one.split, one.source, path, Part(one.start, one.stop))

    return find


def _is_replacement(path: str) -> bool:
    return any(part.startswith("replacement") for part in path.split("/")[:-1])


KINETICS = Format(
    _read, looks_for="files called YOUTUBEID_000010_000020 or YOUTUBEID, beside train.csv …", has_split_files=True
)
