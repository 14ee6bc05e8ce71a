"""Precision, hits and class mining recall on cases that can be counted by hand, and rivals that rank as they must."""

from __future__ import annotations

import numpy as np
import pytest

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.metrics import (
    MiningMonitor,
    agreement,
    best_positives,
    drawn_positives,
    hubness,
    measure,
    random_positives,
    rivals,
)
from vidssl.mining.plan import CascadePlan
from vidssl.tables.strategies import RIVALS

LABEL = np.array([0, 0, 0, 1, 1, 1, 1, -1])


def test_precision_hit_and_class_mining_recall_are_means_over_classes():
    query = np.array([0, 3, 4, 7])
    ids = np.array([[1, 3, -1], [4, 0, 1], [2, 0, 1], [0, 1, 2]])
    found = measure(query, ids, LABEL)
    assert found.precision.median == pytest.approx((1 / 2 + 1 / 6) / 2)  # class 1: (1/3 + 0) / 2
    assert found.precision.micro == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert (found.hit.least, found.hit.micro) == (0.5, pytest.approx(2 / 3))
    assert (found.class_mining_recall.lower, found.class_mining_recall.upper) == pytest.approx(
        (1 / 4 + 1 / 48, 1 / 3 - 1 / 48)
    )
    assert found.class_mining_recall.micro == pytest.approx(2 / 7)  # coverage: 1 and 4 are right, of seven known
    assert found.recall_of_class == pytest.approx({0: 1 / 3, 1: 1 / 4})
    assert found.mined == pytest.approx(8 / 3)
    assert found.distinct == pytest.approx(5 / 8)


def test_siblings_among_the_mined_are_counted():
    group = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    found = measure(np.array([0, 3]), np.array([[1, 2], [6, -1]]), LABEL, group)
    assert found.sibling_rate == pytest.approx(1 / 3)


def test_purity_is_told_by_stage():
    stages = (np.array([[1, 3, 4, 5]]), np.array([[1, 3, -1, -1]]))
    assert measure(np.array([0]), np.array([[1]]), LABEL, stages=stages).purity == (0.25, 0.5)


def test_nothing_mined_measures_zero_and_not_an_error():
    found = measure(np.array([0, 3]), np.full((2, 3), -1), LABEL)
    assert (found.precision.micro, found.hit.micro, found.distinct) == (0, 0, 0)
    assert measure(np.array([7]), np.array([[0]]), LABEL).precision.micro == 0


def test_agreement_is_the_shared_part_of_two_lists():
    assert agreement(np.array([[1, 2, 3], [4, -1, -1]]), np.array([[3, 9, 1], [4, -1, -1]])) == pytest.approx(3 / 4)


def test_the_monitor_remembers_the_last_batches_only():
    monitor = MiningMonitor(LABEL, batches=2)
    assert monitor.read() == {}
    for ids in ([[3, 4]], [[1, 2]], [[1, 3]]):
        monitor.note(np.array([0]), np.array(ids))
    assert monitor.read() == {"precision_at_k": 0.75, "hit_at_k": 1.0}


def two_view_bank(classes=8, per_class=12, dim=32, seed=0):
    """Class direction plus, in each view, a nuisance of its own that is stronger than the class."""
    rng = np.random.default_rng(seed)
    n = classes * per_class * 4
    label = np.arange(n) % classes

    def directions():
        return np.linalg.qr(rng.standard_normal((dim, dim)))[0]

    views = {}
    for view in ("residual", "rgb"):
        nuisance = rng.integers(0, dim, n)
        rows = 0.6 * directions()[label] + 0.9 * directions()[nuisance] + 0.05 * rng.standard_normal((n, dim))
        views[view] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    bank = EmbeddingBank(n, dim, ("residual", "rgb"), np.arange(n) // 2)
    bank.push(Embeddings(views, np.arange(n), 0, 0))
    return bank, label


def test_with_independent_nuisances_a_small_pool_beats_one_view_and_that_beats_chance():
    bank, label = two_view_bank()
    table = rivals(bank, CascadePlan(bank.n_slots, 5, 0.4, 5), label, main="residual", aux="rgb")
    assert list(table) == ["cascade", "single", "aux", *RIVALS[1:], "random", "oracle"]
    precision = {name: quality.precision.micro for name, quality in table.items()}
    assert precision["cascade"] > 1.5 * max(precision["single"], precision["aux"])
    assert min(precision["single"], precision["aux"]) > 1.2 * precision["random"]
    assert precision["oracle"] == 1  # 47 class mates, 5 wanted
    assert all(quality.sibling_rate == 0 for quality in table.values())
    assert (table["cascade"].last_pool, table["single"].last_pool) == (int(384 * 0.4**4), 384)
    purity = table["cascade"].purity
    assert purity[3] > 2 * purity[0]
    assert purity[-1] == pytest.approx(precision["cascade"])


def test_a_slot_that_is_empty_is_missed_by_nobody():
    bank, label = two_view_bank(per_class=2)
    half = EmbeddingBank(bank.n_slots, bank.dim, ("residual", "rgb"), bank.group)
    there = np.arange(bank.n_slots // 2)
    half.push(Embeddings({view: rows[there] for view, rows in bank.views.items()}, there, 0, 0))
    table = rivals(half, CascadePlan(half.n_slots, 1, k=5), label, main="residual", aux="rgb")
    assert set(table["oracle"].recall_of_class) == set(range(8))
    asked = [slot for slot in there if any(label[i] == label[slot] and i // 2 != slot // 2 for i in there)]
    mates = {
        int(i) for slot in asked for i in best_positives(half, np.array([slot]), 5, label, "residual")[0] if i >= 0
    }
    expected = {c: len([i for i in mates if label[i] == c]) / (label[there] == c).sum() for c in range(8)}
    assert table["oracle"].recall_of_class == pytest.approx(expected)
    assert max(expected.values()) == 1  # of all slots it would be a half


@pytest.mark.parametrize("n", [300, 30_000])
def test_lots_are_drawn_alike_from_small_banks_and_large_ones(n):
    group = np.arange(n) // 3
    drawn = drawn_positives(np.arange(n), GroupIndex(group).exclusions(group[:300]), 5)
    assert drawn.shape == (300, 5)
    assert (drawn >= 0).all()
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    assert not (group[drawn] == group[np.arange(300)][:, None]).any()
    assert abs(drawn.mean() / n - 0.5) < 0.04  # the standard error is .007


def test_hubness_is_zero_where_all_are_mined_alike_and_large_where_one_serves_all():
    assert hubness(np.array([[1], [2], [0]]), 3) == 0
    assert hubness(np.zeros((50, 1), np.int64), 50) > 5
    assert hubness(np.full((3, 2), -1), 3) == 0


def test_random_positives_are_allowed_distinct_and_repeatable():
    bank, _ = two_view_bank()
    query = np.arange(20)
    drawn = random_positives(bank, query, 5)
    np.testing.assert_array_equal(drawn, random_positives(bank, query, 5))
    assert not (bank.group[drawn] == bank.group[query][:, None]).any()
    assert all(len(set(row)) == 5 for row in drawn)


def small_bank():
    """Twelve videos of classes 0 (seven), 1 (three), 2 (one) and unknown (one), pairs of siblings, one slot empty."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((12, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bank = EmbeddingBank(12, 4, ("residual", "rgb"), np.arange(12) // 2)
    there = np.delete(np.arange(12), 6)
    bank.push(Embeddings({"residual": rows[there], "rgb": rows[there]}, there, 0, 0))
    return bank, np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, -1])


def test_the_oracle_takes_the_nearest_class_mates_and_never_a_sibling_or_an_empty_slot():
    bank, label = small_bank()
    query = np.array([0, 3, 7, 8, 10, 11])
    found = best_positives(bank, query, 3, label, "residual")
    for one, ids in zip(query, found, strict=True):
        mates = [
            slot
            for slot in range(12)
            if label[slot] == label[one] >= 0 and slot // 2 != one // 2 and bank.version[slot] >= 0
        ]
        score = bank.views["residual"] @ bank.views["residual"][one]
        wanted = sorted(mates, key=lambda slot: -score[slot])[:3]
        assert ids.tolist() == wanted + [-1] * (3 - len(wanted))


def test_the_oracles_precision_is_the_share_of_k_that_the_class_can_fill():
    bank, label = small_bank()
    query = np.array([0, 7, 8, 10])  # 4, 2, 1 and 0 class mates outside their own source
    table = rivals(bank, CascadePlan(12, 1, k=3), label, main="residual", aux="rgb", query=query)
    assert table["oracle"].precision.micro == pytest.approx((1 + 2 / 3 + 1 / 3 + 0) / 4)
    assert table["oracle"].hit.micro == 3 / 4
    for name in ("cascade", "single", "aux", "sum", "minrank", "random"):
        assert table[name].precision.micro <= table["oracle"].precision.micro
        assert table[name].hit.micro <= table["oracle"].hit.micro
