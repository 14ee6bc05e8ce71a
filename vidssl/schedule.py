"""How large is the learning rate at a step? A pure function of recipe and step, so that nothing must be restored."""

from __future__ import annotations

import math

from vidssl.errors import RecipeError
from vidssl.recipe import Optim

__all__ = ["learning_rate"]


def learning_rate(optim: Optim, step: int, total: int, at: float | None = None) -> float:
    """The rate of `step`.

    It grows linearly to `optim.lr` over `optim.warmup_steps` (step 0 has 1/warmup of it, the first step after the warm-up
    all of it), then stays (`constant`), falls along half a cosine and would be `optim.min_lr` at step `total` (`cosine`), or is
    multiplied by `optim.gamma` at each milestone (`step`; CoCLR and CPR: Adam, milestone 0.8).

    Args:
        optim: Recipe section.
        step: From 0; steps from `total` on keep the rate of the last one.
        total: Steps of the whole run; milestones are shares of it.
        at: Where the schedule stands in `total`, of a run whose steps became larger or smaller; None: at `step`. The warm-up
            counts steps all the same.

    Raises:
        RecipeError: `total` below 1, a negative step, a warm-up that fills the run.
    """
    if total < 1 or step < 0:
        raise RecipeError(f"step {step} of {total}: a run has at least one step and its first step is 0")
    if optim.warmup_steps >= total:
        raise RecipeError(
            f"optim.warmup_steps={optim.warmup_steps} fills the run of {total} steps; set it below {total}"
        )
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    at = min(step if at is None else at, total - 1)
    if optim.schedule == "cosine":
        progress = max(at - optim.warmup_steps, 0) / (total - optim.warmup_steps)
        return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "step":
        return optim.lr * optim.gamma ** sum(at >= milestone * total for milestone in optim.milestones)
    return optim.lr
