"""What does a sweep of trainings leave? best.yaml, outcome.json, pictures and TensorBoard's hparams beside its rows, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cluster.sweep.chart import draw_arms
from cluster.sweep.held_out import kept_at
from cluster.sweep.outcome import Arm, Outcome, outcome_of, table_lines
from cluster.sweep.parallel import AXES_PICTURE, draw_axes
from cluster.sweep.search import Sweep
from cluster.sweep.space import Training
from cluster.sweep.trained import TrainedRow, answer_folder
from vidssl.errors import CheckpointError
from vidssl.files import write_whole
from vidssl.records import write_record

__all__ = ["OUTCOME", "PICTURE", "SweptOutcome", "write_outcome"]

OUTCOME: Final = "outcome.json"
PICTURE: Final = "sweep.png"


@dataclass(frozen=True, kw_only=True)
class SweptOutcome:
    """What a sweep of trainings found: the content of outcome.json.

    Attributes:
        name: The recipe or ablation.
        sampler: grid | random | optuna.
        schedule: all | asha.
        seeds: Of every point.
        possible: Points that could be trained.
        found: Arms, best first.
    """

    name: str
    sampler: str
    schedule: str
    seeds: tuple[int, ...]
    possible: int
    found: Outcome


def write_outcome(
    folder: Path, rows: Sequence[TrainedRow], trainings: Sequence[Training], sweep: Sweep, asked: str
) -> str:
    """Write what the rows say; returns the text to print.

    Raises:
        OSError: a file cannot be written.
    """
    if not rows:
        return "nothing is trained yet"
    points = {one.arm: one.at for one in trainings}
    found = outcome_of(rows, _hits(rows, trainings, asked), points)
    picture, files = folder / PICTURE, [str(folder / "sweep.csv")]
    draw_arms(found, rows, picture)
    files.append(str(picture))
    if draw_axes(found, folder / AXES_PICTURE):
        files.append(str(folder / AXES_PICTURE))
    search = sweep.search
    about = {"sampler": search.sampler, "schedule": search.schedule, "seeds": search.seeds, "possible": len(points)}
    write_record(folder / OUTCOME, SweptOutcome(name=sweep.name, found=found, **about))
    if found.best is not None:
        best = folder / "best.yaml"
        write_whole(best, _best_yaml(found.best, trainings, sweep, found))
        files.append(f"{best}   (vidssl train {best})")
    files.append(str(_hparams(folder / "tensorboard", rows, trainings)))
    return "\n".join([*table_lines(found, len(sweep.search.seeds)), "", *files])


def _hits(rows: Iterable[TrainedRow], trainings: Sequence[Training], asked: str) -> dict[str, NDArray[np.float64]]:
    """Of finished trainings, query by query; one whose file is gone, or whose videos could not all be read, is left out."""
    recipes = {one.key: one.recipe for one in trainings}
    found: dict[str, NDArray[np.float64]] = {}
    videos: tuple[int, ...] | None = None
    for row in rows:
        if row.state != "finished":
            continue
        try:
            kept = kept_at(answer_folder(recipes[row.key]), row.step, asked)
        except CheckpointError:
            kept = None
        videos = kept.videos if videos is None and kept is not None else videos
        if kept is not None and kept.videos == videos:
            found[row.key] = np.array(kept.hits)
    return found


def _best_yaml(best: Arm, trainings: Sequence[Training], sweep: Sweep, found: Outcome) -> str:
    """The recipe of the best arm, to be trained anew: under its own name, in the base's storage, of the base's seed."""
    recipe = next(one.recipe for one in trainings if one.arm == best.label)
    trainer = recipe.trainer.model_copy(update={"storage": sweep.base.trainer.storage})
    again = recipe.model_copy(update={"name": f"{sweep.base.name}-best", "seed": sweep.base.seed, "trainer": trainer})
    alike = ", ".join(arm.label for arm in found.alike) or "none"
    lines = [
        f"# {best.label}: best of {len(found.arms)} arms of {sweep.name} by R@1 of held-out training groups, {100 * best.r1:.1f}",
        f"# 95 %: {100 * best.interval95[0]:.1f} to {100 * best.interval95[1]:.1f}, {len(best.finished)} seed(s); cannot be told apart from it: {alike}",
    ]
    return "\n".join([*lines, again.to_yaml()])


def _hparams(folder: Path, rows: Sequence[TrainedRow], trainings: Sequence[Training]) -> Path:
    """A session per training, with the keys that differ between trainings; written anew each time."""
    from torch.utils.tensorboard.writer import SummaryWriter

    settings = {one.key: one.recipe.settings() for one in trainings}
    keys = sorted({key for tree in settings.values() for key in tree} - {"data"})
    differing = [key for key in keys if len({repr(tree.get(key)) for tree in settings.values()}) > 1]
    last = {row.key: row for row in sorted(rows, key=lambda row: row.percent)}
    for row in last.values():
        session = folder / row.run
        for former in session.glob("events.out.tfevents.*"):
            former.unlink()
        with SummaryWriter(str(session)) as writer:
            plain = {key: _plain(settings[row.key].get(key)) for key in differing}
            writer.add_hparams(plain, {"held_out/r1": row.r1}, run_name=".", global_step=row.step)
    return folder


def _plain(value: object) -> str | float | bool:
    return value if isinstance(value, bool | int | float | str) else repr(value)
