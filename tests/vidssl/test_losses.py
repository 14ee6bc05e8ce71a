"""Losses against their textbook form in float64, finite differences, and the limits they must meet."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.losses import apply_self_rule, contrast, info_nce, mean_log_nce, mil_nce, self_dropped


def table(rows, columns, seed, spread=3.0):
    """Logits, positives and valid columns in which each row keeps a valid positive (some column of each row)."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(spread * rng.standard_normal((rows, columns)))
    positive = torch.from_numpy(rng.random((rows, columns)) < 0.3)
    valid = torch.from_numpy(rng.random((rows, columns)) < 0.8)
    sure = torch.from_numpy(rng.integers(columns, size=rows))
    positive[torch.arange(rows), sure] = True
    valid[torch.arange(rows), sure] = True
    return logits, positive, valid


def slow_mil(logits, positive, valid):
    total = 0.0
    for row in range(len(logits)):
        good = sum(math.exp(x) for x, p, v in zip(*_lists(logits, positive, valid, row), strict=True) if p and v)
        everything = sum(math.exp(x) for x, _, v in zip(*_lists(logits, positive, valid, row), strict=True) if v)
        total -= math.log(good / everything)
    return total / len(logits)


def slow_mean_log(logits, positive, valid):
    total = 0.0
    for row in range(len(logits)):
        columns = list(zip(*_lists(logits, positive, valid, row), strict=True))
        everything = sum(math.exp(x) for x, _, v in columns if v)
        good = [math.log(math.exp(x) / everything) for x, p, v in columns if p and v]
        total -= sum(good) / len(good)
    return total / len(logits)


def _lists(logits, positive, valid, row):
    return logits[row].tolist(), positive[row].tolist(), valid[row].tolist()


tables = st.builds(table, st.integers(1, 5), st.integers(2, 9), st.integers(0, 999))


@settings(max_examples=40, deadline=None)
@given(tables)
def test_losses_equal_the_sums_of_exponentials(given_table):
    logits, positive, valid = given_table
    assert mil_nce(logits, positive, valid).item() == pytest.approx(slow_mil(logits, positive, valid))
    assert mean_log_nce(logits, positive, valid).item() == pytest.approx(slow_mean_log(logits, positive, valid))


@settings(max_examples=15, deadline=None)
@given(tables)
def test_gradients_equal_finite_differences(given_table):
    logits, positive, valid = given_table
    valid[:, 0] = True  # info_nce's own positive
    logits.requires_grad_()
    for loss in (mil_nce, mean_log_nce):
        torch.autograd.gradcheck(lambda x, loss=loss: loss(x, positive, valid), logits)
    torch.autograd.gradcheck(lambda x: info_nce(x, valid), logits)


def weights_of(logits):
    draw = torch.Generator().manual_seed(logits.shape[1])
    return 0.1 + 3 * torch.rand(logits.shape, generator=draw, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_a_weighted_positive_is_counted_as_often_as_its_weight_says_and_everything_once(given_table):
    logits, positive, valid = given_table
    weights, total = weights_of(logits), 0.0
    for row in range(len(logits)):
        good, everything = 0.0, 0.0
        for column in range(logits.shape[1]):
            share = math.exp(logits[row, column].item()) if valid[row, column] else 0.0
            good += weights[row, column].item() * share if positive[row, column] else 0.0
            everything += share
        total -= math.log(good / everything)
    assert mil_nce(logits, positive, valid, weights).item() == pytest.approx(total / len(logits), rel=1e-12)


@settings(max_examples=5, deadline=None)
@given(tables)
def test_the_gradient_of_weighted_positives_equals_finite_differences(given_table):
    logits, positive, valid = given_table
    torch.autograd.gradcheck(lambda x: mil_nce(x, positive, valid, weights_of(logits)), logits.clone().requires_grad_())


@settings(max_examples=15, deadline=None)
@given(tables)
def test_weights_of_one_change_not_a_bit(given_table):
    logits, positive, valid = given_table
    for table_ in (logits, logits.float()):
        assert torch.equal(mil_nce(table_, positive, valid, torch.ones(table_.shape)), mil_nce(table_, positive, valid))


@pytest.mark.parametrize("loss", ["info_nce", "mil_nce", "mean_log_nce"])
def test_gradient_reaches_the_query_through_all_three_kinds_of_columns(loss):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (3, 4), (5, 4), (3, 2, 4)]
    query, key, queue, mined = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    positive = torch.zeros(3, 8, dtype=torch.bool)
    positive[:, [0, 3, 6]] = True
    valid = torch.ones_like(positive)
    valid[1, [2, 7]] = False
    of_table = {
        "info_nce": lambda table: info_nce(table, valid),
        "mil_nce": lambda table: mil_nce(table, positive, valid),
        "mean_log_nce": lambda table: mean_log_nce(table, positive, valid),
    }[loss]
    query.requires_grad_()
    torch.autograd.gradcheck(lambda q: of_table(contrast(q, key, queue, 0.5, mined)), query)
    torch.autograd.gradcheck(
        lambda q: of_table(contrast(torch.nn.functional.normalize(q, dim=1), key, queue, 0.5, mined)), query
    )


def test_the_table_is_own_key_then_queue_then_the_rows_own_appended_columns():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (3, 4), (5, 4), (3, 2, 4)]
    query, key, queue, mined = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    found = contrast(query, key, queue, 0.5, mined)
    for row in range(3):
        columns = [key[row], *queue, *mined[row]]
        np.testing.assert_allclose(found[row].numpy(), [float(query[row] @ column) / 0.5 for column in columns])


@settings(max_examples=20, deadline=None)
@given(tables)
def test_mil_nce_with_the_own_key_alone_is_info_nce(given_table):
    logits, _, valid = given_table
    valid[:, 0] = True
    own = torch.zeros_like(valid)
    own[:, 0] = True
    torch.testing.assert_close(mil_nce(logits, own, valid), info_nce(logits, valid))
    torch.testing.assert_close(mean_log_nce(logits, own, valid), info_nce(logits, valid))


@settings(max_examples=20, deadline=None)
@given(tables)
def test_mil_nce_is_zero_when_every_column_is_positive(given_table):
    logits, _, valid = given_table
    assert mil_nce(logits, torch.ones_like(valid), valid).abs() < 1e-12


@settings(max_examples=20, deadline=None)
@given(tables)
def test_columns_that_are_not_valid_change_nothing(given_table):
    logits, positive, valid = given_table
    other = torch.where(valid, logits, torch.full_like(logits, 7.0))
    torch.testing.assert_close(mil_nce(other, positive, valid), mil_nce(logits, positive, valid))
    torch.testing.assert_close(mean_log_nce(other, positive, valid), mean_log_nce(logits, positive, valid))


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("loss", [info_nce, mil_nce, mean_log_nce])
def test_large_logits_stay_finite_and_right_in_float32(loss, size):
    logits = (size * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]])).requires_grad_()
    positive = torch.tensor([[False, True, True], [True, False, False]])
    given = () if loss is info_nce else (positive,)
    found = loss(logits, *given)
    found.backward()
    assert logits.grad.isfinite().all()
    assert found.item() == pytest.approx(loss(logits.detach().double(), *given).item(), rel=1e-6)
    # by hand: lse is size, and size + ln 2; the positives are (-size, 0) and -size
    two = math.log(2)
    expected = {
        info_nce: (0 + 2 * size + two) / 2,
        mil_nce: (size + 2 * size + two) / 2,
        mean_log_nce: (1.5 * size + 2 * size + two) / 2,
    }
    assert found.item() == pytest.approx(expected[loss], rel=1e-6)


def test_autocast_around_a_loss_does_not_lower_its_precision():
    generator = torch.Generator().manual_seed(1)
    query, key, queue = (torch.randn(s, generator=generator) for s in [(4, 64), (4, 64), (9, 64)])
    exact = info_nce(contrast(query, key, queue, 0.07))
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(contrast(query, key, queue, 0.07))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


def test_self_rule_acts_only_on_rows_with_another_valid_positive():
    positive = torch.tensor([[True, False, False], [True, True, False], [True, False, True]])
    valid = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    kept, _, lost = apply_self_rule(positive, valid, "keep", True)
    assert torch.equal(kept, positive)
    assert not lost.any()
    negative, same, lost = apply_self_rule(positive, valid, "drop_p", True)
    assert negative[:, 0].tolist() == [True, False, True]
    assert torch.equal(same, valid)  # the own key stays in the softmax: it acts as a negative
    assert lost.tolist() == [False, True, False]
    assert torch.equal(apply_self_rule(positive, valid, "drop_p", False)[0], positive)
    _, out, _ = apply_self_rule(positive, valid, "remove", False)
    assert out[:, 0].tolist() == [True, False, True]
    assert positive[:, 0].all()
    assert valid[:, 0].all()


def test_the_draw_of_drop_p_is_addressed_by_seed_and_step():
    draws = np.array([self_dropped(3, step, 0.9) for step in range(2000)])
    assert abs(draws.mean() - 0.9) < 0.025
    assert [self_dropped(3, step, 0.9) for step in range(50)] == draws[:50].tolist()
    assert [self_dropped(4, step, 0.9) for step in range(2000)] != draws.tolist()
    assert not any(self_dropped(0, step, 0.0) for step in range(50))
    assert all(self_dropped(0, step, 1.0) for step in range(50))
