"""Views: each named residual against a slow loop, flow's views, IIC's intra-negatives, and what is refused."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import DataError, RecipeError
from vidssl.views import BOUNDARIES, INTRA, SCALES, intra_negative, make_views, residual


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


def test_unit_pixels_wrap_and_half_shift_are_the_pre_training_view_of_iic_to_the_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 4)).astype(np.float32) / np.float32(255)
    published = ((pixels - np.roll(pixels, 1, axis=2)) + np.float32(1)) / np.float32(2)
    ours = residual(torch.from_numpy(pixels), "wrap", "half_shift").numpy()
    np.testing.assert_array_equal(ours, published)
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_u_and_v_are_one_component_as_a_grey_picture_and_flow_is_both():
    rgb, flow = torch.randn(2, 1, 3, 4, 5, 5), torch.randn(2, 1, 2, 4, 5, 5)
    made = make_views(rgb, ("v", "flow", "u", "rgb"), flow=flow)
    assert list(made) == ["v", "flow", "u", "rgb"]
    assert made["flow"] is flow
    for channel in range(3):
        assert torch.equal(made["u"][:, :, channel], flow[:, :, 0])
        assert torch.equal(made["v"][:, :, channel], flow[:, :, 1])
    assert made["u"].shape == rgb.shape


def test_what_cannot_be_made_is_refused_with_what_can():
    clip = torch.randn(3, 4, 2, 2)
    for view in ("flow", "u", "v"):
        with pytest.raises(DataError, match=f"no optical flow, which view '{view}' .* method.second_view=residual"):
            make_views(clip, (view,))
    with pytest.raises(DataError, match="view 'u' is one of two flow channels, the flow clip has 3"):
        make_views(clip, ("u",), flow=clip)
    with pytest.raises(RecipeError, match="view 'depth' is unknown; use one of rgb, residual, flow, u, v"):
        make_views(clip, ("depth",))
    with pytest.raises(RecipeError, match="boundary 'zero' is unknown; use one of wrap, drop, repeat"):
        residual(clip, "zero")
    with pytest.raises(RecipeError, match="scale 'half' is unknown; use one of none, half_shift"):
        residual(clip, scale="half")
    with pytest.raises(RecipeError, match=r"needs two frames, the clip has 1; set clips\.frames=2"):
        residual(clip[:, :1])


def numbered(rows, frames, size=3):
    """Clips in which every value of frame t of clip b is 100·b + t."""
    values = 100 * torch.arange(rows)[:, None] + torch.arange(frames)
    return values[:, None, :, None, None].expand(rows, 3, frames, size, size).float()


def places(clips):
    """The frame numbers of each clip, [B, T]; every pixel and channel of a frame must agree."""
    flat = clips.movedim(2, 1).flatten(2)
    assert (flat == flat[:, :, :1]).all()
    return flat[:, :, 0].long()


def test_a_repeated_clip_is_one_of_its_frames_and_never_changes():
    clips = torch.randn(40, 3, 5, 4, 4)
    found = intra_negative(clips, "repeat", seed=0, step=0, instance=range(40))
    assert found.var(dim=2, correction=0).max() == 0
    which = [(clips[row] == found[row, :, :1]).all(dim=(0, 2, 3)).nonzero().flatten().tolist() for row in range(40)]
    assert all(len(one) == 1 for one in which)
    assert {one[0] for one in which} == set(range(5))  # any frame may be the one


@pytest.mark.parametrize(
    ("frames", "lengths"), [(16, (4, 4, 4, 4)), (4, (1, 1, 1, 1)), (15, (4, 4, 4, 3)), (6, (2, 2, 1, 1))]
)
def test_shuffling_swaps_exactly_two_chunks_and_keeps_every_frame(frames, lengths):
    edges = np.cumsum([0, *lengths])
    chunks = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
    allowed = {}
    for one in range(4):
        for other in range(one + 1, 4):
            order = [0, 1, 2, 3]
            order[one], order[other] = other, one
            allowed[tuple(itertools.chain.from_iterable(chunks[chunk] for chunk in order))] = (one, other)
    found = places(intra_negative(numbered(200, frames), "shuffle", seed=3, step=1, instance=range(200)))
    rows = [tuple((row - 100 * number).tolist()) for number, row in enumerate(found)]
    assert all(Counter(row) == Counter(range(frames)) for row in rows)
    drawn = Counter(allowed[row] for row in rows)  # a KeyError: not two chunks swapped
    assert len(drawn) == 6
    assert min(drawn.values()) > 12  # of 33 expected


@pytest.mark.parametrize("kind", ["rot", "rot90"])
def test_turned_clips_are_turned_by_a_quarter_a_half_or_three(kind):
    clips = torch.randn(60, 3, 2, 5, 5)
    found = intra_negative(clips, kind, seed=0, step=0, instance=range(60))
    quarters = Counter()
    for clip, turned in zip(clips.numpy(), found.numpy(), strict=True):
        same = [k for k in range(4) if np.array_equal(np.rot90(clip, k, axes=(2, 3)), turned)]
        assert len(same) == 1
        quarters[same[0]] += 1
    assert set(quarters) == ({1, 2, 3} if kind == "rot" else {1})


@pytest.mark.parametrize("kind", INTRA)
def test_a_negative_depends_on_seed_step_and_video_not_on_its_neighbours(kind):
    clips = torch.randn(30, 3, 8, 4, 4)
    videos = np.arange(30) * 7
    whole = intra_negative(clips, kind, seed=1, step=5, instance=videos)
    part = intra_negative(clips[11:20], kind, seed=1, step=5, instance=videos[11:20])
    assert torch.equal(part, whole[11:20])
    others = [intra_negative(clips, kind, seed=1, step=6, instance=videos)]
    others += [intra_negative(clips, kind, seed=2, step=5, instance=videos)]
    others += [intra_negative(clips, kind, seed=1, step=5, instance=videos + 1)]
    assert all(torch.equal(other, whole) == (kind == "rot90") for other in others)


def test_a_clip_that_cannot_be_its_own_negative_is_refused():
    with pytest.raises(RecipeError, match=r"quarters of a clip, which has 3 frames; type clips\.frames=4"):
        intra_negative(torch.zeros(1, 3, 3, 4, 4), "shuffle", seed=0, step=0, instance=[0])
    with pytest.raises(RecipeError, match=r"rot needs square clips, these are 4×6; type method\.iic\.intra=shuffle"):
        intra_negative(torch.zeros(1, 3, 3, 4, 6), "rot", seed=0, step=0, instance=[0])
    with pytest.raises(RecipeError, match="intra-negative 'blur' is unknown; use one of repeat, shuffle, rot, rot90"):
        intra_negative(torch.zeros(1, 3, 3, 4, 4), "blur", seed=0, step=0, instance=[0])
