"""Collapse numbers on embeddings whose answer is known."""

import numpy as np
import pytest

from vidssl.errors import BankError
from vidssl.health import alignment, dimension_std, examine, rankme, uniformity


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
    assert np.isnan(narrow.alignment)
    assert narrow.dead == 61


def test_what_is_no_set_of_embeddings_is_refused():
    with pytest.raises(BankError, match=r"rows \[N, D\]; the shape is \(4,\)"):
        examine(np.ones(4))
    with pytest.raises(BankError, match="training has diverged"):
        examine(np.array([[1.0, np.nan]]))
