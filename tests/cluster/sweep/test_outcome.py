"""What trainings with known answers say: intervals against a plain count, halving against its rule, and a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.sweep.chart import draw_arms
from cluster.sweep.outcome import outcome_of, table_lines
from cluster.sweep.parallel import draw_axes
from cluster.sweep.trainings import goes_on
from tests.cluster.sweep.worlds import row_of
from vidssl.evaluation.retrieval import wilson

QUERIES = 200


def answers(shares, seeds=3, shared=0.9):
    """Rows and hits of arms that are right in some share of the queries, mostly in the same ones."""
    rng, rows, hits = np.random.default_rng(5), [], {}
    hard = rng.random(QUERIES)
    for arm, share in shares.items():
        for seed in range(seeds):
            luck = np.where(rng.random(QUERIES) < shared, hard, rng.random(QUERIES))
            found = (luck < share).astype(float)
            row = row_of(arm, seed, float(found.mean()))
            rows.append(row)
            hits[row.key] = found
    return rows, hits


def test_arms_that_answer_alike_cannot_be_told_apart_and_a_worse_one_can():
    rows, hits = answers({"good": 0.6, "as good": 0.59, "bad": 0.3})
    found = outcome_of(rows, hits)
    assert found.best is not None
    assert {found.best.label} | {arm.label for arm in found.alike} == {"good", "as good"}
    assert found.arms[-1].label == "bad"
    assert found.arms[-1].apart
    text = "\n".join(table_lines(found, 3))
    assert f"{found.best.label} is ahead of 1 of 2 others; cannot be told apart from it: {found.alike[0].label}" in text
    assert "no test video" in text
    assert "one seed" not in text


def test_the_gap_is_the_paired_difference_with_the_wider_of_both_intervals():
    rows, hits = answers({"a": 0.6, "b": 0.5})
    other = outcome_of(rows, hits).arms[1]
    pairs = [hits[f"b/{seed}"] - hits[f"a/{seed}"] for seed in range(3)]
    means = [pair.mean() for pair in pairs]
    of_seeds = 4.303 * np.std(means, ddof=1) / math.sqrt(3)
    of_videos = 1.96 * np.std(np.mean(pairs, axis=0), ddof=1) / math.sqrt(QUERIES)
    assert other.gap == pytest.approx(np.mean(means))
    assert other.gap95[1] - other.gap == pytest.approx(max(of_seeds, of_videos), rel=1e-6)
    assert other.gap - other.gap95[0] == pytest.approx(max(of_seeds, of_videos), rel=1e-6)


def test_one_seed_has_the_interval_of_its_videos_and_says_what_it_does_not_know():
    rows, hits = answers({"a": 0.6, "b": 0.5}, seeds=1)
    found = outcome_of(rows, hits)
    assert found.arms[0].interval95 == wilson(rows[0].r1, QUERIES)
    assert (
        "one seed: the intervals know which videos asked, and not how much a training varies"
        in table_lines(found, 1)[-1]
    )


def test_what_was_stopped_is_no_best_whatever_it_reached():
    rows, hits = answers({"a": 0.4}, seeds=1)
    early = [row_of("early", 0, 0.9, percent=33, state="stopped"), row_of("on its way", 0, 0.95, percent=33)]
    found = outcome_of([*rows, *early], hits)
    assert found.best.label == "a"
    assert [arm.label for arm in found.arms] == ["a", "on its way", "early"]
    lines = table_lines(found, 1)
    assert any(line.endswith("stopped at 33 %") for line in lines)
    assert any(line.endswith("goes on at 33 %") for line in lines)
    assert outcome_of(early, {}).best is None
    assert table_lines(outcome_of(early, {}), 1)[-1] == "nothing is finished yet: no point is called best"


def test_only_the_last_rung_of_a_training_counts():
    rows = [row_of("a", 0, 0.9, percent=25), row_of("a", 0, 0.5, percent=100)]
    assert outcome_of(rows, {"a/0": np.array([1.0, 0.0])}).best.r1 == 0.5


def test_one_in_so_many_goes_on_from_a_rung():
    assert goes_on(0.1, [], 3)
    values = [0.1 * i for i in range(9)]
    passed = [value for value in values if goes_on(value, [one for one in values if one != value], 3)]
    assert passed == pytest.approx([0.6, 0.7, 0.8])
    assert goes_on(0.8, values[:8], 9)
    assert not goes_on(0.6, values[:8], 9)


def test_the_picture_has_a_panel_for_arms_pools_and_rungs(tmp_path):
    from PIL import Image

    rows, hits = answers({"stages=3": 0.5, "sum": 0.45, "stages=5": 0.3})
    pools = {"stages=3": 60, "sum": 240, "stages=5": 15}
    rows = [row_of(row.arm, row.seed, row.r1, pool=pools[row.arm]) for row in rows]
    sizes = []
    for more in ([], [row_of(row.arm, row.seed, row.r1 / 2, percent=33, pool=row.pool) for row in rows]):
        draw_arms(outcome_of([*rows, *more], hits), [*rows, *more], tmp_path / "sweep.png")
        with Image.open(tmp_path / "sweep.png") as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > sizes[0][0] > 1000  # the rungs have a panel of their own


def test_the_axes_are_drawn_where_there_are_two_and_an_older_picture_goes(tmp_path):
    from PIL import Image

    path = tmp_path / "axes.png"
    points = {f"a={a} b={b}": {"arm": "cascade", "a": a, "b": b} for a in (1, 10) for b in ("x", "y")}
    points["sum"] = {"arm": "sum", "b": "x"}
    rows, hits = answers({arm: 0.3 + 0.1 * number for number, arm in enumerate(points)}, seeds=1)
    found = outcome_of(rows, hits, points)
    assert {arm.label: dict(arm.at) for arm in found.arms} == points
    assert draw_axes(found, path)
    with Image.open(path) as picture:
        shades = np.asarray(picture.convert("RGB"), int)
    blue = (shades[..., 2] > shades[..., 0] + 60).sum(0)
    assert len(np.flatnonzero(blue)) > 0.6 * shades.shape[1]  # lines from the first axis to the last
    assert not draw_axes(outcome_of(rows, hits, {arm: {"b": at["b"]} for arm, at in points.items()}), path)
    assert not path.exists()
