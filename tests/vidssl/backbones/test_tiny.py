from __future__ import annotations

import pytest
import torch

from vidssl.backbones.tiny import TinyNet


def net(width: int = 4) -> TinyNet:
    torch.manual_seed(0)
    return TinyNet(width).eval()


@pytest.mark.parametrize(("frames", "size"), [(8, 64), (16, 64), (5, 48), (2, 33)])
def test_the_map_has_the_promised_shape(frames: int, size: int) -> None:
    tiny = net()
    maps = tiny(torch.randn(2, 3, frames, size, size))
    assert maps.shape == (2, tiny.features, -(-frames // 4), -(-size // 16), -(-size // 16))


def test_the_default_width_has_about_three_hundred_thousand_parameters() -> None:
    assert 250_000 < sum(p.numel() for p in TinyNet().parameters()) < 350_000


def test_a_clip_played_backwards_has_another_feature() -> None:
    clips = torch.randn(1, 3, 8, 64, 64)
    there, back = (net()(c).mean((2, 3, 4)) for c in (clips, clips.flip(2)))
    assert (there - back).abs().max() > 0.1 * there.abs().max()


def test_a_still_clip_reaches_the_change_half_as_nothing() -> None:
    still = torch.randn(1, 3, 1, 64, 64).expand(-1, -1, 8, -1, -1)
    tiny = net()
    seen: list[torch.Tensor] = []
    tiny.change.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    tiny(still)
    assert seen[0].abs().max() == 0


def test_rows_of_a_batch_do_not_touch_each_other_in_evaluation() -> None:
    clips = torch.randn(3, 3, 8, 64, 64)
    tiny = net()
    torch.testing.assert_close(tiny(clips)[1:2], tiny(clips[1:2]))


def test_gradients_reach_every_parameter_and_the_clip() -> None:
    clips = torch.randn(2, 3, 8, 64, 64, requires_grad=True)
    tiny = net().train()
    tiny(clips).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.parameters())
    assert clips.grad is not None
    assert (clips.grad.abs().amax((0, 1, 3, 4)) > 0).all()


def test_the_input_channels_are_a_choice() -> None:
    assert TinyNet(4, in_channels=2)(torch.randn(1, 2, 8, 32, 32)).shape[1] == 32
