"""ViCC: clips of one video, in one view or in two, predict each other's prototypes (Toering et al. 2022).

Single: two clips of one stream. Cross: these two and the same two of a frozen second stream, all four against the
prototypes of the stream that learns; the second stream's terms train the prototypes alone. No momentum encoder.

The published runs encode the second clip without gradient, on rows shuffled over ranks (a by-product of running without
synchronised batch norm): `method.vicc.second_view_grad=false`. With true both clips teach the encoder, as in SwAV.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.distributed import gather_rows, rank
from vidssl.errors import CheckpointError, RecipeError, VidsslError
from vidssl.methods.base import Method, StepOutput
from vidssl.methods.stream import Stream
from vidssl.prototypes import (
    STUCK_STEPS,
    AssignmentQueue,
    Prototypes,
    near_ln_p,
    stuck_sentence,
    use_of,
)
from vidssl.recipe import Recipe
from vidssl.sinkhorn import sinkhorn, swapped_loss
from vidssl.transfer import Looks

__all__ = ["ViCC", "queue_rows"]

_log = logging.getLogger(__name__)

LOOK_EVERY = 50
"""Steps between two looks at what the device has found."""

_EXTRA = "extra.prototypes.weight"


class ViCC(Method):
    """Swapped prediction of prototypes; order inside a step as published.

    Both clips are encoded, the prototypes are made unit rows, the assignments are balanced over the batch of all ranks
    and, from epoch `vicc.queue_from_epoch` and once it is full, the queue; then the batch enters the queue.

    Raises:
        RecipeError: as `check`.
    """

    near: Tensor

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.check(recipe)
        self.vicc = recipe.method.vicc
        self.cross = recipe.method.streams == "cross"
        self.second: str | None = recipe.method.second_view if self.cross else None
        streams = {self.trained_view: Stream(recipe.model, view=self.trained_view, twin=False)}
        if self.second is not None:
            streams[self.second] = Stream(recipe.model, trained=False, view=self.second)
            if recipe.method.second_from is None:
                _log.warning(
                    "the second view '%s' has random weights: give method.second_from, a run that trained it",
                    self.second,
                )
        self.streams = nn.ModuleDict(streams)
        self.prototypes = Prototypes(recipe.model.dim, self.vicc.prototypes)
        self.queue = AssignmentQueue(4 if self.cross else 2, queue_rows(recipe), recipe.model.dim)
        self.register_buffer("near", torch.zeros((), dtype=torch.int64), persistent=False)
        self._looks: Looks[int] = Looks()
        self._warned = False

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Whether the recipe's words make sense for ViCC; what is allowed but surely not meant is logged.

        Raises:
            RecipeError: fewer or more than two clips per video; a queue smaller than one step; a warm-up; one prototype.
        """
        _check(recipe)
        if rank() == 0:
            _remark(recipe)

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`; `positives` are not read.

        Raises:
            VidsslError: the embeddings are no unit rows (training has diverged); looked at every 50 steps.
        """
        rows = self._rows(batch)
        self.prototypes.unit_()
        scores = self.prototypes(rows)
        assigned = self._assigned(batch, rows.detach(), scores.detach())
        loss = swapped_loss(scores, assigned, self.options.temperature)
        metrics: dict[str, float | Tensor] = {
            "loss/total": loss.detach(),
            "vicc/ln_p_gap": math.log(self.vicc.prototypes) - loss.detach(),
            **use_of(assigned),
        }
        if self.queue.size:
            metrics["queue/filled"] = self.queue.count / self.queue.size
        if self.training:
            self._watch(batch.step, rows.detach(), loss.detach())
        seen = {self.trained_view: rows[0].detach()}
        if self.second is not None:
            seen[self.second] = rows[3].detach()
        return StepOutput(loss, seen, metrics)

    def before_update(self, batch: ClipBatch) -> None:
        """In the first `vicc.freeze_epochs` epochs the prototypes do not move.

        They take part in the backward pass (all ranks exchange the same gradients) and lose the gradient after it: no
        optimizer acts on a gradient that is None, nor does weight decay.
        """
        if batch.epoch < self.vicc.freeze_epochs:
            self.prototypes.weight.grad = None

    def news(self) -> list[str]:
        """See `Method.news`: whether the queue is of other workers."""
        before, self.queue.came_from = self.queue.came_from, None
        if before is None:
            return []
        rest = ", and it is used again once it is full" if before < self.queue.size else ""
        return [
            f"the queue of assignments held {before} rows and holds {self.queue.size} for the workers of now: "
            f"its newest rows stay{rest}"
        ]

    def artifact(self, view: str) -> dict[str, Tensor]:
        """The encoder of a view and, of the trained one, its prototypes (`extra.prototypes.weight`)."""
        state = super().artifact(view)
        if view == self.trained_view:
            state[_EXTRA] = self.prototypes.weight.detach()
        return state

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Start the trained stream, and the prototypes where the artifact has some (the cross stage goes on with them).

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder, or other prototypes than the recipe's.
        """
        super().start_from(state)
        given = state.get(_EXTRA)
        if given is None:
            return
        if given.shape != self.prototypes.weight.shape:
            count, dim = given.shape
            raise CheckpointError(
                f"method.first_from brings {count} prototypes of {dim} columns, this run has {self.vicc.prototypes} of "
                f"{self.prototypes.in_features}; type method.vicc.prototypes={count} model.dim={dim}"
            )
        with torch.no_grad():
            self.prototypes.weight.copy_(given)

    def _rows(self, batch: ClipBatch) -> Tensor:
        """Unit rows [V, B, D] in the published order: f(x1), f(x2), g(f2), g(f1).

        Rows 2 are the second stream of clip *2*, rows 3 that of clip 1.
        """
        stream, clips = self.stream(self.trained_view), batch.clips[self.trained_view]
        views = [stream.queries(clips[:, 0])]
        if self.vicc.second_view_grad:
            views.append(stream.queries(clips[:, 1]))
        else:  # without a twin the keys are made by the encoder itself
            shuffle = self.options.shuffle_bn
            views.append(stream.keys(clips[:, 1], shuffle=shuffle, seed=self.seed, step=batch.step))
        if self.second is not None:
            frozen, others = self.stream(self.second), batch.clips[self.second]
            views += [frozen.frozen_rows(others[:, 1]), frozen.frozen_rows(others[:, 0])]
        return torch.stack(views)

    @torch.no_grad()
    def _assigned(self, batch: ClipBatch, rows: Tensor, scores: Tensor) -> Tensor:
        """Assignments [V, B, P] of this rank's rows; in training the rows of all ranks enter the queue after it."""
        queueing = batch.epoch >= self.vicc.queue_from_epoch
        queued = self.prototypes(self.queue.share()) if queueing and self.queue.full else None
        assigned = sinkhorn(scores, self.vicc.epsilon, self.vicc.iterations, queued)
        if queueing and self.training and self.queue.size:
            self.queue.push(gather_rows(rows.transpose(0, 1)).transpose(0, 1))
        return assigned

    def _watch(self, step: int, rows: Tensor, loss: Tensor) -> None:
        """Count steps near ln P on the device, and look at the count and at the rows now and then.

        On a GPU each look is at what the look before it noted.
        """
        self.near.copy_((self.near + 1) * near_ln_p(loss, self.vicc.prototypes))
        if step % LOOK_EVERY:
            return
        off = (rows.norm(dim=-1) - 1).abs().max()
        for noted, found in self._looks.note(step, torch.stack([off, self.near.to(off.dtype)])):
            self._see(noted, *found.tolist())

    def _see(self, step: int, off: float, count: float) -> None:
        if not off <= 1e-3:  # also where it is NaN
            raise VidsslError(
                f"the embeddings of step {step} are no unit rows (NaN, infinity or zeros): training has diverged; "
                "lower optim.lr or type a later method.vicc.queue_from_epoch"
            )
        if count >= STUCK_STEPS and not self._warned and rank() == 0:
            self._warned = True
            _log.warning("step %d: %s", step, stuck_sentence(int(count), self.vicc.prototypes))


def queue_rows(recipe: Recipe) -> int:
    """Rows of the queue over all ranks: `vicc.queue` rounded down to a multiple of the global batch, as published."""
    return recipe.method.vicc.queue - recipe.method.vicc.queue % _global_batch(recipe)


def _check(recipe: Recipe) -> None:
    method, vicc, together = recipe.method, recipe.method.vicc, _global_batch(recipe)
    if recipe.trainer.accumulate > 1:
        raise RecipeError(
            f"trainer.accumulate={recipe.trainer.accumulate}: vicc balances its assignments over all rows of a step at once; "
            "type trainer.accumulate=1, and model.checkpointing=true for less memory"
        )
    if recipe.clips.per_video != 2:
        raise RecipeError(
            f"vicc swaps two clips of a video, clips.per_video={recipe.clips.per_video}; type clips.per_video=2"
        )
    if vicc.prototypes < 2:
        raise RecipeError("method.vicc.prototypes=1 leaves nothing to predict; type method.vicc.prototypes=300")
    if method.warmup_steps:
        raise RecipeError(
            f"method.warmup_steps={method.warmup_steps}: vicc has no warm-up; type method.warmup_steps=0, and train "
            "the second stream in a run or phase of its own"
        )
    if 0 < vicc.queue < together:
        raise RecipeError(
            f"method.vicc.queue={vicc.queue} is smaller than one step of all workers ({together} videos); "
            f"type method.vicc.queue={together} or a multiple of it, or 0 for none"
        )


def _remark(recipe: Recipe) -> None:
    vicc, trainer = recipe.method.vicc, recipe.trainer
    if queue_rows(recipe) != vicc.queue:
        _log.warning(
            "method.vicc.queue=%d is no multiple of a step of all workers (%d videos): it holds %d rows",
            vicc.queue,
            _global_batch(recipe),
            queue_rows(recipe),
        )
    if trainer.steps is None and vicc.freeze_epochs >= trainer.epochs:
        _log.warning(
            "method.vicc.freeze_epochs=%d: the prototypes stay random in all %d epochs; type method.vicc.freeze_epochs=%d",
            vicc.freeze_epochs,
            trainer.epochs,
            trainer.epochs // 5,
        )


def _global_batch(recipe: Recipe) -> int:
    return recipe.trainer.batch * recipe.trainer.workers
