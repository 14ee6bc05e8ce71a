"""Views: each named residual against a slow loop, and what make_views refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import RecipeError
from vidssl.views import BOUNDARIES, SCALES, make_views, residual


def slow_residual(clip, boundary, scale):
    """Frame by frame, [C, T, H, W]."""
    last = clip.shape[1] - 1
    frames = []
    for t in range(last + 1):
        if t:
            frames.append(clip[:, t] - clip[:, t - 1])
        elif boundary == "wrap":
            frames.append(clip[:, 0] - clip[:, last])
        elif boundary == "repeat":
            frames.append(clip[:, 1] - clip[:, 0])
    stacked = torch.stack(frames, dim=1)
    return 0.5 * stacked + 0.5 if scale == "half_shift" else stacked


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(BOUNDARIES), st.sampled_from(SCALES), st.integers(2, 5), st.integers(0, 99))
def test_residual_equals_a_loop_over_frames(boundary, scale, frames, seed):
    clips = torch.randn(2, 2, 3, frames, 4, 5, generator=torch.Generator().manual_seed(seed))
    found = residual(clips, boundary, scale)
    for row in range(2):
        for clip in range(2):
            expected = slow_residual(clips[row, clip], boundary, scale)
            torch.testing.assert_close(found[row, clip], expected)


def test_wrap_is_what_iic_computes_with_roll():
    clip = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(residual(clip, "wrap"), clip - torch.roll(clip, 1, dims=1))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_still_clip_has_no_residual(boundary):
    still = torch.randn(3, 1, 4, 4).expand(3, 5, 4, 4)
    assert residual(still, boundary).abs().max() == 0
    assert (residual(still, boundary, "half_shift") == 0.5).all()


def test_normalisation_leaves_only_the_scale_of_the_channel():
    pixels = torch.rand(3, 4, 2, 2)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    normal = (pixels - mean[:, None, None, None]) / std[:, None, None, None]
    torch.testing.assert_close(residual(normal), residual(pixels) / std[:, None, None, None])


def test_views_come_in_the_asked_order_and_rgb_is_not_copied():
    clip = torch.randn(2, 2, 3, 4, 4, 4)
    views = make_views(clip, ("residual", "rgb"))
    assert list(views) == ["residual", "rgb"]
    assert views["rgb"] is clip
    assert views["residual"].shape == clip.shape


def test_what_cannot_be_made_is_refused_with_what_can():
    clip = torch.randn(3, 4, 2, 2)
    with pytest.raises(RecipeError, match="view 'flow' cannot be made from RGB frames; use one of rgb, residual"):
        make_views(clip, ("flow",))
    with pytest.raises(RecipeError, match="boundary 'zero' is unknown; use one of wrap, drop, repeat"):
        residual(clip, "zero")
    with pytest.raises(RecipeError, match="scale 'half' is unknown; use one of none, half_shift"):
        residual(clip, scale="half")
    with pytest.raises(RecipeError, match=r"needs two frames, the clip has 1; set clips\.frames=2"):
        residual(clip[:, :1])
