"""Work for the GPU beside the training step: on a stream of its own, which the step neither waits for nor holds up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

__all__ = ["beside"]


@contextmanager
def beside(device: torch.device) -> Iterator[list[Tensor]]:
    """What is done inside is done on the loader's stream, and it is done when this ends; on a CPU nothing changes.

    The thread that leaves waits for this stream alone. Yields a list for the tensors that the training step will read:
    torch then frees their memory in the order of both streams.
    """
    lent: list[Tensor] = []
    if device.type != "cuda":
        yield lent
        return
    training, own = torch.cuda.current_stream(device), _stream(device)
    with torch.cuda.stream(own):
        yield lent
    own.synchronize()
    for tensor in lent:
        tensor.record_stream(training)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
