"""UberNCE: what if the labels were known? InfoNCE whose positives are all clips of the class: an upper bound."""

from __future__ import annotations

from torch import Tensor, nn

from vidssl.batch import ClipBatch
from vidssl.losses import mean_log_nce
from vidssl.methods.infonce import InfoNCE, table_of

__all__ = ["UberNCE"]


class UberNCE(InfoNCE):
    """InfoNCE with the mean −log softmax over the own key and every slot of the row's class (CoCLR, its upper bound).

    The mean is over logs, where CoCLR takes the log of a sum. A label of -1 matches nothing: such a row is plain
    InfoNCE. Clips of the same source share the class, so they are positives, as published; `method.exclude_siblings`
    acts only on those of unknown class.
    """

    def _loss(self, query: Tensor, key: Tensor, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        logits, valid = table_of(query, key, self.queue, self.trained_view, batch, self.options)
        positive = nn.functional.pad(self.queue.same_label(batch.label), (1, 0), value=True)
        valid = valid | positive
        return mean_log_nce(logits, positive, valid), logits, valid
