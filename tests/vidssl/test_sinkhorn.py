"""Assignments against the textbook loop, at any size of score; the swapped loss against plain loops and differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.prototypes import stuck_at_ln_p, use_of
from vidssl.sinkhorn import sinkhorn, swapped_loss


def textbook(scores, epsilon=0.05, iterations=3):
    """SwAV's iteration as it is written down, in float64: prototypes are rows, samples columns."""
    q = np.exp(np.asarray(scores, np.float64) / epsilon).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q *= (1 / prototypes) / q.sum(axis=1, keepdims=True)
        q *= (1 / samples) / q.sum(axis=0, keepdims=True)
    return (q / q.sum(axis=0)).T


def some_scores(rows, prototypes, seed=0, dim=32):
    rng = np.random.default_rng(seed)
    z, c = rng.standard_normal((rows, dim)), rng.standard_normal((prototypes, dim))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    return z @ c.T


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 30), st.integers(1, 6), st.sampled_from([0.03, 0.05, 0.5]), st.integers(0, 9))
def test_log_space_is_the_textbook_iteration(rows, prototypes, iterations, epsilon, seed):
    scores = some_scores(rows, prototypes, seed)
    ours = sinkhorn(torch.from_numpy(scores), epsilon, iterations).numpy()
    np.testing.assert_allclose(ours, textbook(scores, epsilon, iterations), rtol=1e-6, atol=1e-9)
    single = sinkhorn(torch.from_numpy(scores).float(), epsilon, iterations).numpy()
    np.testing.assert_allclose(single, textbook(scores, epsilon, iterations), atol=1e-5)


def test_every_row_sums_to_one_and_prototypes_share_the_mass():
    assigned = sinkhorn(torch.from_numpy(some_scores(192, 300, dim=128)))
    torch.testing.assert_close(assigned.sum(1), torch.ones(192, dtype=torch.float64))
    mass = assigned.sum(0) * 300 / 192
    assert (mass - 1).abs().max() < 0.05
    softmax = torch.softmax(torch.from_numpy(some_scores(192, 300, dim=128)) / 0.05, 1).sum(0) * 300 / 192
    assert (softmax - 1).abs().max() > 0.3  # without the iteration they do not


def test_the_queue_joins_the_balance_and_only_the_batch_comes_back():
    scores = some_scores(70, 30)
    ours = sinkhorn(torch.from_numpy(scores[64:]), queued=torch.from_numpy(scores[:64])).numpy()
    np.testing.assert_allclose(ours, textbook(scores)[64:], rtol=1e-6)
    assert np.abs(ours - textbook(scores[64:])).max() > 0.01


def test_views_are_balanced_each_for_itself():
    views = torch.from_numpy(np.stack([some_scores(9, 5, seed) for seed in range(3)]))
    torch.testing.assert_close(sinkhorn(views), torch.stack([sinkhorn(view) for view in views]))


def test_half_precision_scores_stay_finite_where_the_plain_exponential_does_not():
    scores = torch.from_numpy(some_scores(8, 6)).half()
    scores[0, 0], scores[1], scores[2, 3] = 1.0, 1.0, -1.0
    assert torch.exp(scores / 0.05).isinf().any()
    assigned = sinkhorn(scores)
    assert assigned.dtype == torch.float32
    assert assigned.isfinite().all()
    np.testing.assert_allclose(assigned.numpy(), textbook(scores.numpy()), atol=1e-5)
    assert sinkhorn(1000 * scores).isfinite().all()


def test_autocast_does_not_reach_the_assignments_or_the_loss():
    scores = torch.from_numpy(some_scores(8, 6)).float().expand(2, 8, 6)
    plain, loss = sinkhorn(scores), swapped_loss(scores, sinkhorn(scores))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(scores), plain)
        assert torch.equal(swapped_loss(scores, plain), loss)


def by_loops(scores, assigned, temperature):
    """Mean over i of the mean over v ≠ i of the mean over rows of the cross entropy."""
    views = []
    for i in range(len(scores)):
        others = []
        for v in range(len(scores)):
            if v != i:
                e = np.exp(scores[v] / temperature)
                rows = [-(assigned[i][b] * np.log(e[b] / e[b].sum())).sum() for b in range(len(e))]
                others.append(np.mean(rows))
        views.append(np.mean(others))
    return np.mean(views)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_the_loss_is_a_mean_over_views_of_means_over_the_others(views):
    scores = np.stack([some_scores(7, 5, seed) for seed in range(views)])
    assigned = np.stack([textbook(view) for view in scores])
    ours = swapped_loss(torch.from_numpy(scores), torch.from_numpy(assigned), 0.2)
    assert ours.item() == pytest.approx(by_loops(scores, assigned, 0.2), rel=1e-9)


def test_gradients_of_the_loss_are_those_of_finite_differences():
    rng = np.random.default_rng(3)
    z = torch.from_numpy(rng.standard_normal((4, 5, 6))).requires_grad_()
    c = torch.from_numpy(rng.standard_normal((3, 6))).requires_grad_()

    def loss(z, c):
        scores = torch.nn.functional.normalize(z, dim=-1) @ torch.nn.functional.normalize(c, dim=-1).T
        return swapped_loss(scores, fixed, 0.1)

    fixed = sinkhorn(torch.nn.functional.normalize(z, dim=-1) @ torch.nn.functional.normalize(c, dim=-1).T)
    assert not fixed.requires_grad  # assignments are targets
    assert torch.autograd.gradcheck(loss, (z, c))


def test_even_scores_cost_exactly_ln_p():
    even = torch.zeros(2, 4, 30)
    assert swapped_loss(even, sinkhorn(even)).item() == pytest.approx(math.log(30), rel=1e-6)


def test_one_view_or_unassigned_views_are_refused():
    two, four = torch.zeros(2, 3, 5), torch.zeros(4, 3, 5)
    with pytest.raises(ValueError, match="two views or more"):
        swapped_loss(two[:1], two[:1])
    with pytest.raises(ValueError, match="all assigned"):
        swapped_loss(four, two)


def test_use_of_prototypes_tells_a_balanced_from_a_collapsed_assignment():
    one_each = use_of(torch.eye(8)[None])
    assert {name.split("/")[1]: round(float(value), 5) for name, value in one_each.items()} == {
        "used": 1.0,
        "entropy": 1.0,
        "max_mass": 1.0,
        "row_entropy": 0.0,
    }
    all_same = use_of(torch.eye(8)[:1].expand(5, 8))
    assert [round(float(value), 5) for value in all_same.values()] == [0.125, 0.0, 8.0, 0.0]
    assert float(use_of(torch.full((5, 8), 0.125))["prototypes/row_entropy"]) == pytest.approx(1.0)


def test_a_loss_that_stays_at_ln_p_is_called_stuck_and_one_that_leaves_is_not():
    steps, ln_p = list(range(0, 500, 10)), math.log(300)
    assert "ln 300 = 5.70 for 490 steps" in (stuck_at_ln_p(steps, [ln_p * 1.01] * 50, 300) or "")
    assert stuck_at_ln_p(steps, [ln_p * 0.97] * 50, 300) is None
    assert stuck_at_ln_p(steps, [ln_p] * 49 + [5.0], 300) is None  # it has just left
    assert stuck_at_ln_p(steps, [5.0] * 40 + [ln_p] * 10, 300) is None  # too short to say
    assert "for 240 steps" in (stuck_at_ln_p(steps, [5.0] * 25 + [ln_p] * 25, 300) or "")
    assert stuck_at_ln_p([], [], 300) is None
