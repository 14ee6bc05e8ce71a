"""The forward and backward passes of one optimizer step: at once, or in parts, so that a batch fits fewer GPUs.

In a step of n parts (`trainer.accumulate`) each part holds B/n rows of this rank. Every part is compared with the queue or
memories of before the step; what is remembered enters them after the last. The loss is a mean over rows, so the gradients
add up to those of the whole batch, except for batch norms, which take the statistics of a part. Ranks exchange
gradients once, in the last part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vidssl.batch import ClipBatch, Positives
from vidssl.methods import StepOutput

__all__ = ["passes"]


def passes(
    model: nn.Module,
    batch: ClipBatch,
    positives: Positives | None,
    parts: int,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> StepOutput:
    """Add the gradients of a step to those that are there.

    Args:
        model: A method, or DistributedDataParallel around one.
        batch: All rows of this rank.
        positives: Of these rows.
        parts: n, which divides their number.
        autocast: Makes the precision of the forward passes.

    Returns:
        What the step gave: embeddings of all rows, in their order; loss and metrics are means over the parts.
    """
    if parts == 1:
        with autocast():
            out: StepOutput = model(batch, positives)
        out.loss.backward()
        return out
    given: Sequence[Positives | None] = [None] * parts if positives is None else positives.split(parts)
    return _joined([_pass(model, *both, autocast) for both in zip(batch.split(parts), given, strict=True)])


def _pass(
    model: nn.Module,
    part: ClipBatch,
    positives: Positives | None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> StepOutput:
    with _together(model, part.ends):
        with autocast():
            out: StepOutput = model(part, positives)
        (out.loss / part.parts).backward()
    return StepOutput(out.loss.detach(), out.embeddings, out.metrics, out.update)


def _together(model: nn.Module, ends: bool) -> contextlib.AbstractContextManager[Any]:
    """Ranks exchange gradients at the end of a step only."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not ends:
        return model.no_sync()
    return contextlib.nullcontext()


def _joined(parts: Sequence[StepOutput]) -> StepOutput:
    first = parts[0]
    return StepOutput(
        torch.stack([part.loss for part in parts]).mean(),
        {view: torch.cat([part.embeddings[view] for part in parts]) for view in first.embeddings},
        {name: sum(part.metrics[name] for part in parts) / len(parts) for name in first.metrics},
        first.update,
    )
