"""What does a method remember of every video? Memories of one row each (IIC, after CMC), and the scores against them.

A memory M [N, D] holds the last embedding of each video, smoothed: M[y] ← unit(m·M[y] + (1 − m)·z). It is updated with
the rows of all ranks, so every rank has the same memories. Before a video has been seen its row is noise.

| function | what |
|---|---|
| `drawn_ids` | own video and K random others of each row, by address |
| `memory_scores` | dot products of each row with its own choice of memory rows |
| `binary_nce` | the loss of the published code that is no softmax |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.distributed import gather_rows, world
from vidssl.encoder import unit_rows
from vidssl.errors import DataError

__all__ = [
    "Memories",
    "binary_nce",
    "check_known",
    "check_once",
    "constant_of",
    "drawn_ids",
    "first_rows",
    "memory_scores",
]


class Memories(nn.Module):
    """One row of each video for each name; everything is a buffer, so a checkpoint holds it whole.

    Rows start uniform in ±1/√(D/3), about unit length, as published; afterwards they are unit rows.

    Args:
        names: Of the memories.
        size: N.
        dim: D.
        momentum: m of the update.

    Attributes:
        seen: bool [N], videos that have been written at least once.
        source: int64 [N], group of each seen video (a number of its own where the group is unknown), -1 where unseen.
    """

    seen: Tensor
    source: Tensor

    def __init__(self, names: Sequence[str], size: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.names, self.size, self.momentum = tuple(names), size, momentum
        bound = 1 / math.sqrt(dim / 3)
        for name in self.names:
            self.register_buffer(f"rows_{name}", torch.empty(size, dim).uniform_(-bound, bound))
        self.register_buffer("seen", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("source", torch.full((size,), -1, dtype=torch.int64))

    def rows(self, name: str) -> Tensor:
        """[N, D]. The buffer itself: copy it before an `update` that comes ahead of the backward pass."""
        return self.get_buffer(f"rows_{name}")

    @torch.no_grad()
    def update(self, rows: Mapping[str, Tensor], instance: Tensor, group: Tensor) -> None:
        """Blend rows into the memories.

        Args:
            rows: Every memory → [G, D], of all ranks, any length.
            instance: int64 [G]; rows of one video are equal (see `first_rows`).
            group: int64 [G].
        """
        for name in self.names:
            memory = self.rows(name)
            fresh = rows[name].to(memory.dtype)
            memory[instance] = unit_rows(self.momentum * memory[instance] + (1 - self.momentum) * fresh)
        self.seen[instance] = True
        self.source[instance] = source_of(instance, group)


def source_of(instance: Tensor, group: Tensor) -> Tensor:
    """The group of each video; where it is unknown (-1) a number that no other video has."""
    return torch.where(group >= 0, group, -2 - instance)


def check_known(instance: NDArray[np.int64], size: int) -> None:
    """Refuse videos that N memory rows do not have.

    Args:
        instance: int64 [B], on the host.
        size: N.

    Raises:
        DataError: a video without a memory row.
    """
    unknown = instance[(instance < 0) | (instance >= size)]
    if unknown.size:
        raise DataError(
            f"video {unknown[0]} has no row in memories of {size} videos; build the method with instances=N, "
            "the number of videos of the data"
        )


def first_rows(instance: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Which row of a global batch enters the memory of each row's video: the first one of it.

    The loader puts a copy of another row, first frames included, in the place of a video that cannot be read: such a
    copy is not counted. Any other repetition would make the order of the batch decide; see `check_once`.

    Args:
        instance: int64 [G], of all ranks.
        start: int64 [G, n], first frames of the clips.

    Returns:
        int64 [G], and a scalar: a video that comes twice with different clips, -1: none does.
    """
    first = (instance[:, None] == instance).to(torch.uint8).argmax(1)
    differ = (start != start[first]).any(1)
    return first, torch.where(differ, instance, -1).max()


def check_once(twice: int) -> None:
    """Refuse what `first_rows` found.

    Raises:
        DataError: a video that comes twice with different clips.
    """
    if twice >= 0:
        raise DataError(
            f"video {twice} comes twice in one step with different clips, and its memory has one row; "
            "draw every video at most once in a step"
        )


def drawn_ids(
    seed: int, step: int, own: NDArray[np.int64], rows: NDArray[np.int64], negatives: int
) -> NDArray[np.int64]:
    """Videos that each row is compared with, int64 [G, 1+K]: itself, then K drawn uniformly with replacement.

    As published, the own video is not excluded from the draw. The draw is made for the global batch from (seed, step)
    alone; each rank takes its share of the rows.

    Args:
        seed: Of the run.
        step: Global step.
        own: int64 [G], the videos of all ranks' rows.
        rows: int64 [N'], the videos to draw from.
        negatives: K.
    """
    rng = np.random.default_rng((seed, step, 0x11C))
    others = rows[rng.integers(0, len(rows), (len(own), negatives))]
    return np.concatenate([own[:, None], others], axis=1)


def memory_scores(query: Tensor, memory: Tensor, ids: Tensor) -> Tensor:
    """Dot products [B, M] of each query with the memory rows `ids`; safe against an update before the backward pass.

    One matrix product over the whole memory where that reads less than the chosen rows would, else those rows alone.

    Args:
        query: [B, D], with gradient.
        memory: [N, D].
        ids: int64 [B, M].
    """
    memory = memory.to(query.dtype)
    if memory.shape[0] <= ids.numel():
        return (query @ memory.clone().T).gather(1, ids)
    return torch.einsum("bd,bmd->bm", query, memory[ids])


@torch.no_grad()
def constant_of(logits: Tensor, rows: int) -> Tensor:
    """Log of the constant Z of `binary_nce`: N times the mean exponential of a first batch's logits, over all ranks.

    Args:
        logits: [B, M].
        rows: N.
    """
    mean = logits.flatten().logsumexp(0) - math.log(logits.numel())
    everyone = gather_rows(mean[None])
    return everyone.logsumexp(0) - math.log(world()) + math.log(rows)


def binary_nce(logits: Tensor, log_z: Tensor, rows: int) -> Tensor:
    """Noise-contrastive estimation with a constant Z (CMC): is column 0 the row's own, is every other column noise?

    With x = exp(logit)/Z, c = M·Pn, Pn = 1/N and M noise columns, the mean over rows of
    −log(x₀/(x₀ + c)) − Σ_j log(c/(x_j + c)). Written with softplus, so that no exponential overflows; the 1e-7 that the
    published code adds to the denominators is left out.

    Args:
        logits: [B, 1+M].
        log_z: log Z, see `constant_of`.
        rows: N.
    """
    log_odds = logits - log_z - math.log((logits.shape[1] - 1) / rows)
    return (F.softplus(-log_odds[:, 0]) + F.softplus(log_odds[:, 1:]).sum(1)).mean()
