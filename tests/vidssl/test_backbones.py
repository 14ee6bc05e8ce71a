"""Backbones: published parameter counts, shapes, and the names a recipe may use."""

import pytest
import torch

from vidssl.backbones import BACKBONES, build_backbone
from vidssl.encoder import Encoder
from vidssl.errors import RecipeError
from vidssl.recipe import Model


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "parameters"), [("s3d", 7_910_048), ("s3dg", 9_098_000)])
def test_s3d_has_as_many_parameters_as_the_published_one(name, parameters):
    backbone = build_backbone(Model(backbone=name))
    assert count(backbone) == parameters
    assert count(Encoder(backbone, 128)) == parameters + 1_180_800


def test_s3d_blocks_have_as_many_parameters_as_the_published_ones():
    backbone = build_backbone(Model(backbone="s3d"))
    blocks = [backbone.block1, backbone.block2, backbone.block3, backbone.block4, backbone.block5]
    assert [count(block) for block in blocks] == [38_336, 226_176, 687_456, 3_782_304, 3_175_776]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backbone_makes_a_map_of_its_features_from_any_channels(name, channels):
    backbone = build_backbone(Model(backbone=name, width=4), in_channels=channels).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, channels, 8, 32, 32))
    assert maps.ndim == 5
    assert maps.shape[:2] == (2, backbone.features)


def test_s3d_divides_time_by_8_and_space_by_32():
    backbone = build_backbone(Model(backbone="s3d")).eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 16, 64, 96)).shape == (1, 1024, 2, 2, 3)


def test_gates_scale_every_channel_between_zero_and_one():
    torch.manual_seed(0)
    backbone = build_backbone(Model(backbone="s3dg"))
    gate = backbone.block3[1].gating_b0
    x = torch.rand(2, 64, 2, 3, 3) + 0.1
    share = gate(x) / x
    assert ((share > 0) & (share < 1)).all()
    torch.testing.assert_close(share, share.mean((2, 3, 4), keepdim=True).expand_as(share))


def test_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"model\.backbone=s3gd is unknown; use one of tiny, s3d, s3dg; did you mean"):
        build_backbone(Model(backbone="s3gd"))
