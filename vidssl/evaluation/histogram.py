"""How far do colours alone get? The global RGB histogram of the same frames: the baseline an encoder has to beat."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "rgb_histogram", "to_colours"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def to_colours(clips_BCTHW: Tensor, normalize: str = "imagenet") -> Tensor:
    """Normalised RGB clips back to colours in [0, 1]; same shape, any leading dimensions before [3, T, H, W].

    Args:
        clips_BCTHW: RGB clips as the loader gives them.
        normalize: The recipe's `augment.normalize`: imagenet, or unit (they are colours already).
    """
    if normalize == "unit":
        return clips_BCTHW.float().clamp(0.0, 1.0)
    shape = (3, 1, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, device=clips_BCTHW.device).view(shape)
    std = torch.tensor(IMAGENET_STD, device=clips_BCTHW.device).view(shape)
    return (clips_BCTHW.float() * std + mean).clamp_(0.0, 1.0)


def rgb_histogram(clips_BCTHW: Tensor, bins: int = 6, normalize: str = "imagenet") -> Tensor:
    """Joint colour histogram of each clip, blind to where and when a colour appears.

    Args:
        clips_BCTHW: [B, 3, T, H, W] RGB clips.
        bins: Bins of one colour channel.
        normalize: How the clips are scaled, see `to_colours`.

    Returns:
        [B, bins³] shares of the clip's pixels, each row summing to one.
    """
    level = (to_colours(clips_BCTHW, normalize) * bins).long().clamp_(max=bins - 1)
    code = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
    flat = code.flatten(1)
    counts = torch.zeros(flat.shape[0], bins**3, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
    return counts / flat.shape[1]
