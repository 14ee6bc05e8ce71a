"""Encoder, its twin, and unit rows."""

import pytest
import torch
from torch import nn

from vidssl.encoder import Encoder, follow, momentum_twin, unit_rows


class Channels(nn.Module):
    """A backbone that does nothing, so that pooling and head can be computed by hand."""

    features = 3

    def forward(self, clips):
        return clips


def test_features_are_the_mean_over_time_and_space():
    clips = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(Encoder(Channels(), 7).features(clips), clips.flatten(2).mean(2))


def test_head_equals_the_published_pointwise_convolutions_on_the_pooled_map():
    encoder, clips = Encoder(Channels(), 7), torch.randn(2, 3, 4, 5, 6)
    first, second = nn.Conv3d(3, 3, 1), nn.Conv3d(3, 7, 1)
    for conv, linear in ((first, encoder.head[0]), (second, encoder.head[2])):
        conv.weight.data.copy_(linear.weight[:, :, None, None, None])
        conv.bias.data.copy_(linear.bias)
    published = nn.Sequential(Channels(), nn.AdaptiveAvgPool3d(1), first, nn.ReLU(), second)
    torch.testing.assert_close(encoder(clips), published(clips).flatten(1))


def test_twin_follows_by_the_momentum_rule_and_keeps_its_own_buffers():
    encoder = _with_batch_norm()
    twin = momentum_twin(encoder)
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    before = [p.clone() for p in twin.parameters()]
    encoder.backbone.norm.running_mean.fill_(9.0)
    follow(twin, encoder, 0.9)
    for old, new, goal in zip(before, twin.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * goal.detach())
        assert not new.requires_grad
    assert twin.backbone.norm.running_mean.abs().max() == 0


def test_without_momentum_the_twin_is_the_encoder():
    encoder = _with_batch_norm()
    twin = momentum_twin(_with_batch_norm())
    follow(twin, encoder, 0.0)
    for ours, theirs in zip(twin.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_unit_rows_have_length_one_in_float32_at_least(dtype):
    rows = unit_rows(torch.randn(5, 64).to(dtype))
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5, dtype=rows.dtype))


class Normed(Channels):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips):
        return self.norm(clips)


def _with_batch_norm():
    return Encoder(Normed(), 4)
