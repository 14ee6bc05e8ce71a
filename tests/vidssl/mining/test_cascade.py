"""Every backend mines what the slow oracle mines, ties included; what is forbidden is never mined.

Integer-valued features make every product exact, so equality is asked of ids, order and scores, and ties are everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import BankError, RecipeError
from vidssl.mining import brackets, cascade, stream, whole
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.plan import CascadePlan

FAST = ["whole", "stream", "torch", "faiss"]


@st.composite
def problems(draw):
    n, rows, k = draw(st.integers(3, 120)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim, high = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    queries, bank = (
        [rng.integers(-high, high + 1, (size, dim)).astype(np.float32) for _ in range(2)] for size in (rows, n)
    )
    exclude = [rng.choice(n, rng.integers(0, n + 1)) for _ in range(rows)]  # with repeats, up to everything
    valid = rng.random(n) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    stages = draw(st.integers(1, 6))
    least = (k / n) ** (1 / max(stages - 1, 1))
    ratio = draw(st.floats(min(1.0, least * 1.0001), 1.0)) if stages > 1 else 0.5
    last_view = draw(st.sampled_from(["main", "alternate"]))
    strategy = draw(st.sampled_from(["cascade", "cascade", "cascade", "single", "sum", "minrank"]))
    try:
        plan = CascadePlan(n, stages, ratio, k, last_view, strategy)
    except RecipeError:  # the floor lost a candidate
        plan = CascadePlan(n, stages, 1.0, k, last_view, strategy)
    return queries, bank, plan, exclude, valid


def run(backend, queries, bank, plan, exclude, valid, **options):
    if backend in ("whole", "stream"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cascade, "STREAM_FROM", 10**9 if backend == "whole" else 0)
            patch.setattr(whole, "CELLS", 500)
            patch.setattr(brackets, "SAMPLE", (32, 128))
            patch.setattr(stream, "CELLS", 1)
            patch.setattr(stream, "LEAST", 23)
            return mine(queries, bank, plan, exclude=exclude, valid=valid, backend="numpy", **options)
    return mine(queries, bank, plan, exclude=exclude, valid=valid, backend=backend, **options)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_array_equal(found.survivors, expected.survivors)
    for one, other in zip(found.stages, expected.stages, strict=True):
        width = max(one.shape[1], other.shape[1])
        padded = [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1) for ids in (one, other)]
        np.testing.assert_array_equal(*padded)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_a_backend_equals_the_oracle_with_ties_exclusions_and_empty_slots(backend, problem):
    assert_same(run(backend, *problem, trace=True), run("oracle", *problem, trace=True))


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_cutting_a_batch_to_a_budget_changes_nothing(backend, problem):
    assert_same(run(backend, *problem, budget_bytes=1), run(backend, *problem))


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_what_is_excluded_or_unfilled_is_never_mined_at_any_ratio(backend, problem):
    _, _, plan, exclude, valid = problem
    found = run(backend, *problem, trace=True)
    for row, lost in enumerate(exclude):
        allowed = set(np.flatnonzero(valid)) - set(lost)
        assert found.count[row] == min(plan.k, len(allowed))
        for ids in (found.ids, *found.stages):
            mined = [slot for slot in ids[row] if slot >= 0]
            assert set(mined) <= allowed
            assert len(set(mined)) == len(mined)


@pytest.mark.parametrize("backend", ["oracle", *FAST])
def test_one_stage_is_plain_top_k_of_the_main_view(backend):
    rng = np.random.default_rng(0)
    queries, bank = ([rng.standard_normal((size, 16)).astype(np.float32) for _ in range(2)] for size in (4, 300))
    found = run(backend, queries, bank, CascadePlan(300, 1, 0.5, 7), None, None)
    expected = torch.topk(torch.from_numpy(queries[0] @ bank[0].T), 7).indices.numpy()
    np.testing.assert_array_equal(found.ids, expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("size", "stages", "ratio"), [(7, 3, 0.7), (64, 5, 0.5), (2048, 7, 0.5), (2048, 3, 1.0)])
def test_a_backend_equals_the_oracle_at_the_sizes_of_queues(backend, size, stages, ratio):
    rng = np.random.default_rng(size)
    queries, bank = ([rng.integers(-3, 4, (rows, 6)).astype(np.float32) for _ in range(2)] for rows in (3, size))
    exclude = [rng.choice(size, size // 5, replace=False), np.arange(size - 1), ()]
    problem = queries, bank, CascadePlan(size, stages, ratio, 2), exclude, rng.random(size) < 0.9
    assert_same(run(backend, *problem, trace=True), run("oracle", *problem, trace=True))


@pytest.mark.parametrize("backend", ["oracle", *FAST])
@pytest.mark.parametrize("stages", [2, 4, 6])
def test_an_even_plan_mines_what_one_stage_less_mines(backend, stages):
    rng = np.random.default_rng(stages)
    queries, bank = ([rng.integers(-2, 3, (size, 5)).astype(np.float32) for _ in range(2)] for size in (6, 200))
    even, odd = (run(backend, queries, bank, CascadePlan(200, s, 0.5, 5), None, None) for s in (stages, stages - 1))
    np.testing.assert_array_equal(even.ids, odd.ids)


@pytest.mark.parametrize("backend", ["oracle", *FAST])
def test_a_query_without_any_allowed_slot_gets_nothing(backend):
    rng = np.random.default_rng(1)
    queries, bank = ([rng.integers(-2, 3, (size, 5)).astype(np.float32) for _ in range(2)] for size in (2, 50))
    found = run(backend, queries, bank, CascadePlan(50, 3, 0.5, 5), [np.arange(50), ()], None)
    assert (found.ids[0] == -1).all()
    assert np.isneginf(found.scores[0]).all()
    assert found.count.tolist() == [0, 5]
    assert found.survivors[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_threads_and_half_precision_banks_keep_the_result(backend, dtype):
    rng = np.random.default_rng(2)
    queries, bank = ([rng.integers(-3, 4, (size, 8)).astype(np.float32) for _ in range(2)] for size in (5, 400))
    plan = CascadePlan(400, 5, 0.6, 5)
    expected = run("oracle", queries, bank, plan, None, None)
    half = [[torch.from_numpy(one).to(dtype) for one in views] for views in (queries, bank)]
    assert_same(run(backend, *half, plan, None, None, threads=3), expected)
    if dtype == torch.float16:
        arrays = [[one.numpy() for one in views] for views in half]
        assert_same(run(backend, *arrays, plan, None, None, threads=3), expected)


def test_negative_zero_is_the_same_score_as_zero():
    bank = [np.array([[0.0, 1], [-0.0, 1], [1, -1]], np.float32)] * 2
    queries = [np.array([[-1.0, 0]], np.float32)] * 2
    for backend in FAST:
        found = run(backend, queries, bank, CascadePlan(3, 1, 0.5, 2), None, None)
        assert found.ids.tolist() == [[0, 1]]


def test_minrank_takes_the_candidate_whose_worse_rank_is_best():
    bank = [np.array([[9.0], [8], [1], [7]], np.float32), np.array([[1.0], [8], [9], [7]], np.float32)]
    one = [np.ones((1, 1), np.float32)] * 2
    for backend in ["oracle", *FAST]:
        found = run(backend, one, bank, CascadePlan(4, 3, 1.0, 2, strategy="minrank"), None, None)
        assert found.ids.tolist() == [[1, 3]]


def test_tensors_are_mined_like_arrays():
    rng = np.random.default_rng(3)
    queries, bank = ([rng.integers(-2, 3, (size, 6)).astype(np.float32) for _ in range(2)] for size in (3, 90))
    tensors = [[torch.from_numpy(view).requires_grad_() for view in views] for views in (queries, bank)]
    plan = CascadePlan(90, 3, 0.4, 5)
    np.testing.assert_array_equal(mine(*tensors, plan).ids, mine(queries, bank, plan, backend="oracle").ids)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_a_query_whose_brackets_missed_is_mined_from_its_whole_rows(problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brackets, "_cuts", lambda score, rank, margin: (score[:, 0], score[:, 0]))
        assert_same(run("stream", *problem), run("oracle", *problem))


def test_brackets_of_rows_that_are_sorted_by_class_do_not_miss():
    rng = np.random.default_rng(4)
    centre = rng.standard_normal((40, 16))
    bank = [(np.repeat(centre, 200, 0) + rng.standard_normal((8000, 16))).astype(np.float32) for _ in range(2)]
    queries, plan = [view[::500] for view in bank], CascadePlan(8000, 7, 0.5, 5)
    missed = []
    with pytest.MonkeyPatch.context() as patch:
        streaming = cascade.mine_streaming
        patch.setattr(cascade, "mine_streaming", lambda task: missed.append(streaming(task)) or missed[-1])
        patch.setattr(cascade, "STREAM_FROM", 0)
        found = mine(queries, bank, plan, backend="numpy")
    np.testing.assert_array_equal(found.ids, mine(queries, bank, plan, backend="oracle").ids)
    assert not missed[0][2].any()


def test_a_bank_that_is_partly_filled_is_streamed_too():
    rng = np.random.default_rng(5)
    queries, bank = ([rng.integers(-9, 10, (size, 6)).astype(np.float32) for _ in range(2)] for size in (4, 3000))
    valid = np.arange(3000) >= 2500
    problem = queries, bank, CascadePlan(3000, 5, 0.5, 5), [[2600], [2999, 0], (), [1]], valid
    assert_same(run("stream", *problem), run("oracle", *problem))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, b: (q[:1], b), "1 query views and 2 bank views"),
        (lambda q, b: ([q[0][:, :3], q[1]], b), r"queries \(2, 3\) and bank \(30, 4\) must be"),
        (lambda q, b: ([q[0][:1], q[1]], b), "same number of queries"),
        (lambda q, b: ([np.full_like(q[0], np.nan), q[1]], b), "a query is not finite"),
        (lambda q, b: (q, [np.full_like(b[0], np.nan), b[1]]), "a bank row is not finite"),
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "torch", "faiss"])
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence, backend):
    queries, bank = [np.ones((2, 4), np.float32)] * 2, [np.ones((30, 4), np.float32)] * 2
    with pytest.raises(BankError, match=sentence):
        mine(*change(queries, bank), CascadePlan(30, 3, 0.5, 5), backend=backend)


def test_exclusions_of_another_batch_or_bank_are_refused():
    queries, bank = [np.ones((2, 4), np.float32)] * 2, [np.ones((30, 4), np.float32)] * 2
    plan = CascadePlan(30, 3, 0.5, 5)
    with pytest.raises(BankError, match="exclusions of 1 queries were given for 2"):
        mine(queries, bank, plan, exclude=[[1]])
    with pytest.raises(BankError, match=r"outside 0\.\.29"):
        mine(queries, bank, plan, exclude=[[1], [-1]])
    with pytest.raises(BankError, match="valid has shape"):
        mine(queries, bank, plan, valid=np.ones(3, bool))


@settings(max_examples=30, deadline=None)
@given(group=st.lists(st.integers(-1, 5), min_size=1, max_size=40))
def test_group_exclusions_are_all_slots_of_the_same_group(group):
    groups = np.array(group)
    found = GroupIndex(groups).exclusions(groups[::2])
    for row, own in enumerate(groups[::2]):
        assert found.row(row).tolist() == np.flatnonzero(groups == own).tolist()


def test_a_part_of_exclusions_is_that_part_of_the_lists():
    whole = Exclusions.from_lists([[1, 2], [], [3], [4, 4]])
    part = whole.part(1, 4)
    assert [part.row(row).tolist() for row in range(3)] == [[], [3], [4, 4]]
    assert (part.widest, part.rows) == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_thousand_random_cases_are_ordered_as_the_oracle_orders_them(dtype):
    rng, cases = np.random.default_rng(6), 0
    while cases < 334:  # of each dtype, by every engine
        n, rows, k = int(rng.integers(20, 900)), int(rng.integers(1, 6)), int(rng.integers(1, 5))
        high, dim, stages = int(rng.integers(1, 40)), int(rng.integers(1, 9)), int(rng.integers(1, 8))
        ratio = float(rng.uniform(min(1, 1.001 * (k / n) ** (1 / max(stages - 1, 1))), 1))
        strategy = str(rng.choice(["cascade", "cascade", "single", "sum", "minrank"]))
        try:
            plan = CascadePlan(n, stages, ratio, k, str(rng.choice(["main", "alternate"])), strategy)
        except RecipeError:  # the floor lost a candidate
            continue
        wide = [[rng.integers(-high, high + 1, (m, dim)).astype(np.float32) for _ in range(2)] for m in (rows, n)]
        given = [[torch.from_numpy(view).to(dtype) for view in views] for views in wide]
        exclude = [rng.choice(n, int(rng.integers(0, 9))) for _ in range(rows)]
        valid = rng.random(n) < rng.choice([0.5, 0.9, 1.0])
        expected = run("oracle", *wide, plan, exclude, valid)
        for backend in FAST:
            assert_same(run(backend, *given, plan, exclude, valid, threads=1 + cases % 2), expected)
        cases += 1
