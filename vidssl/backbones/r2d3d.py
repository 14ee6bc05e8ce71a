"""ResNets that look at single frames first and at motion later: R2D3D-50 (CVRL, CoCLR's `r50`), R18-2D3D (DPC, MemDPC).

Stages 1 and 2 are 2D (kernels 1×h×w), stages 3 and 4 are 3D. Module names are those of CoCLR's and DPC's checkpoints,
which are torchvision's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.backbones.trunk import Stage, Trunk

__all__ = ["R2D3D50", "R18of2D3D"]

Size = tuple[int, int, int]


class Bottleneck(nn.Module):
    """Narrow, look, widen fourfold: (3 or 1)×1×1, 1×3×3 with the stride, 1×1×1. T is never halved."""

    widening = 4

    def __init__(self, into: int, width: int, stride: int, temporal: bool) -> None:
        super().__init__()
        t, out = (3 if temporal else 1), width * self.widening
        self.conv1 = nn.Conv3d(into, width, (t, 1, 1), padding=(t // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.downsample = _shortcut(into, out, (1, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, 4·width, T, H/stride, W/stride]."""
        rest = torch.relu(self.bn1(self.conv1(x)))
        rest = torch.relu(self.bn2(self.conv2(rest)))
        rest = self.bn3(self.conv3(rest))
        return torch.relu(rest + (x if self.downsample is None else self.downsample(x)))


class Basic(nn.Module):
    """Two (3 or 1)×3×3 convolutions; where it is 3D, the stride acts on T too."""

    widening = 1

    def __init__(self, into: int, width: int, stride: int, temporal: bool) -> None:
        super().__init__()
        t = 3 if temporal else 1
        step: Size = (stride if temporal else 1, stride, stride)
        self.conv1 = nn.Conv3d(into, width, (t, 3, 3), step, (t // 2, 1, 1), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (t, 3, 3), 1, (t // 2, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = _shortcut(into, width, step)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, width, …], divided by the stride."""
        rest = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(rest + (x if self.downsample is None else self.downsample(x)))


class ResNet2D3D(Trunk):
    """Stem, max-pooling 1×3×3, four stages.

    The published nets leave out the last ReLU of the last block; CoCLR applies it right after the network, DPC after its
    own pooling. Here it stands in the block: the map is that of CoCLR, and never negative.

    Args:
        block: `Bottleneck` or `Basic`.
        counts: Blocks per stage.
        widths: Of the blocks of each stage.
        stem: Kernel and stride of the first convolution.
        in_channels: C of the clips.
    """

    def __init__(
        self,
        block: type[Bottleneck] | type[Basic],
        counts: tuple[int, ...],
        widths: tuple[int, ...],
        stem: tuple[Size, Size],
        in_channels: int,
    ) -> None:
        super().__init__()
        kernel, stride = stem
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv1 = nn.Conv3d(in_channels, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        into = 64
        for number, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
            temporal, halve = number > 2, 1 if number == 1 else 2
            blocks: list[nn.Module] = [block(into, width, halve, temporal)]
            into = width * block.widening
            blocks += [block(into, width, 1, temporal) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.features = into
        for module in self.modules():
            if isinstance(module, nn.Conv3d):  # as published
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stages(self) -> tuple[Stage, ...]:
        """Stem and four stages."""
        return self._stem, *(self.get_submodule(f"layer{number}") for number in range(1, 5))

    def _stem(self, clips: Tensor) -> Tensor:
        maps = torch.relu(self.bn1(self.conv1(clips)))
        return F.max_pool3d(maps, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class R2D3D50(ResNet2D3D):
    """Bottlenecks 3-4-6-3: 31,672,128 parameters (3 input channels), [B, C, T, H, W] → [B, 2048, T/2, H/32, W/32]."""

    def __init__(self, in_channels: int = 3) -> None:
        stem = ((5, 7, 7), (2, 2, 2))
        super().__init__(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), stem, in_channels)


class R18of2D3D(ResNet2D3D):
    """Basic blocks 2-2-2-2: 14,057,536 parameters (3 input channels), [B, C, T, H, W] → [B, 256, T/4, H/32, W/32]."""

    def __init__(self, in_channels: int = 3) -> None:
        stem = ((1, 7, 7), (1, 2, 2))
        super().__init__(Basic, (2, 2, 2, 2), (64, 128, 256, 256), stem, in_channels)


def _shortcut(into: int, out: int, stride: Size) -> nn.Sequential | None:
    if into == out and stride == (1, 1, 1):
        return None
    return nn.Sequential(nn.Conv3d(into, out, 1, stride, bias=False), nn.BatchNorm3d(out))
