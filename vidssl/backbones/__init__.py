"""Which networks turn a clip into a map of features? One name each; all have `.features` and keep [B, F, t, h, w]."""

from __future__ import annotations

import difflib

from vidssl.backbones.trunk import Trunk
from vidssl.errors import RecipeError
from vidssl.sections import Model

__all__ = ["BACKBONES", "Trunk", "build_backbone"]

BACKBONES = ("tiny", "s3d", "s3dg", "r21d10", "r21d18", "r3d10", "r3d18", "c3d", "r2d3d50", "r18_2d3d")


def build_backbone(model: Model, in_channels: int = 3) -> Trunk:
    """The backbone of a recipe, with fresh weights from torch's current generator.

    Args:
        model: Its `backbone` names the network; `width` is read by `tiny` only, the others have their published width.
            `channels_last` and `checkpointing` change memory and speed, neither numbers nor names of weights.
        in_channels: C of the clips; any number.

    Returns:
        A module [B, C, T, H, W] → [B, F, t, h, w] with an int attribute `features` = F.

    Raises:
        RecipeError: unknown backbone.
    """
    trunk = _fresh(model, in_channels)
    trunk.checkpointing = model.checkpointing
    return trunk.to_channels_last() if model.channels_last else trunk


def _fresh(model: Model, in_channels: int) -> Trunk:
    name = model.backbone
    if name == "tiny":
        from vidssl.backbones.tiny import TinyNet

        return TinyNet(in_channels=in_channels, width=model.width)
    if name in ("s3d", "s3dg"):
        from vidssl.backbones.s3d import S3D

        return S3D(in_channels=in_channels, gating=name == "s3dg")
    if name in ("r3d10", "r3d18", "r21d10", "r21d18"):
        from vidssl.backbones.resnet3d import Factored, Full, ResNet3D

        convolution = Full if name.startswith("r3d") else Factored
        return ResNet3D(convolution, blocks=2 if name.endswith("18") else 1, in_channels=in_channels)
    if name == "c3d":
        from vidssl.backbones.c3d import C3D

        return C3D(in_channels=in_channels)
    if name in ("r2d3d50", "r18_2d3d"):
        from vidssl.backbones.r2d3d import R2D3D50, R18of2D3D

        return R2D3D50(in_channels) if name == "r2d3d50" else R18of2D3D(in_channels)
    near = difflib.get_close_matches(name, BACKBONES, n=1)
    hint = f"; did you mean 'model.backbone={near[0]}'?" if near else ""
    raise RecipeError(f"model.backbone={name} is unknown; use one of {', '.join(BACKBONES)}{hint}")
