"""Memories against rows updated one by one, draws by address, scores against loops, the binary loss against exponentials."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import DataError
from vidssl.memory import (
    Memories,
    binary_nce,
    check_known,
    check_once,
    constant_of,
    drawn_ids,
    first_rows,
    memory_scores,
)


def test_memories_begin_with_the_published_noise_of_about_unit_length():
    torch.manual_seed(0)
    memory = Memories(("a", "b"), 400, 48)
    bound = 1 / math.sqrt(48 / 3)
    for name in memory.names:
        rows = memory.rows(name)
        assert rows.abs().max() <= bound
        assert rows.abs().max() > 0.99 * bound
        assert abs(float(rows.norm(dim=1).mean()) - 1) < 0.02
    assert not torch.equal(memory.rows("a"), memory.rows("b"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 8))
def test_an_update_blends_each_row_and_leaves_a_unit_row(seed, momentum, count):
    torch.manual_seed(seed)
    memory = Memories(("a", "b"), 9, 5, momentum)
    before = {name: memory.rows(name).double().numpy().copy() for name in memory.names}
    fresh = {name: 7 * torch.randn(count, 5) for name in memory.names}
    instance = torch.randperm(9)[:count]
    memory.update(fresh, instance, torch.where(instance % 2 == 0, instance // 3, -1))
    for name in memory.names:
        for row in range(9):
            expected = before[name][row]
            if row in instance.tolist():
                z = fresh[name][instance.tolist().index(row)].double().numpy()
                expected = momentum * expected + (1 - momentum) * z
                expected = expected / np.linalg.norm(expected)
                assert abs(float(memory.rows(name)[row].norm()) - 1) < 1e-5
            np.testing.assert_allclose(memory.rows(name)[row].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert memory.seen.nonzero().flatten().tolist() == sorted(instance.tolist())


def test_a_video_of_unknown_group_has_a_source_of_its_own():
    memory = Memories(("a",), 6, 2)
    memory.update({"a": torch.randn(4, 2)}, torch.tensor([0, 1, 2, 3]), torch.tensor([5, -1, -1, 5]))
    source = memory.source.tolist()
    assert source[0] == source[3] == 5
    assert len(set(source[:4])) == 3
    assert source[4:] == [-1, -1]  # not seen, and no video's source
    assert -1 not in source[:4]


def test_a_checkpoint_holds_the_memories_whole():
    one, other = Memories(("a",), 6, 2), Memories(("a",), 6, 2)
    one.update({"a": torch.randn(2, 2)}, torch.tensor([4, 1]), torch.tensor([3, 3]))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.rows("a"), other.rows("a"))
    assert torch.equal(one.seen, other.seen)
    assert torch.equal(one.source, other.source)


def test_a_video_twice_in_a_step_is_refused_unless_it_is_the_loaders_copy():
    instance = torch.tensor([7, 3, 7, 0])
    start = torch.tensor([[5, 9], [1, 2], [5, 9], [0, 0]])
    first, twice = first_rows(instance, start)
    assert first.tolist() == [0, 1, 0, 3]  # a copy stands in for a video that cannot be read
    check_once(int(twice))
    start[2, 1] = 8
    with pytest.raises(
        DataError, match=r"video 7 comes twice in one step with different clips.*at most once in a step"
    ):
        check_once(int(first_rows(instance, start)[1]))


@pytest.mark.parametrize("video", [8, -1])
def test_a_video_without_a_row_is_refused(video):
    with pytest.raises(DataError, match=f"video {video} has no row in memories of 8 videos; .* instances=N"):
        check_known(np.array([2, video]), 8)


def test_drawn_videos_repeat_by_address_and_come_from_the_given_rows_alone():
    own, rows = np.array([4, 90, 7]), np.array([3, 4, 50, 90])
    ids = drawn_ids(1, 2, own, rows, 500)
    assert ids.shape == (3, 501)
    assert (ids[:, 0] == own).all()
    assert set(ids[:, 1:].flatten()) == set(rows.tolist())
    assert (ids[0, 1:] == 4).any()  # as published, a video may be drawn against itself
    assert np.array_equal(ids, drawn_ids(1, 2, own, rows, 500))
    for other in (drawn_ids(1, 3, own, rows, 500), drawn_ids(2, 2, own, rows, 500)):
        assert not np.array_equal(ids, other)
    share = np.bincount(ids[:, 1:].flatten(), minlength=91)[rows] / 1500
    assert np.abs(share - 0.25).max() < 0.05


@pytest.mark.parametrize("columns", [2, 40])  # fewer and more than the memory's rows
def test_scores_equal_a_loop_and_survive_an_update_before_the_backward_pass(columns):
    torch.manual_seed(0)
    memory, ids = torch.randn(20, 6), torch.randint(0, 20, (3, columns))
    query = torch.randn(3, 6, requires_grad=True)
    weight = torch.randn(3, columns)
    scores = memory_scores(query, memory, ids)
    old = memory.clone()
    memory.zero_()
    (scores * weight).sum().backward()
    for row in range(3):
        gradient = torch.zeros(6)
        for column in range(columns):
            chosen = old[ids[row, column]]
            assert scores[row, column].item() == pytest.approx(float(query[row].detach() @ chosen), abs=1e-5)
            gradient += weight[row, column] * chosen
        torch.testing.assert_close(query.grad[row], gradient, rtol=1e-4, atol=1e-5)


def test_binary_nce_equals_the_plain_exponentials():
    rng = np.random.default_rng(0)
    logits, rows = 3 * rng.standard_normal((4, 11)), 30
    z = rows * np.exp(logits).mean()
    x, c = np.exp(logits) / z, 10 / rows
    expected = -(np.log(x[:, 0] / (x[:, 0] + c)) + np.log(c / (x[:, 1:] + c)).sum(1)).mean()
    given = torch.from_numpy(logits)
    log_z = constant_of(given, rows)
    assert log_z.item() == pytest.approx(math.log(z))
    assert binary_nce(given, log_z, rows).item() == pytest.approx(expected)


def test_binary_nce_stays_finite_where_exponentials_overflow():
    logits = torch.tensor([[200.0, -200.0, 150.0]])
    log_z = constant_of(logits, 10)
    assert log_z.isfinite()
    assert binary_nce(logits, log_z, 10).isfinite()


def test_binary_nce_has_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: binary_nce(x, torch.tensor(2.5, dtype=torch.float64), 20), logits)
