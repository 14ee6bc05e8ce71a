from __future__ import annotations

import numpy as np
import pytest

from vidssl.errors import DataError
from vidssl.evaluation.fusion import common_rows, mean_probability, retrieve_fused
from vidssl.evaluation.retrieval import Side, describe, retrieve


def streams(seed, n, widths=(6, 9)):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    group = rng.integers(0, n // 2, n)
    return [
        Side(rng.normal(size=(4, w))[label] + scale * rng.normal(size=(n, w)), label, group, np.arange(n))
        for w, scale in zip(widths, (1.0, 7.0), strict=True)
    ]


@pytest.mark.parametrize("protocol", ["p1_strict", "p1_ref", "p2"])
def test_two_streams_are_ranked_by_the_sum_of_their_two_similarity_matrices(protocol):
    query, gallery = streams(0, 20), streams(1, 50)
    found = retrieve_fused(query, gallery, protocol=protocol, ks=(1, 5), neighbours=5)
    total = np.zeros((20, 50))
    for one, other in zip(query, gallery, strict=True):
        q, g = describe(one.feature, other.feature, protocol)
        for i in range(20):
            for j in range(50):
                total[i, j] += q[i] @ g[j]
    order = np.argsort(-total, axis=1)
    np.testing.assert_array_equal(found.neighbours, order[:, :5])
    right = gallery[0].label[order] == query[0].label[:, None]
    assert found.at[5] == pytest.approx(right[:, :5].any(1).mean())
    np.testing.assert_allclose(found.similarity[:, 0], total.max(1) / 2)


def test_two_streams_leave_the_group_out():
    both = streams(2, 30)
    found = retrieve_fused(both, None, protocol="p1_strict", ks=(1,))
    for i, row in enumerate(found.neighbours):
        assert all(both[0].group[j] != both[0].group[i] for j in row if j >= 0)


def test_one_stream_fused_with_nothing_is_the_stream():
    query, gallery = streams(3, 20), streams(4, 40)
    alone = retrieve(query[0], gallery[0], protocol="p1_strict")
    assert retrieve_fused(query[:1], gallery[:1], protocol="p1_strict").at == pytest.approx(alone.at)


def test_streams_of_different_videos_are_refused():
    query = streams(5, 20)
    moved = Side(query[1].feature, query[1].label, query[1].group, query[1].instance[::-1])
    with pytest.raises(DataError, match="different videos"):
        retrieve_fused([query[0], moved], None, protocol="p1_strict")


def test_common_rows_pair_the_videos_that_both_streams_have():
    first, second = np.array([5, 1, 9, 3]), np.array([3, 8, 5])
    left, right = common_rows(first, second)
    assert first[left].tolist() == second[right].tolist() == [3, 5]


def test_probabilities_are_averaged():
    np.testing.assert_allclose(mean_probability([np.array([[0.2, 0.8]]), np.array([[0.6, 0.4]])]), [[0.4, 0.6]])
