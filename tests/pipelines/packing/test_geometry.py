from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.packing.geometry import arrange_planes, plan_geometry


def plan(width, height, pixel=None, rotation=0, short_side=128, max_aspect=4.0):
    return plan_geometry(width, height, pixel=pixel, rotation=rotation, short_side=short_side, max_aspect=max_aspect)


@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([0, 90, -90, 180, 270]))
@settings(max_examples=80, deadline=None)
def test_the_short_side_is_exact_the_sizes_even_and_the_shape_kept(width, height, rotation):
    planned = plan(width, height, rotation=rotation)
    wide, high = planned.size
    assert min(wide, high) == 128
    assert wide % 2 == high % 2 == 0
    shown = (height, width) if rotation % 180 else (width, height)
    aspect = max(shown) / min(shown)
    assert abs(max(wide, high) - min(128 * aspect, 512)) <= 1
    assert (wide >= high) == (shown[0] >= shown[1]) or wide == high


def test_wide_pixels_are_made_square():
    assert plan(720, 576, pixel=Fraction(16, 15)).size == (170, 128)
    assert plan(720, 576, pixel=Fraction(0)).size == (160, 128)


def test_what_is_changed_is_said():
    assert plan(320, 240).notes == ()
    assert plan(64, 48, rotation=-90).notes == ("turned by 270 degrees", "enlarged from 64x48")
    assert plan(2000, 200).notes == ("cropped to 4:1 around the centre",)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_planes_turn_and_crop_like_the_picture(turns):
    planned = plan(640, 128, rotation=90 * turns, max_aspect=2)
    luma = np.random.default_rng(0).integers(0, 255, (128, 640), dtype=np.uint8)
    chroma = np.random.default_rng(1).integers(0, 255, (2, 64, 320), dtype=np.uint8)
    packed = arrange_planes(np.concatenate([luma.ravel(), chroma.ravel()]).reshape(192, 640), planned)
    wide, high = planned.size
    assert sorted(planned.size) == [128, 256]
    middle = np.s_[:, 192:448]
    assert np.array_equal(packed.ravel()[: wide * high].reshape(high, wide), np.rot90(luma[middle], turns))
    u = packed.ravel()[wide * high :][: wide * high // 4].reshape(high // 2, wide // 2)
    assert np.array_equal(u, np.rot90(chroma[0][:, 96:224], turns))
