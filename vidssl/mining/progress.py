"""How many positives does a row take at present? CPR's growing top-k: few while the encoder is young, more later.

The abstract of CPR says "progressive training with an incremental final top-k"; neither paper nor code says which
numbers, so a recipe gives them itself: `mining.progressive=[[0,1],[20,3],[40,5]]`.
"""

from __future__ import annotations

from vidssl.recipe import Mining

__all__ = ["topk_at"]


def topk_at(mining: Mining, epoch: int) -> int:
    """Positives per row in an epoch: of the last pair [epoch, k] that has begun; without pairs `mining.topk`.

    Always `mining.topk` are mined; a row takes the best k of them. So a plan that is feasible for topk stays so.
    """
    k = mining.topk
    for begins, wanted in mining.progressive:
        if epoch >= begins:
            k = wanted
    return k
