"""CoCLR and CPR: one stream learns, the other, frozen, finds it positives. CPR finds them with the cascade.

A step of the main period, as published: q (trained stream, clip 1), k (its twin, clip 2), kf (frozen stream, clip 2).
Positives of a row are its own key, every slot of its group, and what was mined. The mining is `inline` (in this
method's own queues: kf against the second queue, q against the first) or the bank's actor sends ids and vectors.

Before that, for `method.warmup_steps` steps, both streams learn by InfoNCE alone; then the second is frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.methods.base import StepOutput
from vidssl.methods.fitted import fitted_space
from vidssl.methods.infonce import info_nce_of
from vidssl.methods.mined import MinedLoss, Rows, own_accuracy
from vidssl.methods.moco import MoCo
from vidssl.methods.stream import Stream
from vidssl.queue import RingQueue
from vidssl.recipe import Recipe

__all__ = ["CoCLR"]

_log = logging.getLogger(__name__)


class CoCLR(MoCo):
    """Co-training with mined positives; `name` cpr mines with the recipe's cascade, coclr with plain top-k.

    With `mining.where=off` nothing is mined: the positives are the own key and the siblings in the queue.

    Raises:
        RecipeError: `mining.where=inline` with a cascade that the queue is too small for.
    """

    frozen: Tensor

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        warmup = recipe.method.warmup_steps > 0
        streams = {
            self.aux_view: Stream(recipe.model, view=self.aux_view),
            self.main_view: Stream(recipe.model, trained=warmup, view=self.main_view),
        }
        self.streams = nn.ModuleDict(streams)
        self.queue = RingQueue((self.aux_view, self.main_view), recipe.method.queue, recipe.model.dim)
        self.space = fitted_space(recipe.mining, recipe.model.dim, seed)
        self.mined = MinedLoss(recipe, seed, main=self.main_view, keys=self.aux_view, space=self.space)
        self.register_buffer("frozen", torch.tensor(not warmup))
        self._frozen: bool | None = not warmup  # the same without waiting for the device; None: not read yet
        self.register_load_state_dict_post_hook(_read_again)
        if not warmup and recipe.method.second_from is None:
            _log.warning(
                "the second view '%s' has random weights: give method.second_from or method.warmup_steps",
                self.main_view,
            )

    @property
    def unused_parameters(self) -> bool:
        """True with a warm-up: after it the second stream takes no gradient any more."""
        return self.options.warmup_steps > 0

    def load_second(self, state: Mapping[str, Tensor]) -> None:
        """Weights of the second view's trained encoder (an `Encoder` state dict).

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder.
        """
        self.load_encoder(self.main_view, state)

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`. `positives` are read in the main period with `mining.where=actor` only."""
        if self.period(batch.step) == "warmup":
            return self._warmup_step(batch)
        if self._frozen is None:
            self._frozen = bool(self.frozen)
        if self.training and not self._frozen:
            self._freeze_second()
        return self._main_step(batch, positives if self.needs_positives(batch.step) else None)

    def _freeze_second(self) -> None:
        """Once, at the first main step: its slots were made by the twin, so mining waits until all are written anew."""
        self.stream(self.main_view).freeze()
        self.queue.forget_minable()
        self.frozen.fill_(True)
        self._frozen = True

    def _warmup_step(self, batch: ClipBatch) -> StepOutput:
        losses: dict[str, Tensor] = {}
        keys: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        metrics: dict[str, float | Tensor] = {"queue/filled": self.queue.filled()}
        for view in (self.aux_view, self.main_view):
            query, keys[view] = self._encode(view, batch)
            losses[view], logits, valid = info_nce_of(query, keys[view], self.queue, view, batch, self.options)
            metrics[f"loss/{view}"] = losses[view].detach()
            metrics["train/acc@1" if view == self.aux_view else f"train/acc@1_{view}"] = own_accuracy(logits, valid)
            # Soon the bank's rows of the second view come from its frozen query encoder: the same encoder makes these.
            rows[view] = keys[view] if view == self.aux_view else query.detach()
        self._enqueue(keys, batch)
        loss = torch.stack(list(losses.values())).sum()
        return StepOutput(loss, rows, {"loss/total": loss.detach(), **metrics})

    def _main_step(self, batch: ClipBatch, given: Positives | None) -> StepOutput:
        assert self.mined is not None  # for the type checker: made in __init__
        query, key = self._encode(self.aux_view, batch)
        second = self.stream(self.main_view).frozen_rows(batch.clips[self.main_view][:, 1])
        loss, metrics = self.mined(Rows(query, key, main=second), self.queue, batch, given)
        update = self._may_update(batch.step)
        self._enqueue({self.aux_view: key, self.main_view: second}, batch)
        return StepOutput(loss, {self.main_view: second, self.aux_view: key}, metrics, update)


def _read_again(method: nn.Module, _: object) -> None:
    assert isinstance(method, CoCLR)  # for the type checker: a hook is handed a module
    method._frozen = None
