from __future__ import annotations

import numpy as np
import pytest

from vidssl.errors import DataError
from vidssl.evaluation.fewshot import few_shot, mean_interval


def blobs(seed, n=60, noise=0.4):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    return np.eye(3, 7)[label] + noise * rng.normal(size=(n, 7)), label


def test_all_videos_as_shots_equal_the_class_means_by_loops():
    (train, label), (test, asked) = blobs(0), blobs(1)
    found = few_shot(train, label, test, asked, shots=20, draws=2)
    centre = train.mean(0)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    means = unit(np.stack([unit(train[label == one] - centre).mean(0) for one in range(3)]))
    right = (unit(test - centre) @ means.T).argmax(1) == asked
    assert found.draws == pytest.approx((right.mean(),) * 2)
    assert found.interval == pytest.approx((right.mean(),) * 2)
    assert found.short == 0


def test_more_shots_help_and_draws_differ_but_repeat():
    (train, label), (test, asked) = blobs(2, noise=0.9), blobs(3, noise=0.9)
    one, five = (few_shot(train, label, test, asked, shots=n) for n in (1, 10))
    assert five.mean > one.mean
    assert len(set(one.draws)) > 1
    assert few_shot(train, label, test, asked, shots=1).draws == one.draws
    assert few_shot(train, label, test, asked, shots=1, seed=1).draws != one.draws


def test_a_class_with_fewer_videos_gives_all_it_has_and_is_counted():
    train, label = blobs(4, n=9)
    found = few_shot(train, label, train, label, shots=5, draws=1)
    assert found.short == 3


def test_a_class_without_training_videos_is_never_answered():
    train, label = blobs(5)
    found = few_shot(train[label > 0], label[label > 0], train, label, shots=3, draws=2)
    assert max(found.draws) <= 2 / 3 + 1e-9


def test_the_interval_is_students():
    values = [0.2, 0.5, 0.4, 0.35, 0.6]
    low, high = mean_interval(values)
    assert (low + high) / 2 == pytest.approx(np.mean(values))
    edge = (high - low) / 2 / (np.std(values, ddof=1) / np.sqrt(5))
    t = np.linspace(-edge, edge, 20_001)  # Student's density with 4 degrees: 3/8 (1 + t²/4)^(-5/2)
    assert np.trapezoid(0.375 * (1 + t * t / 4) ** -2.5, t) == pytest.approx(0.95, abs=1e-4)
    assert mean_interval([0.3]) == (0.3, 0.3)


def test_no_labelled_training_video_is_refused():
    with pytest.raises(DataError, match="no shots to draw"):
        few_shot(np.ones((2, 3)), np.array([-1, -1]), np.ones((1, 3)), np.array([0]), shots=1)
