"""What do ranks tell each other inside a step? Gathered rows, equal buffers, keys of rows shuffled over ranks.

Works with gloo and nccl; alone, or before a process group exists, nothing is sent. Every rank must bring as many rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["copy_buffers_from_first", "gather_rows", "on_shuffled_rows", "rank", "world"]


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


@torch.no_grad()
def on_shuffled_rows(encode: Callable[[Tensor], Tensor], rows: Tensor, seed: int, step: int) -> Tensor:
    """`encode(rows)`, where each rank encodes a random share of all ranks' rows (ShuffleBN of MoCo, section 3.3).

    Otherwise a query and its key would meet in the same batch statistics and the network could cheat with them. The
    permutation depends on (seed, step) alone: every rank draws the same one, and a resumed run draws it again.

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
    size, everything = rows.shape[0], gather_rows(rows)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(everything), generator=generator).to(rows.device)
    mine = slice(rank() * size, (rank() + 1) * size)
    shuffled = gather_rows(encode(everything[order[mine]]))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return shuffled[back[mine]]


@torch.no_grad()
def copy_buffers_from_first(module: nn.Module) -> None:
    """Give every rank the buffers (batch-norm statistics) of rank 0, where each rank has kept its own."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
