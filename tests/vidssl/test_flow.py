"""The flow codec against the formula in numpy, and what a mirror does to flow."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidssl.flow import BOUND, STILL, decode, encode, flip, to_picture


def test_codes_are_the_published_formula_with_half_to_even():
    flow = np.linspace(-25, 25, 4001).astype(np.float32)
    expected = np.round((np.clip(flow, -20, 20).astype(np.float64) + 20) * 255 / 40)
    halves = np.abs((np.clip(flow, -20, 20).astype(np.float64) + 20) * 255 / 40 % 1 - 0.5) < 1e-4
    ours = encode(torch.from_numpy(flow))
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours.numpy()[~halves], expected[~halves])
    steps = torch.tensor(
        [20 * (2 * k + 1 - 255) / 255 for k in range(255)], dtype=torch.float64
    )  # exactly between codes
    near = torch.arange(255)
    assert ((encode(steps) == near) | (encode(steps) == near + 1)).all()


def test_no_motion_is_code_128_and_comes_back_as_half_a_level():
    assert encode(torch.zeros(3)).tolist() == [STILL] * 3 == [128] * 3
    assert abs(float(decode(torch.tensor(STILL))) - 20 / 255) < 1e-6


@given(st.floats(-BOUND, BOUND))
def test_a_value_inside_the_bound_comes_back_within_half_a_level(value):
    back = float(decode(encode(torch.tensor([value], dtype=torch.float64)))[0])
    assert abs(back - value) <= 20 / 255 + 1e-5 < 0.079


def test_every_code_survives_and_what_is_faster_than_the_bound_is_clipped():
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(encode(decode(codes)), codes)
    assert encode(torch.tensor([-1e9, -20.0, 20.0, 1e9])).tolist() == [0, 0, 255, 255]


def test_a_mirror_reverses_columns_and_turns_right_into_left():
    flow = torch.randn(2, 2, 3, 4, 5)
    mirrored, published = flip(flow), flip(flow, negates_u=False)
    for column in range(5):
        assert torch.equal(mirrored[:, 0, ..., column], -flow[:, 0, ..., 4 - column])
        assert torch.equal(mirrored[:, 1, ..., column], flow[:, 1, ..., 4 - column])
        assert torch.equal(published[..., column], flow[..., 4 - column])
    assert torch.equal(flip(mirrored), flow)


def test_flow_of_a_mirrored_video_is_the_mirrored_flow():
    """A dot that moves right by two and down by one: in the mirror it moves left by two and down by one."""
    flow = torch.zeros(2, 1, 6, 8)
    flow[0, 0, 2, 1], flow[1, 0, 2, 1] = 2.0, 1.0
    seen = flip(flow)
    assert seen[:, 0, 2, 6].tolist() == [-2.0, 1.0]
    assert seen.count_nonzero() == 2


def test_pictures_have_the_published_order_of_channels():
    flow = torch.randn(1, 2, 3, 4, 4) * 5
    two, three = to_picture(flow), to_picture(flow, 3)
    assert torch.equal(two, encode(flow).float() / 255)
    assert (three[:, 0] == 128 / 255).all()
    assert torch.equal(three[:, 1], two[:, 1])
    assert torch.equal(three[:, 2], two[:, 0])
