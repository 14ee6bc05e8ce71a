from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import DataError
from vidssl.evaluation.heldout import classification_sides, hold_out


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.2, 0.5, 0.9]))
@settings(max_examples=40, deadline=None)
def test_no_group_is_on_both_sides_and_every_class_keeps_something_to_learn_from(seed, share):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 15, 60)
    label = np.where(rng.random(60) < 0.9, group % 4, rng.integers(0, 4, 60))  # a few groups hold several classes
    held = hold_out(label, group, share, seed)
    assert held.any()
    assert not set(group[held]) & set(group[~held])
    assert set(label[~held]) == set(label)


def test_the_share_is_that_of_the_groups_of_each_class():
    label, group = np.repeat([0, 1], 40), np.arange(80) // 2
    held = hold_out(label, group, 0.2, seed=0)
    assert [len(np.unique(group[held & (label == one)])) for one in (0, 1)] == [4, 4]
    assert not np.array_equal(held, hold_out(label, group, 0.2, seed=1))
    np.testing.assert_array_equal(held, hold_out(label, group, 0.2, seed=0))


def test_one_group_per_class_leaves_nothing_to_hold_out():
    with pytest.raises(DataError, match="every class has one group only"):
        hold_out(np.array([0, 0, 1]), np.array([1, 1, 2]), 0.2, seed=0)


def test_the_datas_own_splits_are_taken_where_it_has_both():
    label, group = np.array([0, 1, 0, -1]), np.arange(4)
    sides = classification_sides(label, group, np.array(["train", "train", "test", "test"]), 0.2, 0)
    assert sides.train.tolist() == [True, True, False, False]
    assert sides.test.tolist() == [False, False, True, False]
    assert "splits" in sides.rule


def test_without_splits_whole_groups_are_the_test_and_the_rule_says_so():
    label, group = np.repeat([0, 1, -1], 10), np.arange(30) // 2
    sides = classification_sides(label, group, np.full(30, "all"), 0.2, 0)
    assert not set(group[sides.train]) & set(group[sides.test])
    assert not (sides.train & sides.test).any()
    assert (label[sides.train | sides.test] >= 0).all()
    assert "20% of each class's groups" in sides.rule


def test_no_label_at_all_is_refused():
    with pytest.raises(DataError, match="no video has a label"):
        classification_sides(np.array([-1, -1]), np.arange(2), np.full(2, "all"), 0.2, 0)
    with pytest.raises(DataError, match="in both splits"):
        classification_sides(np.array([0, -1]), np.arange(2), np.array(["train", "test"]), 0.2, 0)
