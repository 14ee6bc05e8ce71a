"""Tars of videos in WebDataset's form: KEY.mp4 with KEY.cls, KEY.txt or KEY.json beside it. Nothing is unpacked.

Members that follow each other and are called alike up to the first dot of their file name are one sample; its video is read
from the tar itself, where it lies. The split is what the name of the tar says, if every tar says one (`train-00000.tar`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipelines.packing.formats.listed import SPLITS
from pipelines.packing.listing import Catalog, Format, LeftOut, Row, files_below, is_video_name
from pipelines.packing.options import PackOptions
from pipelines.packing.part import Part
from vidssl.errors import DataError, RecipeError

__all__ = ["WEBDATASET"]

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_WORD = re.compile(r"(?:^|[/_.-])(train|val|validation|validate|test)(?=[/_.-]|$)")
_LONGEST = 1 << 24  # bytes of a label file: more is no label
_BLOCK = 512


@dataclass
class _Sample:
    """Members of one name, while a tar is read."""

    key: str
    video: tarfile.TarInfo | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass
class _Found:
    """What the tars hold."""

    rows: dict[str, Row] = field(default_factory=dict)
    damaged: list[LeftOut] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)


def _read(root: Path, options: PackOptions) -> Catalog:
    """A row per sample, called TAR/KEY.mp4; label and group from `label_key` and `group_key`.

    Raises:
        DataError: a tar that is compressed or cannot be opened, or none that is whole.
        RecipeError: a key that no sample has.
    """
    paths, notes = files_below(root)
    for path in paths:
        if path.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            raise DataError(
                f"{root / path} is compressed, so its videos cannot be read one by one; decompress it first"
            )
    tars = [path for path in paths if path.lower().endswith(".tar")]
    split_of = _splits(tars)
    found = _Found()
    for path in tars:
        _take(root, path, split_of[path], options, found)
    rows = tuple(sorted(found.rows.values(), key=lambda row: row.path))
    _refuse_unknown_keys(rows, options, found)
    return Catalog(root, rows, _classes(rows), (*notes, *_notes(found, len(rows))), tuple(found.damaged))


def _splits(tars: Sequence[str]) -> dict[str, str]:
    words = {path: _WORD.findall(path.lower()) for path in tars}
    if not all(words.values()):
        return dict.fromkeys(tars, "all")
    return {path: SPLITS[found[-1]] for path, found in words.items()}


def _take(root: Path, path: str, split: str, options: PackOptions, found: _Found) -> None:
    """The samples of one tar; of a damaged one, those before the damage."""
    try:
        with (root / path).open("rb") as stream:
            for sample in _samples(stream, options):
                _add(sample, path, split, options, found)
    except tarfile.TarError as error:
        found.damaged.append(LeftOut(path, f"the tar is damaged ({error}); what lies behind the damage is not seen"))
    except OSError as error:
        raise DataError(f"{root / path} cannot be read: {error.strerror}") from error


def _add(sample: _Sample, path: str, split: str, options: PackOptions, found: _Found) -> None:
    name = f"{path}/{sample.key}"
    if sample.video is None:
        found.without.append(name)
        return
    video = sample.video
    name = f"{path}/{video.name.removeprefix('./')}"
    label = _text(sample, options.label_key or "cls")
    if label is None:
        found.unlabelled.append(name)
    if name in found.rows:  # as when a tar is unpacked, the later member counts
        found.again.append(name)
    group = _text(sample, options.group_key) if options.group_key else None
    found.rows[name] = Row(name, label, split, group or name, path, Part(offset=video.offset_data, size=video.size))


def _samples(stream: BinaryIO, options: PackOptions) -> Iterator[_Sample]:
    """Samples of a tar, in its order.

    Raises:
        tarfile.TarError: it is damaged; the samples before were given out.
    """
    wanted = {key.partition(".")[0] for key in (options.label_key or "cls", options.group_key or "cls")}
    sample: _Sample | None = None
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            match = _NAME.fullmatch(member.name)
            if match is None or not member.isreg() or member.name.startswith("__"):
                continue
            if sample is None or sample.key != match[1]:
                if sample is not None:
                    yield sample
                sample = _Sample(match[1])
            ending = match[2].lower()
            if ending in wanted and member.size <= _LONGEST:
                sample.texts[ending] = _bytes(tar, member)
            elif is_video_name(f"x.{ending}") and "." not in ending and sample.video is None:
                sample.video = member
        if sample is not None:
            yield sample
        _insist_on_the_end(stream, tar.offset)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read()


def _insist_on_the_end(stream: BinaryIO, offset: int) -> None:
    """`tarfile` takes a header that makes no sense for the end; a tar ends with zeros, or with its last member."""
    stream.seek(offset)
    if any(stream.read(_BLOCK)):
        raise tarfile.ReadError(f"no header at byte {offset}")


def _text(sample: _Sample, key: str) -> str | None:
    """A label or a group out of a sample; None: it has none, or none that can be read."""
    member, _, inner = key.partition(".")
    data = sample.texts.get(member)
    if data is None:
        return None
    try:
        value: object = data.decode("utf-8") if member != "json" else json.loads(data)
    except (ValueError, RecursionError):
        return None
    for name in inner.split(".") if inner else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def _refuse_unknown_keys(rows: Sequence[Row], options: PackOptions, found: _Found) -> None:
    if not rows:
        return
    if options.label_key and len(found.unlabelled) >= len(rows):
        raise RecipeError(f"label_key={options.label_key} is in no sample, e.g. not in that of '{rows[0].path}'")
    if options.group_key and all(row.group == row.path for row in rows):
        raise RecipeError(f"group_key={options.group_key} is in no sample, e.g. not in that of '{rows[0].path}'")


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names in order; where all are numbers, by number, so that a class keeps its place."""
    names = {row.label for row in rows if row.label is not None}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _notes(found: _Found, rows: int) -> Iterator[str]:
    if some := found.damaged:
        those = "1 tar is" if len(some) == 1 else f"{len(some)} tars are"
        yield f"{those} damaged, e.g. '{some[0].path}': {some[0].reason}; verdicts.csv names them all"
    if some := found.without:
        yield f"passed over {len(some)} samples without a video, e.g. '{some[0]}'"
    if some := found.again:
        yield f"{len(some)} names stand in a tar twice, and the later member counts, e.g. '{some[0]}'"
    if some := found.unlabelled:
        yield f"{len(some)} of {rows} samples have no label, e.g. '{some[0]}'; label_key=json.KEY or txt takes it from there"


WEBDATASET = Format(_read, looks_for="tars of KEY.mp4 with KEY.cls, KEY.txt or KEY.json", has_keys=True)
