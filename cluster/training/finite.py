"""Is the loss still a number? Looked at in every step, without a wait for the device inside a step.

Each step's answer is one number on the device, shared by all ranks and copied aside without waiting; it is read `LAG` steps
later on a GPU and at once on a CPU, by all ranks at the same step, and always before a log row or a checkpoint is made. So
what is saved was trained by steps that were finite.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cluster.training.failure import Failure, Halt
from vidssl.distributed import gather_objects, rank, world
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import checkpoint_path, latest_step
from vidssl.saved.run_folder import RunFolder
from vidssl.transfer import Looks

__all__ = ["LAG", "FiniteWatch"]

LAG = 2
"""Steps on a GPU between a loss and the look at it."""
_SHOWN = 16


class FiniteWatch:
    """Stops a run at the step whose loss is not a finite number; `note` and `settle` are collectives."""

    def __init__(self, recipe: Recipe, folder: RunFolder, total_steps: int) -> None:
        self._recipe, self._folder, self._total = recipe, folder, total_steps
        self._looks: Looks[tuple[int, NDArray[np.int64]]] = Looks(LAG)

    def note(self, step: int, loss: Tensor, instance_B: NDArray[np.int64]) -> None:
        """Take one step's loss, before the weights are changed by it.

        Args:
            step: From 0.
            loss: Scalar.
            instance_B: The videos of this rank's batch.

        Raises:
            Halt: on all ranks, at the same step.
        """
        bad_2 = (~torch.isfinite(loss.detach())).to(torch.float32).reshape(1).repeat(2)
        if world() > 1:
            dist.all_reduce(bad_2[1:], op=dist.ReduceOp.MAX)
        for (noted, videos), found_2 in self._looks.note((step, instance_B), bad_2):
            self._look(noted, videos, found_2)

    def settle(self) -> None:
        """Look at everything that was noted: before anything is logged or saved.

        Raises:
            Halt: as `note`.
        """
        for (noted, videos), found_2 in self._looks.rest():
            self._look(noted, videos, found_2)

    def _look(self, step: int, instance_B: NDArray[np.int64], bad_2: Tensor) -> None:
        """`bad_2`: 1 where the loss is not finite, own and any rank's."""
        own, anybody = bad_2.tolist()
        if not anybody:
            return
        told = gather_objects((rank(), bool(own), instance_B.tolist()))
        first, _, videos = next(one for one in told if one[1])
        shown = ", ".join(map(str, videos[:_SHOWN])) + (f", … {len(videos)} in all" if len(videos) > _SHOWN else "")
        raise Halt(
            self._failure(
                f"the loss is not a finite number at step {step + 1} of {self._total} (rank {first}, videos {shown})"
            )
        )

    def _failure(self, what: str) -> Failure:
        last, optim = latest_step(self._folder), self._recipe.optim
        good = (
            "there is no checkpoint yet"
            if last is None
            else f"the last good one is {checkpoint_path(self._folder, last)}"
        )
        bf16 = ", trainer.precision=fp32" if self._recipe.trainer.precision == "bf16" else ""
        tries = f"type name=OTHER with a lower optim.lr (it is {optim.lr:g}){bf16}, or look at these videos"
        return Failure("VidsslError", f"{what}: nothing of it was saved, {good}; {tries}", again=False)
