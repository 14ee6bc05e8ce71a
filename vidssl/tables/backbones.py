"""Which networks turn a clip into a map of features? name → class, loaded when one is built.

A new backbone is its file, a line here and its test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

__all__ = ["BACKBONES", "BackboneTraits"]


@dataclass(frozen=True)
class BackboneTraits:
    """A backbone before it is loaded.

    Attributes:
        place: `module:Class`, a `vidssl.backbones.trunk.Trunk` (or a function that makes one) of `in_channels=C`.
        options: More words for it.
        takes_width: Whether it is given `width=model.width`; the published ones have their published width.
    """

    place: str
    options: Mapping[str, int | bool] = field(default_factory=dict)
    takes_width: bool = False


BACKBONES: Final[Mapping[str, BackboneTraits]] = MappingProxyType(
    {
        "tiny": BackboneTraits("vidssl.backbones.tiny:TinyNet", takes_width=True),
        "s3d": BackboneTraits("vidssl.backbones.s3d:S3D"),
        "s3dg": BackboneTraits("vidssl.backbones.s3d:S3D", {"gating": True}),
        "r21d10": BackboneTraits("vidssl.backbones.resnet3d:r21d", {"blocks": 1}),
        "r21d18": BackboneTraits("vidssl.backbones.resnet3d:r21d", {"blocks": 2}),
        "r3d10": BackboneTraits("vidssl.backbones.resnet3d:r3d", {"blocks": 1}),
        "r3d18": BackboneTraits("vidssl.backbones.resnet3d:r3d", {"blocks": 2}),
        "c3d": BackboneTraits("vidssl.backbones.c3d:C3D"),
        "r2d3d50": BackboneTraits("vidssl.backbones.r2d3d:R2D3D50"),
        "r18_2d3d": BackboneTraits("vidssl.backbones.r2d3d:R18of2D3D"),
    }
)
"""By the word that `model.backbone` takes."""
