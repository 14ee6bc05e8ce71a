"""C3D with batch norm (Tran et al., ICCV 2015), as VCOP and IIC train it; module names of IIC's checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.backbones.trunk import Stage, Trunk

__all__ = ["C3D"]

WIDTHS = {"1": 64, "2": 128, "3a": 256, "3b": 256, "4a": 512, "4b": 512, "5a": 512, "5b": 512}
"""Out channels of each convolution, in order; a stage is what shares a digit, with max-pooling between two stages."""


class C3D(Trunk):
    """Eight 3×3×3 convolutions with bias, each with batch norm and ReLU: 27,661,440 parameters (3 input channels).

    [B, C, T, H, W] → [B, 512, T/8, H/16, W/16]; at least 8 frames and 16 pixels. Without the fully connected layers
    of the first C3D, so any size of clip will do.

    Args:
        in_channels: C of the clips.
    """

    features = 512

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        for name, width in WIDTHS.items():
            self.add_module(f"conv{name}", nn.Conv3d(in_channels, width, 3, padding=1))
            self.add_module(f"bn{name}", nn.BatchNorm3d(width))
            in_channels = width

    def stages(self) -> tuple[Stage, ...]:
        """Five stages; each but the first begins by halving the map (the second keeps T)."""
        return self._first, self._second, self._third, self._fourth, self._fifth

    def _unit(self, name: str, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x)))

    def _first(self, x: Tensor) -> Tensor:
        return self._unit("1", x)

    def _second(self, x: Tensor) -> Tensor:
        return self._unit("2", F.max_pool3d(x, (1, 2, 2)))

    def _third(self, x: Tensor) -> Tensor:
        return self._unit("3b", self._unit("3a", F.max_pool3d(x, 2)))

    def _fourth(self, x: Tensor) -> Tensor:
        return self._unit("4b", self._unit("4a", F.max_pool3d(x, 2)))

    def _fifth(self, x: Tensor) -> Tensor:
        return self._unit("5b", self._unit("5a", F.max_pool3d(x, 2)))
