"""Small recipes for the tests of training: seconds a run, every part of a real one."""

from __future__ import annotations

from pathlib import Path

from vidssl.recipe import Recipe, load_recipe

RECIPE = """\
name: small
clips: {frames: 4, stride: 2, size: 32}
augment: {flip: false}
model: {backbone: tiny, dim: 16, width: 4}
method: {name: cpr, view: residual, second_view: rgb, warmup_steps: 5, queue: 24, momentum: 0.9}
mining: {where: actor, stages: 3, pool: 8, topk: 2}
trainer: {workers: 2, batch: 4, steps: 24, checkpoint_every_steps: 8, log_every_steps: 1, deterministic: true}
"""


def small(packed: Path, folder: Path, *words: str) -> Recipe:
    """The small recipe on `packed`, its runs below `folder` (a later word wins)."""
    (folder / "small.yaml").write_text(RECIPE)
    return load_recipe(str(folder / "small.yaml"), [f"data={packed}", f"trainer.storage={folder}", *words])


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def leftovers(run: Path) -> list[str]:
    """What no finished, stopped or refused command may leave in a run folder: locks, flags, files aside, Ray's own."""
    ends = (".tmp", ".part", ".ray", "STOP", ".vidssl.lock")
    return sorted(str(path) for path in run.rglob("*") if path.name.endswith(ends))
