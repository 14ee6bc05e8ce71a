"""S3D and S3D-G (Xie et al., ECCV 2018), as CoCLR, CPR and ViCC train them: separable convolutions, gates.

Module names (`block4.3.branch1.1.conv2` …) are those of the published checkpoints, so that these load without a table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vidssl.backbones.trunk import Stage, Trunk

__all__ = ["S3D"]


class Widths(NamedTuple):
    """Channels of one inception block: what comes in, and what each convolution of its four branches puts out."""

    into: int
    b0: int
    b1a: int
    b1b: int
    b2a: int
    b2b: int
    b3: int

    @property
    def out(self) -> int:
        """Channels of the four branches side by side."""
        return self.b0 + self.b1b + self.b2b + self.b3


BLOCK3 = (Widths(192, 64, 96, 128, 16, 32, 32), Widths(256, 128, 128, 192, 32, 96, 64))
BLOCK4 = (
    Widths(480, 192, 96, 208, 16, 48, 64),
    Widths(512, 160, 112, 224, 24, 64, 64),
    Widths(512, 128, 128, 256, 24, 64, 64),
    Widths(512, 112, 144, 288, 32, 64, 64),
    Widths(528, 256, 160, 320, 32, 128, 128),
)
BLOCK5 = (Widths(832, 256, 160, 320, 32, 128, 128), Widths(832, 384, 192, 384, 48, 128, 128))


class Pointwise(nn.Module):
    """1×1×1 convolution, batch norm, ReLU."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(into, out, 1, bias=False)
        self.bn = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T, H, W]."""
        return torch.relu(self.bn(self.conv(x)))


class Separable(nn.Module):
    """A k×k×k convolution as 1×k×k then k×1×1, batch norm and ReLU after each; `stride` acts on T, H and W."""

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        k, s, p = kernel, stride, kernel // 2
        self.conv1 = nn.Conv3d(into, out, (1, k, k), (1, s, s), (0, p, p), bias=False)
        self.bn1 = nn.BatchNorm3d(out)
        self.conv2 = nn.Conv3d(out, out, (k, 1, 1), (s, 1, 1), (p, 0, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T/stride, H/stride, W/stride]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


class Gate(nn.Module):
    """Feature gating of S3D-G: every channel times sigmoid(W · mean over T, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T, H, W], same shape out."""
        weight = torch.sigmoid(self.fc(x.mean(dim=(2, 3, 4))))
        return x * weight[:, :, None, None, None]


class Inception(nn.Module):
    """Four branches side by side: pointwise | pointwise, separable | the same, narrower | max-pool, pointwise."""

    def __init__(self, widths: Widths, gating: bool) -> None:
        super().__init__()
        w = widths
        self.branch0 = nn.Sequential(Pointwise(w.into, w.b0))
        self.branch1 = nn.Sequential(Pointwise(w.into, w.b1a), Separable(w.b1a, w.b1b, 3))
        self.branch2 = nn.Sequential(Pointwise(w.into, w.b2a), Separable(w.b2a, w.b2b, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Pointwise(w.into, w.b3))
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = (
            Gate(width) if gating else nn.Identity() for width in (w.b0, w.b1b, w.b2b, w.b3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, T, H, W] → [B, out, T, H, W]."""
        return torch.cat(
            [
                self.gating_b0(self.branch0(x)),
                self.gating_b1(self.branch1(x)),
                self.gating_b2(self.branch2(x)),
                self.gating_b3(self.branch3(x)),
            ],
            dim=1,
        )


class S3D(Trunk):
    """The trunk without classifier: 7,910,048 parameters, 9,098,000 with gating (3 input channels).

    [B, C, T, H, W] → [B, 1024, T/8, H/32, W/32]; at least 8 frames and 32 pixels.

    Args:
        in_channels: C of the clips.
        gating: S3D-G: gate the output of every branch.
    """

    features = 1024

    def __init__(self, in_channels: int = 3, gating: bool = False) -> None:
        super().__init__()
        self.block1 = nn.Sequential(Separable(in_channels, 64, 7, stride=2))
        self.block2 = nn.Sequential(_halve_space(), Pointwise(64, 64), Separable(64, 192, 3))
        self.block3 = nn.Sequential(_halve_space(), *(Inception(w, gating) for w in BLOCK3))
        self.block4 = nn.Sequential(nn.MaxPool3d(3, 2, 1), *(Inception(w, gating) for w in BLOCK4))
        self.block5 = nn.Sequential(nn.MaxPool3d(2, 2), *(Inception(w, gating) for w in BLOCK5))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):  # as published
                nn.init.normal_(module.weight, std=0.01)

    def stages(self) -> tuple[Stage, ...]:
        """The five blocks between which the map is halved."""
        return self.block1, self.block2, self.block3, self.block4, self.block5


def _halve_space() -> nn.MaxPool3d:
    return nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
