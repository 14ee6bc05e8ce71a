"""How does a step learn from mined positives? The loss that CoCLR, CPR and CPR on InfoNCE share.

Positives of a row are its own key (under the self rule), every slot of its source in the queue, and what was mined;
the loss is −log of their summed softmax (MIL-NCE). What is mined comes from the method's own queue (`inline`, as
published) or from the bank's actor, as ids and vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidssl.batch import ClipBatch, Positives
from vidssl.losses import apply_self_rule, contrast, mil_nce, self_dropped
from vidssl.methods.fitted import FittedSpace
from vidssl.methods.inline import agreement_weights, mine_in_queue
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.progress import topk_at
from vidssl.queue import RingQueue
from vidssl.recipe import Mining, Recipe

if TYPE_CHECKING:
    from vidssl.mining.cascade import Backend

__all__ = ["MinedLoss", "Rows", "mining_of", "own_accuracy"]


def mining_of(recipe: Recipe) -> Mining:
    """The mining section as the method means it: CoCLR is one stage on the second view, whatever `stages` says."""
    if not recipe.method.traits.one_stage:
        return recipe.mining
    strategy = recipe.mining.strategy if recipe.mining.traits.reads_labels else "cascade"
    return recipe.mining.model_copy(update={"stages": 1, "strategy": strategy, "ratio": None, "pool": None})


@dataclass(frozen=True)
class Rows:
    """Unit rows of one step, [B, D] each.

    Attributes:
        query: Of the trained stream, clip 1; it takes the gradient, and it is the aux view of the cascade.
        key: Of its twin, clip 2.
        main: What mines first and last: the frozen stream's rows of clip 2, or (one stream) the key.
    """

    query: Tensor
    key: Tensor
    main: Tensor


class MinedLoss:
    """MIL-NCE with mined positives; it has no state of its own, everything that lasts stands in the queue.

    Args:
        recipe: The run.
        seed: Of the draws of `drop_p`.
        main: Name of the queue's rows that `Rows.main` is compared with.
        keys: Name of the queue's rows that are keys of the trained stream.
        space: The space to mine in, whose state is the method's; None: the rows as they are.

    Attributes:
        mining: The mining section as the method means it.
        plan: The cascade in the queue; None where nothing is mined in it.

    Raises:
        RecipeError: `mining.where=inline` with a cascade that the queue is too small for.
    """

    def __init__(self, recipe: Recipe, seed: int, main: str, keys: str, space: FittedSpace | None = None) -> None:
        self.options, self.seed, self.space = recipe.method, seed, space
        self.mining = mining_of(recipe)
        self.views = (main, keys)
        self.backend: Backend = recipe.mining.backend
        self.plan: CascadePlan | None = None
        if recipe.mining.where == "inline":
            self.plan = plan_from(self.mining, recipe.method.queue)

    @property
    def reads_labels(self) -> bool:
        """Whether this is the upper bound `mining.strategy=oracle`; nothing else that mines is shown a label."""
        return self.plan is not None and self.plan.traits.reads_labels

    def __call__(
        self, rows: Rows, queue: RingQueue, batch: ClipBatch, given: Positives | None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Loss and metrics of one step.

        Args:
            rows: This step's rows.
            queue: Before this step's rows enter it.
            batch: The step's batch.
            given: What the bank mined; None: mine in the queue (`inline`), or nothing is mined (`off`).
        """
        k = topk_at(self.mining, batch.epoch)
        logits, positive, valid, mined, weights = self._table(rows, queue, batch, given, k)
        dropped = self_dropped(self.seed, batch.step, self.options.drop_p)
        others = positive[:, 1:].any(1)  # siblings in the queue, or mined
        positive, valid, lost = apply_self_rule(positive, valid, self.options.self_positive, dropped)
        loss = mil_nce(logits, positive, valid, weights)
        return loss, {
            "loss/total": loss.detach(),
            "train/acc@1": own_accuracy(logits, valid),
            "queue/filled": queue.filled(),
            "mining/k": float(k),
            "mining/positives_mean": (positive & valid).sum(1).float().mean(),
            "mining/mined_mean": mined.float().mean(),
            "mining/fallback_rate": (mined == 0).float().mean(),
            "mining/rows_with_others": others.float().mean(),
            "mining/self_dropped": lost.float().mean(),
        }

    def _table(
        self, rows: Rows, queue: RingQueue, batch: ClipBatch, given: Positives | None, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Logits, positive and valid columns [B, 1+K(+k)], the number of mined positives of each row [B], and weights [B, 1+K]."""
        siblings = queue.same_source(batch.instance, batch.group)
        valid = queue.written.expand(batch.size, -1)
        own = siblings.new_ones(batch.size, 1)
        keys = queue.rows(self.views[1]).clone()  # a push comes before the backward pass
        if given is None:
            mined = self._mine_inline(rows, queue, batch, siblings, k)
            logits = contrast(rows.query, rows.key, keys, self.options.temperature)
            weights = self._weights(rows, queue, mined, batch.step)
            return logits, torch.cat([own, siblings | mined], 1), torch.cat([own, valid], 1), mined.sum(1), weights
        ids, vectors = given.tensors(rows.query.device)
        ids, vectors = ids[:, :k], vectors[:, :k]
        found = ids >= 0
        # A mined video counts once: its slots leave the softmax where its bank row is appended.
        twice = ((queue.instance[None, None] == ids[:, :, None]) & found[:, :, None]).any(1)
        logits = contrast(rows.query, rows.key, keys, self.options.temperature, appended=vectors)
        positive = torch.cat([own, siblings, found], 1)
        return logits, positive, torch.cat([own, valid & ~twice, found], 1), found.sum(1), None

    def _mine_inline(self, rows: Rows, queue: RingQueue, batch: ClipBatch, siblings: Tensor, k: int) -> Tensor:
        if self.plan is None or not queue.ready():
            return torch.zeros_like(siblings)
        forbidden = siblings | ~queue.same_label(batch.label) if self.reads_labels else siblings
        queries = (rows.main, rows.query.detach())
        about = self.space, batch.step, batch.parts
        return mine_in_queue(queries, queue, self.views, forbidden, self.plan, self.backend, k, *about)

    def _weights(self, rows: Rows, queue: RingQueue, mined: Tensor, step: int) -> Tensor | None:
        """How much each column's positive counts; the own key and siblings count once. None: all do."""
        if self.mining.weights == "equal" or self.plan is None or not queue.ready():
            return None
        queries = (rows.main, rows.query.detach())
        weights = agreement_weights(mined, queries, queue, self.views, self.space, step)
        return torch.nn.functional.pad(weights, (1, 0), value=1.0)


@torch.no_grad()
def own_accuracy(logits: Tensor, valid: Tensor) -> Tensor:
    """Share of rows whose own key scores highest of all valid columns."""
    return (logits.masked_fill(~valid, float("-inf")).argmax(1) == 0).float().mean()
