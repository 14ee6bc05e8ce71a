"""Is the loss still a number? Looked at in every step, without a wait for the device inside a step.

Each step's answer is one number on the device, shared by all ranks and copied aside without waiting; it is read `LAG` steps
later on a GPU and at once on a CPU, by all ranks at the same step, and always before a log row or a checkpoint is made. So
what is saved was trained by steps that were finite.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.training.agree import gather_over_ranks
from cluster.training.failure import Failure, Halt
from vidssl.distributed import rank, world
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import checkpoint_path, latest_step
from vidssl.saved.run_folder import RunFolder

__all__ = ["LAG", "FiniteWatch"]

LAG = 2
"""Steps on a GPU between a loss and the look at it."""
_SHOWN = 16


@dataclass(frozen=True)
class _Look:
    """One step's answer: [own, any rank's], 1 where the loss is not finite; `there` says when it has arrived."""

    step: int
    instance_B: Tensor
    bad_2: Tensor
    there: torch.cuda.Event | None


class FiniteWatch:
    """Stops a run at the step whose loss is not a finite number; `note` and `settle` are collectives."""

    def __init__(self, recipe: Recipe, folder: RunFolder, total_steps: int, device: torch.device) -> None:
        self._recipe, self._folder, self._total, self._device = recipe, folder, total_steps, device
        self._looks: deque[_Look] = deque()

    def note(self, step: int, loss: Tensor, instance_B: Tensor) -> None:
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
        there = None
        if self._device.type == "cuda":
            bad_2, there = torch.empty(2, pin_memory=True).copy_(bad_2, non_blocking=True), torch.cuda.Event()
            there.record()
        self._looks.append(_Look(step, instance_B, bad_2, there))
        while len(self._looks) > (LAG if there is not None else 0):
            self._look(self._looks.popleft())

    def settle(self) -> None:
        """Look at everything that was noted: before anything is logged or saved.

        Raises:
            Halt: as `note`.
        """
        while self._looks:
            self._look(self._looks.popleft())

    def _look(self, look: _Look) -> None:
        if look.there is not None:
            look.there.synchronize()
        own, anybody = look.bad_2.tolist()
        if not anybody:
            return
        told = gather_over_ranks((rank(), bool(own), look.instance_B.tolist()))
        first, _, videos = next(one for one in told if one[1])
        shown = ", ".join(map(str, videos[:_SHOWN])) + (f", … {len(videos)} in all" if len(videos) > _SHOWN else "")
        raise Halt(
            self._failure(
                f"the loss is not a finite number at step {look.step + 1} of {self._total} (rank {first}, videos {shown})"
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
