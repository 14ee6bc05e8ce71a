from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from cluster.page.pictures import Curve, Stage, class_colour, class_map, film_strip, funnel, line_chart, pca_2d


def svg_of(text):
    return ET.fromstring(re.search(r"<svg.*?</svg>", text, re.S)[0])


def points_of(line):
    return np.array([[float(v) for v in pair.split(",")] for pair in line.get("points").split()])


def test_a_curve_rises_on_the_picture_where_its_values_rise():
    chart = svg_of(line_chart([Curve("up", [0, 5, 10], [1.0, 2.0, 4.0])]))
    points = points_of(chart.find("polyline"))
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) < 0).all()  # y points down on a screen
    assert points[1, 0] == pytest.approx(points[[0, 2], 0].mean(), abs=0.1)


def test_the_axis_reaches_the_floor_and_names_shares_in_percent():
    words = [
        node.text for node in svg_of(line_chart([Curve("x", [0, 1], [0.4, 0.6])], floor=0.0, share=True)).iter("text")
    ]
    assert "0 %" in words
    assert "60 %" in words


def test_missing_values_and_empty_curves_are_left_out_in_words():
    nan = float("nan")
    assert "Nothing was logged" in line_chart([Curve("x", [0, 1], [nan, nan])])
    chart = line_chart([Curve("x", [0, 1, 2], [1.0, nan, 3.0]), Curve("empty", [], [])])
    assert len(points_of(svg_of(chart).find("polyline"))) == 2
    assert "empty" not in chart


def test_a_single_value_is_a_dot():
    assert svg_of(line_chart([Curve("x", [3], [0.0])])).find("circle") is not None


def test_a_long_log_is_averaged_to_a_few_hundred_points_and_keeps_its_mean():
    chart = svg_of(line_chart([Curve("x", range(100_000), np.ones(100_000))], floor=0.0))
    points = points_of(chart.find("polyline"))
    assert 100 < len(points) < 500
    assert np.ptp(points[:, 1]) == 0


def test_several_curves_have_a_legend_with_escaped_names():
    chart = line_chart([Curve("a<b", [0, 1], [1, 2]), Curve("c", [0, 1], [2, 3])])
    assert "a&lt;b" in chart
    assert "a<b" not in chart


def test_the_funnel_narrows_and_states_counts_and_purity():
    picture = svg_of(
        funnel([Stage("the bank", 9536.0, 0.01), Stage("stage 1", 500.0, 0.25), Stage("stage 2", 5.0, None)])
    )
    widths = [
        np.ptp([float(p.split(",")[0]) for p in shape.get("points").split()]) for shape in picture.iter("polygon")
    ]
    assert widths == sorted(widths, reverse=True)
    assert {"9,536", "500", "5", "1.0 %", "25.0 %", "unknown"} <= {node.text for node in picture.iter("text")}


def test_a_map_has_a_dot_per_video_up_to_its_limit_and_a_legend_for_few_classes():
    xy, label = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 4 - 1
    small = class_map(xy, label, ["a", "b", "c"])
    assert len(svg_of(small).findall("circle")) == 50
    assert all(f"</i>{name}" in small for name in "abc")
    assert len(svg_of(class_map(xy, label, ["a", "b", "c"], most=10)).findall("circle")) == 10
    many = class_map(xy, np.arange(50), [f"class {i}" for i in range(101)])
    assert "legend" not in many
    assert "<title>class 7</title>" in many


def test_101_classes_have_101_colours():
    assert len({class_colour(i, 101) for i in range(101)}) == 101


def test_pca_finds_the_plane_in_which_the_rows_lie():
    rng = np.random.default_rng(1)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    spread = rng.normal(size=(60, 2)) * [5, 2]
    rows = spread @ plane.T + 0.01 * rng.normal(size=(60, 8)) + 3
    xy, share = pca_2d(rows)
    assert share > 0.999
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.testing.assert_allclose(distance, np.linalg.norm(rows[:, None] - rows[None], axis=2), atol=0.2)
    np.testing.assert_allclose(pca_2d(rows[:, ::-1])[0].std(0), xy.std(0), atol=1e-6)


def test_pca_of_identical_rows_is_a_point():
    xy, share = pca_2d(np.ones((5, 3)))
    assert np.ptp(xy) == 0
    assert share == 0


def test_a_film_strip_is_a_jpeg_with_the_frames_side_by_side():
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[0, ..., 0] = frames[1, ..., 1] = frames[2, ..., 2] = 255
    uri = film_strip(frames, height=32)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (3 * 48 + 4, 32)
    middles = [np.asarray(image)[16, x] for x in (24, 74, 124)]
    assert [int(np.argmax(colour)) for colour in middles] == [0, 1, 2]
