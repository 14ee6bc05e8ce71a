"""`vidssl mine RUN|CARD`: stages × pool × k × strategy × space on rows that are there or made now, in seconds.

Into `--out` (RUN/mine) go `mine.json`, `points.png` and `classes.png`. The same points spread over a cluster: `vidssl sweep`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.mine.measure import Measured, measure
from cluster.mine.picture import draw_classes, draw_points
from cluster.mine.result import KIND, RESULT, MineResult, mine_result
from cluster.mine.sources import Opened, open_rows
from cluster.mine.study import Study, carried
from cluster.mine.table import live_line, table_text
from cluster.mine.words import MineWords, Point, own_point, read_search, reference_points, search_points
from vidssl.errors import CheckpointError, StorageError
from vidssl.files import remove_parts, storage_error
from vidssl.lock import held
from vidssl.marks import mark, refuse_foreign
from vidssl.records import write_record
from vidssl.saved.card import is_card
from vidssl.saved.run_folder import open_run

__all__ = ["run_mine"]

Say = Callable[[str], None]

_QUIET_S = 2.0
"""Seconds between two live lines."""
_LONG_S = 120.0
"""Seconds from which on it is said beforehand how long all points will take."""


def run_mine(home: str, words: Sequence[str], out: str | None = None, say: Say | None = None) -> str:
    """Measure ways of mining on a run's or card's rows and return what to print.

    Args:
        home: A run folder or a card folder.
        words: The keys of `MineWords`, `mining.KEY=…`, and what `cluster.subject.open_subject` takes.
        out: Folder for the results; none: RUN/mine.
        say: Takes a line now and then; none: they go to standard error.

    Raises:
        VidsslError: as `open_rows`; an unknown word, no point that could be tried, a folder of somebody else's.
        BusyError: another one writes there.
        StorageError: the disk is full.
    """
    say = say or _to_stderr
    search, rest = read_search(MineWords, words, "mine")
    folder = _home(home)
    results = (Path(out).expanduser() if out else folder / "mine").resolve()
    refuse_foreign(results, KIND, "type --out FOLDER with a folder that is new or empty")
    opened = open_rows(folder, search, rest, say)
    study, recipe = opened.study, opened.recipe
    views = 1 if study.aux is None else 2
    search, left_out = carried(study, search)
    own_space = study.space(recipe.mining.space).kind
    own = own_point(recipe.mining, study.n_filled, own_space) if recipe.mines and views == 2 else None
    points = search_points(search, study.n_filled, recipe.mining, views)
    points += reference_points(search, study.n_filled, recipe.mining, views, study.labelled)
    if own is not None and own not in points and own.topk in {point.topk for point in points}:
        points.insert(0, own)
    try:
        with held(results, "mine", say):
            measured = _measured(study, points, say)
            metric, k = search.metric, recipe.mining.topk
            kept = mine_result(measured, study, metric, k, own, opened.protocol)
            rows = [one.row for one in measured]
            files = _write(results, kept, measured, study, metric)
            return "\n".join(
                [*table_text(rows, study, metric, k, own), *left_out, *_one_view(opened), "", *map(str, files)]
            )
    except StorageError as error:
        raise type(error)(f"{error}; type --out FOLDER") from error


def _home(home: str) -> Path:
    """The folder of a run or card that is there."""
    if is_card(home):
        return Path(home).expanduser().resolve()
    try:
        return open_run(home).path
    except CheckpointError as error:
        raise CheckpointError(
            f"{home} is no run folder (it has no recipe.yaml) and no card folder (no card.json); "
            "give the folder that `vidssl train`, `vidssl import` or `vidssl export` named"
        ) from error


def _measured(study: Study, points: Sequence[Point], say: Say) -> list[Measured]:
    measured: list[Measured] = []
    threads, rows, last = len(os.sched_getaffinity(0)), {}, time.monotonic()
    for number, point in enumerate(points, 1):
        if point.space not in rows:
            rows[point.space] = study.rows_in(point.space)
        measured.append(measure(study, point, rows[point.space], threads))
        if number == 3 and (all_s := sum(one.row.seconds for one in measured) / 3 * len(points)) > _LONG_S:
            say(
                f"{len(points)} points with {len(study.queries):,} queries each in {study.n_filled:,} rows take about "
                f"{all_s / 60:.0f} minutes; type queries=N or trials=M for less"
            )
        if time.monotonic() - last > _QUIET_S:
            last = time.monotonic()
            say(live_line(number, len(points), measured[-1].row))
    return measured


def _write(folder: Path, kept: MineResult, measured: Sequence[Measured], study: Study, metric: str) -> list[Path]:
    files = [folder / RESULT, folder / "points.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, KIND)
        remove_parts(folder)
        write_record(files[0], kept)
        draw_points([one.row for one in measured], metric, study, files[1])
        if kept.best is not None:
            files.append(folder / "classes.png")
            draw_classes(kept.best.point.describe(), kept.per_class, kept.beside, files[2])
    except OSError as error:
        raise storage_error(error, folder, instead="make room and type the same words again") from error
    return files


def _one_view(opened: Opened) -> list[str]:
    if opened.study.aux is not None:
        return []
    return [
        f"There is an encoder of one view ({opened.study.views[0]}), so there is top-k and no cascade; "
        "type second=RUN|CARD with one of the other stream."
    ]


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
