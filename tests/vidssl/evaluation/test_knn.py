from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import DataError
from vidssl.evaluation.knn import accuracy, knn
from vidssl.evaluation.retrieval import Side


def blobs(seed, n, classes=4):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    feature = np.eye(classes, 6)[label] + 0.8 * rng.normal(size=(n, 6))
    return Side(feature, label, rng.integers(0, n // 2, n), np.arange(n))


@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 4, 9]), leave_out=st.booleans())
@settings(max_examples=20, deadline=None)
def test_votes_equal_the_plain_loops(seed, k, leave_out):
    gallery = blobs(seed, 24)
    query = gallery if leave_out else blobs(seed + 1, 9)
    votes = knn([query], None if leave_out else [gallery], classes=4, k=k)
    centre = gallery.feature.mean(0)
    for i in range(len(query.label)):
        a = query.feature[i] - centre
        scored = []
        for j in range(24):
            if leave_out and (i == j or query.group[i] == gallery.group[j]):
                continue
            b = gallery.feature[j] - centre
            scored.append((a @ b / np.linalg.norm(a) / np.linalg.norm(b), gallery.label[j]))
        scored.sort(key=lambda pair: -pair[0])
        weight, count = Counter(), Counter()
        for cosine, one in scored[:k]:
            weight[one] += np.exp(cosine / 0.07)
            count[one] += 1
        for c in range(4):
            assert votes.weighted[i, c] == pytest.approx(weight[c] / sum(weight.values()), abs=1e-9)
            assert votes.majority[i, c] == pytest.approx(count[c] / sum(count.values()), abs=1e-9)


def test_videos_without_a_label_do_not_vote():
    gallery = Side(np.array([[1.0, 0], [1, 0.1], [-2, 0]]), np.array([-1, 1, 0]), np.arange(3), np.arange(3))
    query = Side(np.array([[1.0, 0]]), np.array([1]), np.array([9]), np.array([9]))
    votes = knn([query], [gallery], classes=2, k=2, protocol="p2")
    assert votes.k == 2
    assert votes.majority[0].tolist() == [0.5, 0.5]
    assert votes.weighted[0, 1] > 0.99
    blind = Side(gallery.feature, np.array([-1, -1, -1]), gallery.group, gallery.instance)
    with pytest.raises(DataError, match="no neighbour can name a class"):
        knn([query], [blind], classes=2)


def test_an_even_vote_shares_its_chance_and_unlabelled_rows_do_not_count():
    assert accuracy(np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]), np.array([0, 1, -1])) == 0.75


def test_a_diverged_answer_is_wrong_and_not_missing():
    assert accuracy(np.array([[np.nan, np.nan], [0.2, 0.8]]), np.array([0, 1])) == 0.5
