"""InfoNCE on clips (MoCo): a clip should find the other clip of its video among K others. One stream, no mining."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.distributed import gather_rows
from vidssl.losses import contrast, info_nce
from vidssl.methods.base import Method, StepOutput
from vidssl.methods.stream import Stream
from vidssl.queue import RingQueue
from vidssl.recipe import Pretext, Recipe

__all__ = ["InfoNCE", "info_nce_of", "own_accuracy"]


class InfoNCE(Method):
    """q of clip 1 against its key (twin, clip 2) and the queue; order inside a step as published.

    Twin update, keys on shuffled rows, logits against the *old* queue, then the keys of all ranks enter the queue.
    Slots that were never written are no negatives (the published queue starts with random ones). With
    `method.exclude_siblings` slots of the same group leave the softmax; the published code keeps them as negatives.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.streams = nn.ModuleDict({self.trained_view: Stream(recipe.model, view=self.trained_view)})
        self.queue = RingQueue((self.trained_view,), recipe.method.queue, recipe.model.dim)

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`; `positives` are not read."""
        stream, clips = self.stream(self.trained_view), batch.clips[self.trained_view]
        query = stream.queries(clips[:, 0])
        if self.training:
            stream.follow(self.options.momentum)
        key = stream.keys(clips[:, 1], shuffle=self.options.shuffle_bn, seed=self.seed, step=batch.step)
        loss, logits, valid = info_nce_of(query, key, self.queue, self.trained_view, batch, self.options)
        metrics = {
            "loss/total": loss.detach(),
            "train/acc@1": own_accuracy(logits, valid),
            "queue/filled": self.queue.filled(),
        }
        if self.training:
            keys = {self.trained_view: gather_rows(key)}
            self.queue.push(keys, gather_rows(batch.instance), gather_rows(batch.group))
        return StepOutput(loss, {self.trained_view: key}, metrics)


def info_nce_of(
    query: Tensor, key: Tensor, queue: RingQueue, view: str, batch: ClipBatch, options: Pretext
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits [B, 1+K] and valid columns of plain InfoNCE against the written slots of a queue.

    The slots are copied: a push before the backward pass must not change them.
    """
    logits = contrast(query, key, queue.rows(view).clone(), options.temperature)
    negative = queue.written.expand(batch.size, -1)
    if options.exclude_siblings:
        negative = negative & ~queue.same_source(batch.instance, batch.group)
    valid = torch.cat([negative.new_ones(batch.size, 1), negative], dim=1)
    return info_nce(logits, valid), logits, valid


@torch.no_grad()
def own_accuracy(logits: Tensor, valid: Tensor) -> Tensor:
    """Share of rows whose own key scores highest of all valid columns."""
    return (logits.masked_fill(~valid, float("-inf")).argmax(1) == 0).float().mean()
