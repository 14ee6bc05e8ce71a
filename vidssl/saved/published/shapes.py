"""Which encoder is this? Read from the names and shapes of its weights, so that nobody has to remember it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidssl.backbones import build_backbone
from vidssl.encoder import Encoder
from vidssl.errors import CheckpointError
from vidssl.sections import Model

__all__ = ["Found", "encoder_in", "outline"]


@dataclass(frozen=True)
class Found:
    """What an artifact says of its encoder.

    Attributes:
        model: Recipe section that builds it.
        in_channels: C of its clips.
    """

    model: Model
    in_channels: int


def encoder_in(artifact: Mapping[str, Tensor]) -> Found:
    """Backbone, dim, head and channels of an `Encoder` state dict (`extra.` entries are not looked at).

    Raises:
        CheckpointError: names of no backbone of ours, or clips of another number of channels than 2 or 3.
    """
    names = {key.removeprefix("backbone."): rows for key, rows in artifact.items() if key.startswith("backbone.")}
    backbone, stem = _backbone_and_stem(names)
    channels = int(names[stem].shape[1])
    if channels not in (2, 3):
        raise CheckpointError(
            f"the encoder in this file sees clips of {channels} channels; a stream has 3, or 2 (flow with model.flow_channels=2)"
        )
    width = {"width": int(names["block1.0.weight"].shape[1])} if backbone == "tiny" else {}
    head = "mlp" if any(key.startswith("head.") for key in artifact) else "none"
    bare = Model.model_validate({"backbone": backbone, "flow_channels": channels, **width})
    last = artifact.get("head.2.weight")
    dim = int(last.shape[0]) if last is not None else _trunk_width(bare)
    return Found(bare.model_copy(update={"dim": dim, "head": head}), channels)


def outline(found: Found) -> dict[str, Tensor]:
    """The state dict that such an encoder has, with values of no meaning; the caller's generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(found.model, found.in_channels)
        return dict(Encoder(backbone, found.model.dim, found.model.head).state_dict())


def _backbone_and_stem(names: Mapping[str, Tensor]) -> tuple[str, str]:
    """The backbone's name in a recipe, and its first convolution."""
    deep = "18" if any(name.startswith("conv2.blocks.") for name in names) else "10"
    if "block1.0.conv1.weight" in names:
        gated = any(".gating_b0." in name for name in names)
        return ("s3dg" if gated else "s3d"), "block1.0.conv1.weight"
    if "conv1.temporal_spatial_conv.weight" in names:
        return f"r3d{deep}", "conv1.temporal_spatial_conv.weight"
    if "conv1.spatial_conv.weight" in names:
        return f"r21d{deep}", "conv1.spatial_conv.weight"
    if "conv3a.weight" in names and "conv1.weight" in names:
        return "c3d", "conv1.weight"
    if "layer1.0.conv1.weight" in names and "conv1.weight" in names:
        return ("r2d3d50" if "layer1.0.conv3.weight" in names else "r18_2d3d"), "conv1.weight"
    if "look.0.weight" in names and "block1.0.weight" in names:
        return "tiny", "look.0.weight"
    some = ", ".join(sorted({name.split(".")[0] for name in names})[:6]) or "no layers"
    raise CheckpointError(f"the backbone in this file is none of ours: it has {some}")


def _trunk_width(model: Model) -> int:
    with torch.random.fork_rng(devices=[]):
        return build_backbone(model).features
