"""Something-Something v2: the official JSON files beside a folder of ID.webm.

The class of a video is its template without brackets; labels.json numbers the classes. The files are known by their first names
(`something-something-v2-train.json` …) and by their later ones (`train.json` …).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.packing.formats.listed import SPLITS, Listed, Lists, Videos, catalog_of
from pipelines.packing.formats.official import lines_of, list_files
from pipelines.packing.listing import Catalog, Format, Row
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError

__all__ = ["SSV2"]

_LIST = re.compile(
    r"(?:something-something-v2-)?"
    r"((?:train|val|validation|test|labels)(?=\.json)|test-answers(?=\.csv))\.(?:json|csv)"
)


def _read(root: Path, options: PackOptions) -> Catalog:
    """Rows of id, template; every video is its own group. Without test-answers.csv the test split has no labels.

    Raises:
        DataError: no lists, no labels.json, or one that cannot be read.
    """
    files = list_files(root, options, _LIST, (".", "labels", "annotations"), "train.json")
    place = next(iter(files.values())).parent
    if "labels" not in files:
        raise DataError(f"{place} has no labels.json, which numbers the classes; put it beside the other lists")
    classes = _classes(files["labels"])
    known = {_bare(name): name for name in classes}
    answers = _answers(files["test-answers"]) if "test-answers" in files else {}
    lists = Lists()
    for word, path in files.items():
        if word in SPLITS:
            _take(path, SPLITS[word], known, answers, lists)
    videos = Videos(root)

    def find(one: Listed) -> Row | None:
        path = videos.of_stem.get(one.name)
        return None if path is None else Row(path, one.label, one.split, path)

    return videos.noted(catalog_of(root, lists, find, classes, "called ID.webm"))


def _take(path: Path, split: str, known: Mapping[str, str], answers: Mapping[str, str], lists: Lists) -> None:
    for number, entry in _entries(path):
        where = f"{path.name} entry {number}"
        found = entry.get("id") if isinstance(entry, dict) else None
        name = str(found) if isinstance(found, int | str) and not isinstance(found, bool) else ""
        if not name or "/" in name or "\0" in name:
            lists.broken.append(f"{where}: it has no id")
            continue
        template = entry.get("template") or (answers.get(name) if split == "test" else None)
        label = known.get(_bare(str(template))) if template else None
        if template and label is None:
            lists.broken.append(f"{where}: '{template}' is not in labels.json")
        elif label is None and split != "test":
            lists.broken.append(f"{where}: it has no template")
        else:
            lists.listed.append(Listed(name, name, label, split, where))


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    tree = _json(path)
    if not isinstance(tree, list):
        raise DataError(f"{path} is no list of videos; it belongs to the official annotation files")
    return enumerate(tree, start=1)


def _classes(path: Path) -> tuple[str, ...]:
    tree = _json(path)
    try:
        number_of = {str(name): int(number) for name, number in tree.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path} gives no number to every class; it belongs to the official annotation files") from None
    if sorted(number_of.values()) != list(range(len(number_of))):
        raise DataError(f"{path} does not number its {len(number_of)} classes from 0 to {len(number_of) - 1}")
    return tuple(sorted(number_of, key=lambda name: number_of[name]))


def _answers(path: Path) -> dict[str, str]:
    """Lines of ID;template."""
    pairs = (line.partition(";") for line in lines_of(path))
    return {name.strip(): template.strip() for name, _, template in pairs}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); it belongs to the official annotation files") from error


def _bare(template: str) -> str:
    """A template as labels.json spells it, whatever its brackets, commas and capitals."""
    return " ".join(re.sub(r"[\[\],]", "", template).casefold().split())


SSV2 = Format(_read, looks_for="ID.webm, beside train.json, labels.json …", has_split_files=True)
