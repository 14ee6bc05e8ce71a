"""R3D and R(2+1)D as VCOP wrote them and IIC and ViCC train them: one residual layout, two kinds of convolution.

What those papers call "R3D" and "R(2+1)D" has **one** block per stage, ten convolutions deep; the nets with two blocks
per stage are the real 18-layer ones. Hence the names r3d10, r3d18, r21d10, r21d18. Module names (`conv3.block1.conv1`,
`downsampleconv` …) are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vidssl.backbones.trunk import Stage, Trunk

__all__ = ["Factored", "Full", "ResNet3D"]

Size = tuple[int, int, int]
Convolution = Callable[[int, int, Size, Size], nn.Module]


class Full(nn.Module):
    """One T×H×W convolution without bias, padded so that stride 1 keeps the size (R3D)."""

    def __init__(self, into: int, out: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.temporal_spatial_conv = nn.Conv3d(into, out, kernel, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T/stride, H/stride, W/stride]."""
        return self.temporal_spatial_conv(x)


class Factored(nn.Module):
    """1×H×W convolution, batch norm, ReLU, T×1×1 convolution (R(2+1)D; Tran et al., CVPR 2018, section 3.5).

    The width in between, M = floor(t·h·w·into·out / (h·w·into + t·out)), gives as many weights as the full convolution
    has; it depends on the channels of the clips, so that the stem of a one-channel net is narrower.
    """

    def __init__(self, into: int, out: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        t, h, w = kernel
        middle = (t * h * w * into * out) // (h * w * into + t * out)
        self.spatial_conv = nn.Conv3d(into, middle, (1, h, w), (1, *stride[1:]), (0, h // 2, w // 2), bias=False)
        self.bn = nn.BatchNorm3d(middle)
        self.temporal_conv = nn.Conv3d(middle, out, (t, 1, 1), (stride[0], 1, 1), (t // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T/stride, H/stride, W/stride]."""
        return self.temporal_conv(torch.relu(self.bn(self.spatial_conv(x))))


class Block(nn.Module):
    """Two 3×3×3 convolutions and a shortcut; where the width changes, both paths halve T, H and W."""

    def __init__(self, convolution: Convolution, into: int, out: int) -> None:
        super().__init__()
        halve = into != out
        step: Size = (2, 2, 2) if halve else (1, 1, 1)
        if halve:  # the shortcut is factored as well
            self.downsampleconv = convolution(into, out, (1, 1, 1), step)
            self.downsamplebn = nn.BatchNorm3d(out)
        self.halve = halve
        self.conv1 = convolution(into, out, (3, 3, 3), step)
        self.bn1 = nn.BatchNorm3d(out)
        self.conv2 = convolution(out, out, (3, 3, 3), (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T, H, W], each of them halved where the width changes."""
        rest = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.halve:
            x = self.downsamplebn(self.downsampleconv(x))
        return torch.relu(x + rest)


class Layer(nn.Module):
    """Blocks of one width: `block1` and, in the 18-layer nets, `blocks.0`."""

    def __init__(self, convolution: Convolution, into: int, out: int, count: int) -> None:
        super().__init__()
        self.block1 = Block(convolution, into, out)
        self.blocks = nn.ModuleList(Block(convolution, out, out) for _ in range(count - 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, …]."""
        x = self.block1(x)
        for block in self.blocks:
            x = block(x)
        return x


class ResNet3D(Trunk):
    """The trunk without pooling and classifier.

    Its number of weights with 3 input channels and one or two blocks per stage is

    | | one block | two blocks |
    |---|---|---|
    | R3D | 14,361,792 | 33,166,272 |
    | R(2+1)D | 14,365,303 | 33,178,423 |

    [B, C, T, H, W] → [B, 512, T/8, H/16, W/16]. ViCC's and IIC's own nets pool this map to one vector inside the
    network; here that is the encoder's work, so that readers of the last map (IIC's retrieval) have it too.

    Args:
        convolution: `Full` (R3D) or `Factored` (R(2+1)D).
        blocks: Blocks of each of the four stages.
        in_channels: C of the clips.
    """

    features = 512

    def __init__(self, convolution: Convolution, blocks: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, 64, (3, 7, 7), (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(64)
        self.conv2 = Layer(convolution, 64, 64, blocks)
        self.conv3 = Layer(convolution, 64, 128, blocks)
        self.conv4 = Layer(convolution, 128, 256, blocks)
        self.conv5 = Layer(convolution, 256, 512, blocks)

    def stages(self) -> tuple[Stage, ...]:
        """Stem and four stages."""
        return self._stem, self.conv2, self.conv3, self.conv4, self.conv5

    def _stem(self, clips: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(clips)))


def r3d(in_channels: int = 3, blocks: int = 1) -> ResNet3D:
    """R3D with so many blocks in each stage."""
    return ResNet3D(Full, blocks, in_channels)


def r21d(in_channels: int = 3, blocks: int = 1) -> ResNet3D:
    """R(2+1)D with so many blocks in each stage."""
    return ResNet3D(Factored, blocks, in_channels)
