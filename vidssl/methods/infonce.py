"""InfoNCE on clips (MoCo): a clip should find the other clip of its video among K others. One stream.

With `method.cascade` CPR is put on top: after `method.warmup_steps` steps the cascade finds each row positives in the
same stream. Its two views are then the two clips: main is the key of clip 2, aux the query of clip 1. CPR's
abstract says that it is "easily applied to previous work"; this choice of views is ours.
"""

from __future__ import annotations

from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.losses import contrast, info_nce
from vidssl.methods.base import StepOutput
from vidssl.methods.fitted import fitted_space
from vidssl.methods.mined import MinedLoss, Rows, own_accuracy
from vidssl.methods.moco import MoCo
from vidssl.methods.stream import Stream
from vidssl.queue import RingQueue
from vidssl.recipe import Pretext, Recipe

__all__ = ["InfoNCE", "info_nce_of", "table_of"]


class InfoNCE(MoCo):
    """q of clip 1 against its key (twin, clip 2) and the queue.

    Slots that were never written are no negatives (the published queue starts with random ones). With
    `method.exclude_siblings` slots of the same group leave the softmax; the published code keeps them as negatives.
    In the main period of `method.cascade` they are positives, as in CoCLR.

    With `mining.where=inline` both views mine among the queue's keys, as q and kf do in CoCLR. The bank's actor keeps a
    row of each: queries mine among queries (main) and keys among keys (aux, whose rows are handed out).

    Raises:
        RecipeError: `mining.where=inline` with a cascade that the queue is too small for.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        view = self.trained_view
        self.streams = nn.ModuleDict({view: Stream(recipe.model, view=view)})
        self.queue = RingQueue((view,), recipe.method.queue, recipe.model.dim)
        if recipe.method.cascade:
            self.space = fitted_space(recipe.mining, recipe.model.dim, seed)
            self.mined = MinedLoss(recipe, seed, main=view, keys=view, space=self.space)

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`; `positives` are read in the main period of `method.cascade` only."""
        view = self.trained_view
        query, key = self._encode(view, batch)
        rows = {view: key}
        if self.mined is not None:
            rows[f"{view}.query"] = query.detach()
        if self.mined is not None and self.period(batch.step) == "main":
            given = positives if self.needs_positives(batch.step) else None
            loss, metrics = self.mined(Rows(query, key, main=key), self.queue, batch, given)
        else:
            loss, logits, valid = self._loss(query, key, batch)
            metrics = {
                "loss/total": loss.detach(),
                "train/acc@1": own_accuracy(logits, valid),
                "queue/filled": self.queue.filled(),
            }
        update = self._may_update(batch.step)
        self._enqueue({view: key}, batch)
        return StepOutput(loss, rows, metrics, update)

    def _loss(self, query: Tensor, key: Tensor, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits [B, 1+K] and valid columns of a step without mining."""
        return info_nce_of(query, key, self.queue, self.trained_view, batch, self.options)


def info_nce_of(
    query: Tensor, key: Tensor, queue: RingQueue, view: str, batch: ClipBatch, options: Pretext
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits [B, 1+K] and valid columns of plain InfoNCE against the written slots of a queue."""
    logits, valid = table_of(query, key, queue, view, batch, options)
    return info_nce(logits, valid), logits, valid


def table_of(
    query: Tensor, key: Tensor, queue: RingQueue, view: str, batch: ClipBatch, options: Pretext
) -> tuple[Tensor, Tensor]:
    """Logits and valid columns [B, 1+K]: own key, then the written slots of a queue.

    The slots are copied: a push before the backward pass must not change them.
    """
    logits = contrast(query, key, queue.rows(view).clone(), options.temperature)
    negative = queue.written.expand(batch.size, -1)
    if options.exclude_siblings:
        negative = negative & ~queue.same_source(batch.instance, batch.group)
    return logits, nn.functional.pad(negative, (1, 0), value=True)
