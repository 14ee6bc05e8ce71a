"""What do InfoNCE, UberNCE, CoCLR and CPR do alike in every step? Rows, the queue, and when the optimizer waits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vidssl.batch import ClipBatch
from vidssl.distributed import gather_rows
from vidssl.methods.base import Method, Period
from vidssl.methods.mined import MinedLoss
from vidssl.queue import RingQueue

__all__ = ["MoCo"]


class MoCo(Method):
    """A method with a queue of keys. Order inside a step as published.

    Twin update, keys on shuffled rows, logits against the *old* queue, then the keys of all ranks enter the queue. In a
    step of several parts (`trainer.accumulate`) the twin moves before the first and the keys of all enter after the last.

    Attributes:
        queue: Equal on all ranks.
        mined: The loss of the main period where positives are mined; None: this method mines nothing.
    """

    queue: RingQueue
    mined: MinedLoss | None = None

    def period(self, step: int) -> Period:
        """With mined positives `warmup` before step `method.warmup_steps`."""
        return "warmup" if self.mined is not None and step < self.options.warmup_steps else "main"

    def needs_positives(self, step: int) -> bool:
        """In the main period with mined positives and `mining.where=actor`."""
        return self.mined is not None and self.mined.mining.where == "actor" and self.period(step) == "main"

    def news(self) -> list[str]:
        """See `Method.news`."""
        return self.mined.space.news() if self.mined is not None and self.mined.space is not None else []

    def _encode(self, view: str, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Query rows of clip 1 and key rows of clip 2, [B, D] each."""
        stream, clips = self.stream(view), batch.clips[view]
        query = stream.queries(clips[:, 0])
        if self.training and not batch.part:  # once in a step
            stream.follow(self.options.momentum)
        key = stream.keys(clips[:, 1], shuffle=self.options.shuffle_bn, seed=self.seed, step=batch.step)
        return query, key

    def _enqueue(self, rows: Mapping[str, Tensor], batch: ClipBatch) -> None:
        if not self.training:
            return
        columns = {".instance": batch.instance, ".group": batch.group, ".label": batch.label}
        whole = self.whole_step(batch, {**rows, **columns})
        if whole is None:
            return
        everyone = {view: gather_rows(whole[view]) for view in rows}
        reads_labels = self.options.traits.reads_labels or (self.mined is not None and self.mined.reads_labels)
        label = gather_rows(whole[".label"]) if reads_labels else None
        self.queue.push(everyone, gather_rows(whole[".instance"]), gather_rows(whole[".group"]), label)

    def _may_update(self, step: int) -> bool:
        """Whether the optimizer steps; ask before this step's rows enter the queue.

        With `method.hold_until_full` it waits, in the main period, until the queue is full (and, where positives are
        mined in it, of the present encoders): as CoCLR and CPR are published. Their InfoNCE does not wait, nor does a
        warm-up here. The twin and the queue go on meanwhile.
        """
        if not self.options.hold_until_full or self.period(step) == "warmup":
            return True
        inline = self.mined is not None and self.mined.plan is not None
        return self.queue.ready() if inline else self.queue.full()
