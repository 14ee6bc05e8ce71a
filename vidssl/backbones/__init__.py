"""Which networks turn a clip into a map of features? One name each; all have `.features` and keep [B, F, t, h, w]."""

from __future__ import annotations

from vidssl.backbones.trunk import Trunk
from vidssl.sections import Model
from vidssl.tables.backbones import BACKBONES
from vidssl.tables.lookup import at, named

__all__ = ["BACKBONES", "Trunk", "build_backbone"]


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
    traits = named(BACKBONES, model.backbone, "model.backbone")
    width = {"width": model.width} if traits.takes_width else {}
    trunk = at(traits.place)(in_channels=in_channels, **traits.options, **width)
    assert isinstance(trunk, Trunk)  # for the type checker: a place is only a word
    trunk.checkpointing = model.checkpointing
    return trunk.to_channels_last() if model.channels_last else trunk
