"""CoCLR and CPR: one stream learns, the other, frozen, finds it positives. CPR finds them with the cascade.

A step of the main phase, as published: q (trained stream, clip 1), k (its twin, clip 2), kf (frozen stream, clip 2).
Positives of a row are its own key, every slot of its group, and what was mined. The mining is `inline` (in this
method's own queues: kf against the second queue, q against the first) or the bank's actor sends ids and vectors.

Before that, for `method.warmup_steps` steps, both streams learn by InfoNCE alone; then the second is frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.distributed import gather_rows
from vidssl.losses import apply_self_rule, contrast, mil_nce, self_dropped
from vidssl.methods.base import Method, Phase, StepOutput
from vidssl.methods.infonce import info_nce_of, own_accuracy
from vidssl.methods.inline import mine_in_queue
from vidssl.methods.stream import Stream
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.queue import RingQueue
from vidssl.recipe import Mining, Recipe

if TYPE_CHECKING:
    from vidssl.mining.cascade import Backend

__all__ = ["CoCLR", "mining_of"]

_log = logging.getLogger(__name__)


def mining_of(recipe: Recipe) -> Mining:
    """The mining section as the method means it: CoCLR is one stage on the second view, whatever `stages` says."""
    if recipe.method.name != "coclr":
        return recipe.mining
    return recipe.mining.model_copy(update={"stages": 1, "strategy": "cascade", "ratio": None, "pool": None})


class CoCLR(Method):
    """Co-training with mined positives; `name` cpr mines with the recipe's cascade, coclr with plain top-k.

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
        self.register_buffer("frozen", torch.tensor(not warmup))
        self.where = recipe.mining.where
        self.backend: Backend = recipe.mining.backend
        self.plan: CascadePlan | None = None
        if self.where == "inline":
            self.plan = plan_from(mining_of(recipe), recipe.method.queue)
        if not warmup and recipe.method.second_from is None:
            _log.warning(
                "the second view '%s' has random weights: give method.second_from or method.warmup_steps",
                self.main_view,
            )

    @property
    def unused_parameters(self) -> bool:
        """True with a warm-up: after it the second stream takes no gradient any more."""
        return self.options.warmup_steps > 0

    def phase(self, step: int) -> Phase:
        """`warmup` before step `method.warmup_steps`."""
        return "warmup" if step < self.options.warmup_steps else "main"

    def needs_positives(self, step: int) -> bool:
        """In the main phase with `mining.where=actor`."""
        return self.where == "actor" and self.phase(step) == "main"

    def load_second(self, state: Mapping[str, Tensor]) -> None:
        """Weights of the second view's trained encoder (an `Encoder` state dict).

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder.
        """
        self.load_encoder(self.main_view, state)

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`. `positives` are read in the main phase with `mining.where=actor` only."""
        if self.phase(batch.step) == "warmup":
            return self._warmup_step(batch)
        if self.training and not self.frozen:
            self._freeze_second()
        return self._main_step(batch, positives if self.needs_positives(batch.step) else None)

    def _freeze_second(self) -> None:
        """Once, at the first main step: its slots were made by the twin, so mining waits until all are written anew."""
        self.stream(self.main_view).freeze()
        self.queue.forget_minable()
        self.frozen.fill_(True)

    def _encode(self, view: str, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        stream, clips = self.stream(view), batch.clips[view]
        query = stream.queries(clips[:, 0])
        if self.training:
            stream.follow(self.options.momentum)
        key = stream.keys(clips[:, 1], shuffle=self.options.shuffle_bn, seed=self.seed, step=batch.step)
        return query, key

    def _enqueue(self, rows: Mapping[str, Tensor], batch: ClipBatch) -> None:
        if self.training:
            everyone = {view: gather_rows(part) for view, part in rows.items()}
            self.queue.push(everyone, gather_rows(batch.instance), gather_rows(batch.group))

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
        query, key = self._encode(self.aux_view, batch)
        second = self.stream(self.main_view).frozen_rows(batch.clips[self.main_view][:, 1])
        logits, positive, valid, mined = self._table(query, key, second, batch, given)
        dropped = self_dropped(self.seed, batch.step, self.options.drop_p)
        others = positive[:, 1:].any(1)  # siblings in the queue, or mined
        positive, valid, lost = apply_self_rule(positive, valid, self.options.self_positive, dropped)
        loss = mil_nce(logits, positive, valid)
        metrics: dict[str, float | Tensor] = {
            "loss/total": loss.detach(),
            "train/acc@1": own_accuracy(logits, valid),
            "queue/filled": self.queue.filled(),
            "mining/positives_mean": (positive & valid).sum(1).float().mean(),
            "mining/mined_mean": mined.float().mean(),
            "mining/fallback_rate": (mined == 0).float().mean(),
            "mining/rows_with_others": others.float().mean(),
            "mining/self_dropped": lost.float().mean(),
        }
        self._enqueue({self.aux_view: key, self.main_view: second}, batch)
        return StepOutput(loss, {self.main_view: second, self.aux_view: key}, metrics)

    def _table(
        self, query: Tensor, key: Tensor, second: Tensor, batch: ClipBatch, given: Positives | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, positive and valid columns [B, 1+K(+k)], and the number of mined positives of each row [B]."""
        siblings = self.queue.same_source(batch.instance, batch.group)
        valid = self.queue.written.expand(batch.size, -1)
        own = siblings.new_ones(batch.size, 1)
        keys = self.queue.rows(self.aux_view).clone()  # a push comes before the backward pass
        if given is None:
            mined = self._mine_inline(query, second, siblings)
            logits = contrast(query, key, keys, self.options.temperature)
            return logits, torch.cat([own, siblings | mined], 1), torch.cat([own, valid], 1), mined.sum(1)
        ids, vectors = given.tensors(query.device)
        found = ids >= 0
        # A mined video counts once: its slots leave the softmax where its bank row is appended.
        twice = ((self.queue.instance[None, None] == ids[:, :, None]) & found[:, :, None]).any(1)
        logits = contrast(query, key, keys, self.options.temperature, appended=vectors)
        positive = torch.cat([own, siblings, found], 1)
        return logits, positive, torch.cat([own, valid & ~twice, found], 1), found.sum(1)

    def _mine_inline(self, query: Tensor, second: Tensor, siblings: Tensor) -> Tensor:
        if self.plan is None or not self.queue.ready():
            return torch.zeros_like(siblings)
        views = (self.main_view, self.aux_view)
        return mine_in_queue((second, query.detach()), self.queue, views, siblings, self.plan, self.backend)
