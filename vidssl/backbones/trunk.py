"""What do all backbones share? A chain of stages, and two switches that change memory and speed but no number.

`channels_last` keeps maps in `torch.channels_last_3d` (on a CPU torch itself falls out of it at k×1×1 kernels).
`checkpointing` keeps only the maps between stages and computes the inside of a stage again in the backward pass. Both
are plain attributes: no key of a state dict depends on them.

On a CPU a trunk keeps to float32 under autocast. The weight gradient of a 3D convolution in bfloat16 is wrong there when
the padded kernel covers the clip (3 frames over 2, 5 over 3 or 4), silently or as not-a-number, and some shapes crash:
seen with torch 2.13 on a processor with avx512_bf16. A 16-frame clip has two frames left in the last stage of most nets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["Stage", "Trunk", "statistics_at_rest"]

Stage = Callable[[Tensor], Tensor]


class Trunk(nn.Module, ABC):
    """A backbone [B, C, T, H, W] → [B, F, t, h, w] without pooling at the end and without classifier.

    Attributes:
        features: F.
        channels_last: Clips are converted in `forward`; the weights are those of `to_channels_last`.
        checkpointing: Stages are computed again in the backward pass: same loss, gradients and statistics.
    """

    features: int
    channels_last: bool = False
    checkpointing: bool = False

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The network as functions to be applied one after another; what lies between two is kept by checkpointing."""

    def to_channels_last(self) -> Trunk:
        """Switch `channels_last` on and convert the weights."""
        self.channels_last = True
        for parameter in self.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """Feature map [B, F, t, h, w] of clips [B, C, T, H, W]; float32 on a CPU, autocast or not."""
        if clips.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._through(clips.float())
        return self._through(clips)

    def _through(self, clips: Tensor) -> Tensor:
        maps = clips.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else clips
        if not (self.checkpointing and torch.is_grad_enabled()):
            for stage in self.stages():
                maps = stage(maps)
            return maps
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), statistics_at_rest(norms)

        for stage in self.stages():  # nothing random in a stage: no generator has to be put back
            maps = checkpoint(stage, maps, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return maps


@contextmanager
def statistics_at_rest(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms normalise as they would, but their running statistics and their counter do not move.

    A recomputed forward pass would count every batch twice. With momentum 0 a batch norm still takes the statistics of
    its batch and blends nothing of them in; without a counter there is none to raise. Taking the running statistics away
    instead would leave fewer tensors saved than the first pass saved, which torch's checkpoint refuses.
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
