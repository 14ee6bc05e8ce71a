"""Which networks turn a clip into a map of features? One name each; all have `.features` and keep [B, F, t, h, w]."""

from __future__ import annotations

import difflib

from torch import nn

from vidssl.errors import RecipeError
from vidssl.sections import Model

__all__ = ["BACKBONES", "build_backbone"]

BACKBONES = ("tiny", "s3d", "s3dg")


def build_backbone(model: Model, in_channels: int = 3) -> nn.Module:
    """The backbone of a recipe, with fresh weights from torch's current generator.

    Args:
        model: Its `backbone` names the network; `width` is read by `tiny` only, the others have their published width.
        in_channels: C of the clips.

    Returns:
        A module [B, C, T, H, W] → [B, F, t, h, w] with an int attribute `features` = F.

    Raises:
        RecipeError: unknown backbone.
    """
    if model.backbone == "tiny":
        from vidssl.backbones.tiny import TinyNet

        return TinyNet(in_channels=in_channels, width=model.width)
    if model.backbone in ("s3d", "s3dg"):
        from vidssl.backbones.s3d import S3D

        return S3D(in_channels=in_channels, gating=model.backbone == "s3dg")
    near = difflib.get_close_matches(model.backbone, BACKBONES, n=1)
    hint = f"; did you mean 'model.backbone={near[0]}'?" if near else ""
    raise RecipeError(f"model.backbone={model.backbone} is unknown; use one of {', '.join(BACKBONES)}{hint}")
