"""Collapse numbers on embeddings whose answer is known."""

import numpy as np
import pytest

from vidssl.errors import BankError
from vidssl.health import (
    alignment,
    alignment_of_windows,
    dimension_std,
    examine,
    examine_prototypes,
    rankme,
    uniformity,
)


def sphere(rows, dim, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_orthogonal_directions_is_their_number(rank):
    rows = np.zeros((8 * rank, 16))
    rows[np.arange(8 * rank), np.arange(8 * rank) % rank] = 1.0
    assert rankme(rows) == pytest.approx(rank)


def test_rankme_weighs_directions_by_entropy():
    singular = np.array([4.0, 1.0])
    p = singular / 5
    assert rankme(np.diag(singular)) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_uniformity_equals_the_double_loop_and_is_zero_at_collapse():
    rows = sphere(12, 4)
    pairs = [np.exp(-2 * ((rows[i] - rows[j]) ** 2).sum()) for i in range(12) for j in range(i)]
    assert uniformity(rows) == pytest.approx(np.log(np.mean(pairs)))
    assert uniformity(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-9)


def test_alignment_is_the_squared_distance_of_pairs():
    rows = sphere(6, 3)
    assert alignment(rows, rows) == pytest.approx(0.0)
    assert alignment(rows, -7 * rows) == pytest.approx(4.0)
    with pytest.raises(BankError, match=r"the sets have the shapes \(6, 3\) and \(5, 3\)"):
        alignment(rows, rows[:5])


def test_spread_is_one_on_an_even_sphere():
    np.testing.assert_allclose(dimension_std(sphere(20000, 8)), 1.0, atol=0.03)


def test_verdicts_in_words():
    good = examine(sphere(400, 32), sphere(400, 32, seed=1))
    assert good.verdict.startswith("healthy")
    assert not good.collapsed
    assert good.alignment == pytest.approx(2.0, abs=0.1)
    point = examine(np.ones((50, 16)) + 1e-4 * sphere(50, 16))
    assert point.collapsed
    assert point.verdict.startswith("collapsed: all clips")
    line = examine(np.outer(np.tile([1.0, -1.0], 25), np.ones(16)))
    assert line.collapsed
    assert "line or a small plane" in line.verdict
    narrow = examine(np.pad(sphere(400, 3), ((0, 0), (0, 61))))
    assert narrow.verdict.startswith("narrow")
    assert narrow.alignment is None
    assert narrow.dead == 61


def test_what_is_no_set_of_embeddings_is_refused():
    with pytest.raises(BankError, match=r"rows \[N, D\]; the shape is \(4,\)"):
        examine(np.ones(4))
    with pytest.raises(BankError, match="training has diverged"):
        examine(np.array([[1.0, np.nan]]))


def test_alignment_of_windows_equals_the_loop_over_all_pairs():
    videos = [sphere(n, 5, seed=n) for n in (1, 2, 4)]
    pairs = [
        np.mean([((a - b) ** 2).sum() for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])
        for rows in videos[1:]
    ]
    mean = np.stack([rows.mean(0) for rows in videos])
    assert alignment_of_windows(mean, [1, 2, 4]) == pytest.approx(np.mean(pairs))
    assert np.isnan(alignment_of_windows(mean, [1, 1, 1]))
    assert examine(mean, near=0.25).alignment == 0.25


@pytest.mark.parametrize(
    ("given", "words", "alarm"),
    [
        ({"loss": 2.0, "entropy": 0.98, "used": 0.9}, "healthy: the loss 2.00 is below ln P = 3.87", False),
        ({"loss": float("nan")}, "diverged", True),
        ({"loss": 1.0, "entropy": 0.0}, "collapsed: the assignments use about 1 of 48 prototypes", True),
        ({"loss": 3.86, "stuck": "near ln P for 300 steps"}, "stuck: near ln P for 300 steps", True),
        ({"loss": 3.86}, "nothing learned yet", False),
        ({"loss": 2.0, "entropy": 0.9, "used": 0.05}, "narrow: only 5 %", False),
    ],
)
def test_prototypes_in_words(given, words, alarm):
    found = examine_prototypes(48, **given)
    assert found.verdict.startswith(words)
    assert found.alarm == alarm


def test_a_single_prototype_is_refused():
    with pytest.raises(BankError, match="at least 2 are needed"):
        examine_prototypes(1, 0.0)
