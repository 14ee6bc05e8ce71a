from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import DataError, RecipeError
from vidssl.evaluation.histogram import IMAGENET_MEAN, IMAGENET_STD, rgb_histogram, to_colours
from vidssl.evaluation.retrieval import Side, describe, retrieve, wilson


def side(feature, label, group=None, first=0):
    n = len(label)
    group = np.arange(n) + 1000 + first if group is None else np.asarray(group)
    return Side(np.asarray(feature, np.float64), np.asarray(label), group, np.arange(first, first + n))


def blobs(seed, n=40, classes=4, width=12, noise=0.6):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    return side(
        rng.normal(size=(classes, width))[label] + noise * rng.normal(size=(n, width)),
        label,
        rng.integers(0, n // 2, n),
    )


def oracle(query, gallery, k, protocol, leave_out):
    """R@k by plain loops: centre, normalise, sort, look."""
    own = query.feature.mean(0) if protocol == "p1_ref" else gallery.feature.mean(0)
    centre = gallery.feature.mean(0)
    hits = 0
    for i in range(len(query.label)):
        a = query.feature[i] - own
        scored = []
        for j in range(len(gallery.label)):
            if leave_out and (i == j or query.group[i] == gallery.group[j]):
                continue
            b = gallery.feature[j] - centre
            scored.append((-(a @ b) / np.linalg.norm(a) / np.linalg.norm(b), j))
        nearest = [gallery.label[j] for _, j in sorted(scored)[:k]]
        hits += query.label[i] in nearest
    return hits / len(query.label)


@given(
    seed=st.integers(0, 10_000),
    protocol=st.sampled_from(["p1_strict", "p1_ref", "centre"]),
    k=st.sampled_from([1, 3, 7]),
)
@settings(max_examples=25, deadline=None)
def test_train_to_test_recall_equals_the_plain_loops(seed, protocol, k):
    query, gallery = blobs(seed, 17), blobs(seed + 1, 31)
    found = retrieve(query, gallery, protocol=protocol, ks=(k,))
    assert found.at[k] == pytest.approx(oracle(query, gallery, k, protocol, leave_out=False))


@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 5]))
@settings(max_examples=25, deadline=None)
def test_leave_one_group_out_recall_equals_the_plain_loops(seed, k):
    videos = blobs(seed, 40)
    found = retrieve(videos, None, protocol="p1_strict", ks=(k,))
    assert found.at[k] == pytest.approx(oracle(videos, videos, k, "p1_strict", leave_out=True))


def test_leave_one_out_excludes_the_group_and_the_video_itself():
    videos = side([[1, 0], [1, 0.01], [0, 1], [0, 1.01]], [0, 0, 1, 1], group=[7, 7, 8, 8])
    found = retrieve(videos, None, protocol="p1_strict", ks=(1,), neighbours=3)
    assert found.at[1] == 0.0
    assert found.unanswerable == 4
    assert {int(j) for j in found.neighbours[0]} == {2, 3, -1}
    alone = retrieve(side(videos.feature, videos.label), None, protocol="p1_strict", ks=(1,), neighbours=3)
    assert alone.at[1] == 1.0
    assert 0 not in alone.neighbours[0]


def test_strict_and_ref_differ_only_by_the_mean_of_the_query_set():
    query, gallery = blobs(3, 20), blobs(4, 30)
    strict_q, strict_g = describe(query.feature, gallery.feature, "p1_strict")
    ref_q, ref_g = describe(query.feature, gallery.feature, "p1_ref")
    np.testing.assert_array_equal(strict_g, ref_g)
    assert not np.allclose(strict_q, ref_q)
    level = query.feature - query.feature.mean(0) + gallery.feature.mean(0)
    np.testing.assert_allclose(*(describe(level, gallery.feature, p)[0] for p in ("p1_strict", "p1_ref")), atol=1e-12)


def test_identical_features_score_exactly_chance():
    label = np.array([0] * 10 + [1] * 20 + [2] * 10)
    found = retrieve(side(np.tile([0.2, 0.3, 0.5], (40, 1)) / 3, label), None, protocol="p1_strict", ks=(1, 5))
    for k in (1, 5):
        expected = np.mean([1 - comb(39 - m, k) / comb(39, k) for m in (np.bincount(label) - 1)[label]])
        assert found.at[k] == pytest.approx(expected)
        assert found.chance[k] == pytest.approx(expected)


def test_tied_neighbours_share_their_chance_whatever_the_order_of_storage():
    gallery = side([[1, 0], [1, 0], [-2, 0]], [0, 1, 1])
    for order in ([0, 1, 2], [1, 0, 2]):
        turned = side(gallery.feature[order], gallery.label[order])
        assert retrieve(side([[5, 0]], [0]), turned, protocol="p1_strict", ks=(1, 2)).at == {1: 0.5, 2: 1.0}


def test_storage_order_does_not_change_recall():
    videos, turn = blobs(9), np.random.default_rng(0).permutation(40)
    other = Side(videos.feature[turn], videos.label[turn], videos.group[turn], videos.instance[turn])
    assert retrieve(videos, None, protocol="p1_strict").at == pytest.approx(
        retrieve(other, None, protocol="p1_strict").at
    )


def test_k_as_large_as_the_gallery_is_omitted_and_named():
    found = retrieve(blobs(0, 12), blobs(1, 12), protocol="p1_strict", ks=(1, 10, 20, 50))
    assert found.omitted == (20, 50)
    assert set(found.at) == {1, 10}


def test_unlabelled_queries_are_left_out_of_the_mean():
    videos = blobs(2)
    label = videos.label.copy()
    label[::2] = -1
    found = retrieve(Side(videos.feature, label, videos.group, videos.instance), videos, protocol="p1_strict")
    assert found.queries == 20
    assert np.isnan(found.first[::2]).all()
    assert found.at[1] == pytest.approx(np.nanmean(found.first))


def test_without_any_label_recall_is_refused():
    videos = side(np.eye(3), [-1, -1, -1])
    with pytest.raises(DataError, match="no query has a label"):
        retrieve(videos, None, protocol="p1_strict")


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"unknown protocol 'p9'; type .*protocol= one of p1_strict, p1_ref, centre"):
        retrieve(blobs(0), None, protocol="p9")


def test_the_interval_holds_the_share_and_narrows_with_queries():
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson(1.0, 10)[1] == 1.0
    assert wilson(0.5, 1000)[1] < high


def test_the_histogram_counts_colours_and_ignores_place_and_time():
    torch.manual_seed(0)
    colours = torch.rand(2, 3, 4, 5, 6)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    clips = (colours - mean) / std
    torch.testing.assert_close(to_colours(clips), colours)
    counts = rgb_histogram(clips, bins=3)
    for row in range(2):
        plain = np.histogramdd(colours[row].flatten(1).T.numpy(), bins=3, range=[(0, 1)] * 3)[0].ravel() / 120
        np.testing.assert_allclose(counts[row].numpy(), plain, atol=1e-6)
    turned = clips.flatten(2)[:, :, torch.randperm(120)].view_as(clips)
    torch.testing.assert_close(rgb_histogram(turned, bins=3), counts)


def test_the_histogram_of_identical_colours_is_chance():
    counts = rgb_histogram(torch.full((30, 3, 2, 4, 4), 0.3)).numpy()
    label = np.repeat([0, 1, 2], 10)
    found = retrieve(side(counts, label), None, protocol="p1_strict", ks=(1,))
    assert found.at[1] == pytest.approx(9 / 29)


@given(seed=st.integers(0, 10_000), n=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_those_of_a_full_stable_sort_ties_included(seed, n):
    rng = np.random.default_rng(seed)
    corners = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    gallery = side(np.concatenate([corners, corners[rng.integers(0, 4, 5)], -corners[rng.integers(0, 4, 3)]]), [0] * 12)
    query = side(corners[:3], [0, 0, 0])
    found = retrieve(query, gallery, protocol="p1_strict", ks=(1,), neighbours=n)
    q, g = describe(query.feature, gallery.feature, "p1_strict")
    np.testing.assert_array_equal(found.neighbours, np.argsort(-(q @ g.T), axis=1, kind="stable")[:, :n])
