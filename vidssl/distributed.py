"""What do ranks tell each other inside a step? Gathered rows, equal buffers, keys of rows shuffled over ranks, batch statistics.

Works with gloo and nccl; alone, or before a process group exists, nothing is sent. Every rank must bring as many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidssl.transfer import sent

__all__ = [
    "copy_buffers_from_first",
    "gather_objects",
    "gather_rows",
    "on_shuffled_rows",
    "rank",
    "synchronise_norms",
    "world",
]


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order: [B, …] → [B·W, …]. No gradient flows through."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on all ranks; waits for all of them."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


@torch.no_grad()
def on_shuffled_rows(encode: Callable[[Tensor], Tensor], rows: Tensor, seed: int, step: int) -> Tensor:
    """`encode(rows)`, where each rank encodes a random share of all ranks' rows (ShuffleBN of MoCo, section 3.3).

    Otherwise a query and its key would meet in the same batch statistics and the network could cheat with them. The
    permutation depends on (seed, step) alone: every rank draws the same one, and a resumed run draws it again. Only rows that
    move are sent, each once: of B rows a rank sends B (W - 1) / W on average, and as many embeddings come back.

    Args:
        encode: Row-wise encoder, [B, …] → [B, D].
        rows: This rank's rows [B, …].
        seed: Of the run.
        step: Global step.

    Returns:
        This rank's rows, encoded, in their own order: [B, D].
    """
    if world() == 1:
        return encode(rows)
    me, size = rank(), len(rows)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(size * world(), generator=generator).reshape(world(), size)  # by who encodes
    owner = order // size
    leaving = [order[other][owner[other] == me] - me * size for other in range(world())]
    arriving = torch.sort(owner[me], stable=True)
    going, got = [len(those) for those in leaving], torch.bincount(arriving.values, minlength=world()).tolist()
    mine, theirs = sent(torch.cat(leaving), rows.device), sent(arriving.indices, rows.device)
    abroad = torch.empty_like(rows, memory_format=torch.contiguous_format)
    abroad[theirs] = _exchanged(rows[mine], going, got)
    encoded = encode(abroad)
    home = torch.empty_like(encoded)
    home[mine] = _exchanged(encoded[theirs], got, going)
    return home


def _exchanged(rows: Tensor, going: list[int], got: list[int]) -> Tensor:
    """Rows for each rank in turn, so many for each; returns those from each in turn."""
    found = rows.new_empty((sum(got), *rows.shape[1:]))
    dist.all_to_all_single(found, rows.contiguous(), got, going)
    return found


@torch.no_grad()
def copy_buffers_from_first(module: nn.Module) -> None:
    """Give every rank the buffers (batch-norm statistics) of rank 0, where each rank has kept its own."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm below `module` normalise by the statistics of all ranks' batches; weights and names stay.

    On a GPU torch's own `SyncBatchNorm`, which knows no CPU; there each norm becomes a `SyncedBatchNorm`. Alone: nothing.

    Args:
        module: Of the same structure on every rank.
        device: Where it runs.

    Returns:
        The module; torch's way may make a new one of a norm.
    """
    if world() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.__class__ = SyncedBatchNorm  # the same weights, statistics and names, at the same places
        elif isinstance(norm, nn.BatchNorm1d):
            norm.__class__ = SyncedBatchNorm1d
    return module


class _Synced(_BatchNorm):
    """Batch norm over the rows of all ranks, in training mode; gradients flow through everybody's statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] → the same, normalised; every rank calls it with as many values in a channel."""
        if not self.training:
            return super().forward(input)
        across, count = (0, *range(2, input.dim())), input.numel() // input.shape[1] * world()
        mean = _summed(input.sum(across)) / count
        centred = input - _as_channels(mean, input)
        variance = _summed((centred * centred).sum(across)) / count
        self._note(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return centred * _as_channels(scale, input) + _as_channels(self.bias, input)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / max(int(self.num_batches_tracked or 1), 1)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SyncedBatchNorm(_Synced, nn.BatchNorm3d):
    """Of maps [B, C, T, H, W]."""


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """Of rows [B, C]."""


def _summed(values: Tensor) -> Tensor:
    """Sum over all ranks; its gradient is the sum of theirs."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


def _as_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))
