"""Long sources → clips: how they are to be cut (`cut=`), what was found in each, and the rows that come of it.

Where to cut is found first, source by source, in the guarded child (`pipelines.packing.survey`) and written down; then every clip
is a row like any other, a range of its file. So a pack that is killed goes on clip by clip, the clips of one long source are
packed side by side, and each has a verdict of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.packing.listing import Catalog, Row
from pipelines.packing.verdict import Outcome, Verdict

__all__ = ["Surveyed", "clips_of", "places", "with_clips"]


@dataclass(frozen=True)
class Surveyed:
    """A catalogue of clips.

    Attributes:
        catalog: A row per clip; what is not cut is a row as before.
        verdicts: Row → the outcome that is clear without packing it.
        sources: How many sources were cut.
    """

    catalog: Catalog
    verdicts: Mapping[int, Outcome]
    sources: int


def places(every: float, seconds: float) -> tuple[float, ...]:
    """Where a source of that many seconds is cut into clips of `every` seconds: 0, every, …, seconds."""
    inner = (round(number * every, 3) for number in range(1, int(seconds / every) + 1))
    return (0.0, *(place for place in inner if place < seconds), seconds)


def with_clips(catalog: Catalog, surveys: Mapping[int, tuple[Verdict, Sequence[float]]], least: float) -> Surveyed:
    """The catalogue with a row per clip.

    Args:
        catalog: The sources.
        surveys: Row of a source → the verdict on it and its places, in seconds; rows that are ranges already have none.
        least: Shortest clip, seconds.
    """
    rows: list[Row] = []
    clear: dict[int, Outcome] = {}
    cut = 0
    for number, source in enumerate(catalog.rows):
        verdict, bounds = surveys.get(number, (None, ()))
        if verdict is not None and verdict.verdict == "rejected":
            clear[len(rows)] = Outcome(replace(verdict, path=source.path))
        clips = list(clips_of(source, bounds))
        cut += len(clips) > 1
        for clip in clips:
            start, stop = clip.part.start, clip.part.stop
            if len(clips) > 1 and start is not None and stop is not None and stop - start < least:
                clear[len(rows)] = Outcome(
                    Verdict(clip.path, "rejected", f"a clip of {stop - start:.3g} s is too short (cut_min={least:g})")
                )
            rows.append(clip)
    return Surveyed(replace(catalog, rows=tuple(rows)), clear, cut)


def clips_of(source: Row, bounds: Sequence[float]) -> Iterator[Row]:
    """The clips of a source between its places; siblings, for they keep its group. Where there is one, it is the source."""
    if len(bounds) < 3:
        yield source
        return
    for start, stop in itertools.pairwise(bounds):
        name = f"{source.path}#t={_plain(start)},{_plain(stop)}"
        yield replace(source, path=name, file=source.source, part=replace(source.part, start=start, stop=stop))


def _plain(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
