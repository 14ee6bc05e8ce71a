"""How long is a run, and where does its schedule stand? In steps or in samples, as the recipe says it.

| the recipe says | length | learning rate | after a change of workers or batch |
|---|---|---|---|
| `trainer.steps` | steps, whatever a step takes | by steps | the same steps, more or fewer samples |
| `trainer.epochs` | samples: every video so many times | by samples | the same samples, in more or fewer steps |

A warm-up counts steps in both.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.loading.order import Cursor, steps_of
from vidssl.recipe import Recipe, Trainer
from vidssl.saved.meta import Meta

__all__ = ["Length", "batch_of", "length_from", "notes_on"]


@dataclass(frozen=True)
class Length:
    """Length of a run that goes on from some step, with the workers it has now.

    Attributes:
        trainer: The recipe's section.
        videos: N, samples of an epoch.
        step: Optimizer steps done.
        seen: Samples taken by then, of all ranks.
    """

    trainer: Trainer
    videos: int
    step: int = 0
    seen: int = 0

    @property
    def together(self) -> int:
        """G, samples of a step of all workers."""
        return self.trainer.batch * self.trainer.workers

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run, those done included; the last one may bring samples of one epoch more."""
        left = max(self.trainer.epochs * self.videos - self.seen, 0)
        return self.trainer.steps or self.step + steps_of(left, self.together)

    @property
    def span(self) -> int:
        """Steps of the schedule: those of a run that had the workers of now from the beginning."""
        return self.trainer.steps or steps_of(self.trainer.epochs * self.videos, self.together)

    def passed(self, step: int) -> tuple[int, ...]:
        """Those of `trainer.keep_epochs` that end with this step (its number, from 0)."""
        after = self.seen + (step + 1 - self.step) * self.together
        return tuple(
            epoch for epoch in self.trainer.keep_epochs if after - self.together < epoch * self.videos <= after
        )

    def at(self, step: int) -> float:
        """Where the schedule stands in its `span`; a run that kept its workers stands at `step`."""
        if self.trainer.steps:
            return float(step)
        seen = self.seen + (step - self.step) * self.together
        return seen / self.together  # one division of whole numbers: the same after any resume


def length_from(trainer: Trainer, videos: int, meta: Meta) -> Length:
    """Of a run that goes on from a checkpoint; one of an older version tells its steps, of which samples follow."""
    seen = meta.seen
    if seen is None:
        seen = Cursor.of_steps(meta.step, videos, batch_of(meta, trainer) * meta.world).seen(videos)
    return Length(trainer, videos, meta.step, seen)


def batch_of(meta: Meta, trainer: Trainer) -> int:
    """B of the workers that wrote a checkpoint."""
    return int(meta.settings.get("trainer.batch", trainer.batch))


def notes_on(recipe: Recipe, length: Length, meta: Meta) -> list[str]:
    """What the user has to know of a run that goes on from this checkpoint, a sentence each; mostly nothing."""
    notes, before = [], batch_of(meta, recipe.trainer) * meta.world
    if meta.seen is None and (left := length.videos % before):
        notes.append(
            f"the checkpoint of step {meta.step} is of an older version of vidssl, which left {left} of {length.videos} "
            "videos out of every epoch; from here on every one comes"
        )
    now = recipe.trainer
    fewer = now.min_workers is not None and before == length.together  # of the same run, when nodes had left
    if (meta.world, batch_of(meta, now)) != (now.workers, now.batch) and not fewer:
        notes.append(_other_workers(recipe, length, meta))
    return notes


def _other_workers(recipe: Recipe, length: Length, meta: Meta) -> str:
    trainer, batch = recipe.trainer, batch_of(meta, recipe.trainer)
    before, now = meta.world * batch, length.together
    takes = f"a step takes {now} videos instead of {before}" if now != before else f"a step still takes {now} videos"
    if trainer.steps:
        rest = f"trainer.steps={trainer.steps} and the schedule of optim.lr go on in steps"
    else:
        rest = f"trainer.epochs={trainer.epochs} take {length.total - length.step} steps more, and the schedule of optim.lr goes on in samples"
    again = "; this deterministic run is then not the straight one bit for bit" if trainer.deterministic else ""
    return (
        f"the checkpoint of step {meta.step} is of {meta.world} worker(s) with {batch} videos each, and {trainer.workers} with "
        f"{trainer.batch} go on: {takes}, optim.lr={recipe.optim.lr:g} is not scaled, {rest}, and what is left of the epoch "
        f"comes once each{again}"
    )
