"""On a GPU the host waits once, at the end, and devices are never mixed; asked of a pretended one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.pretended_gpu import PretendedGpu
from vidssl.errors import BankError
from vidssl.mining import select_torch
from vidssl.mining.cascade import mine
from vidssl.mining.plan import CascadePlan

ONE_WAIT = Counter({"to host": 1})


def problem(seed=0, n=300, rows=5):
    rng = np.random.default_rng(seed)
    queries, bank = ([rng.integers(-3, 4, (size, 8)).astype(np.float32) for _ in range(2)] for size in (rows, n))
    exclude = [rng.choice(n, 7, replace=False) for _ in range(rows)]
    return queries, bank, exclude, rng.random(n) < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("plan", "trace"),
    [
        (CascadePlan(300, 5, 0.5, 5), False),
        (CascadePlan(300, 5, 0.5, 5), True),
        (CascadePlan(300, 1, 0.5, 7), False),
        (CascadePlan(300, 1, 0.5, 5, strategy="sum"), False),
        (CascadePlan(300, 1, 0.5, 5, strategy="minrank"), True),
    ],
)
def test_the_host_waits_once_and_the_result_is_the_oracles(dtype, plan, trace, monkeypatch):
    monkeypatch.setattr(select_torch, "CHUNK", 64)
    queries, bank, exclude, valid = problem()
    expected = mine(queries, bank, plan, exclude=exclude, valid=valid, backend="oracle", trace=trace)
    with PretendedGpu() as gpu:
        there = [gpu.holds(torch.from_numpy(view).to(dtype)) for view in bank]
        for budget in (None, 1):  # in one block, and one query at a time
            gpu.waits.clear()
            found = mine(queries, there, plan, exclude=exclude, valid=valid, trace=trace, budget_bytes=budget)
            assert gpu.waits == ONE_WAIT
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.scores, expected.scores)
            for one, other in zip(found.stages, expected.stages, strict=True):
                np.testing.assert_array_equal(one, other)


def test_queries_that_lie_on_the_device_are_mined_there():
    queries, bank, exclude, _ = problem(1)
    plan = CascadePlan(300, 3, 0.5, 5)
    with PretendedGpu() as gpu:
        there = [[gpu.holds(torch.from_numpy(view)) for view in views] for views in (queries, bank)]
        found = mine(*there, plan, exclude=exclude)
    assert gpu.waits == ONE_WAIT
    np.testing.assert_array_equal(found.ids, mine(queries, bank, plan, exclude=exclude, backend="oracle").ids)


@pytest.mark.parametrize(("side", "sentence"), [(0, "a query is not finite"), (1, "a bank row is not finite")])
def test_what_is_not_finite_is_found_with_the_result_without_a_wait_of_its_own(side, sentence):
    views = problem(2)[:2]
    views[side][1][3, 2] = np.nan
    with PretendedGpu() as gpu:
        there = [[gpu.holds(torch.from_numpy(view)) for view in one] for one in views]
        with pytest.raises(BankError, match=sentence):
            mine(*there, CascadePlan(300, 3, 0.5, 5))
    assert gpu.waits == ONE_WAIT


def test_a_row_that_is_not_filled_may_hold_anything():
    queries, bank, exclude, valid = problem(3)
    plan = CascadePlan(300, 3, 0.5, 5)
    expected = mine(queries, bank, plan, exclude=exclude, valid=valid, backend="oracle")
    bank[0][~valid] = np.nan
    with PretendedGpu() as gpu:
        there = [gpu.holds(torch.from_numpy(view)) for view in bank]
        found = mine(queries, there, plan, exclude=exclude, valid=valid)
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_the_pretended_gpu_counts_waits_and_refuses_mixed_devices():
    with PretendedGpu() as gpu:
        there = gpu.holds(torch.arange(6.0))
        assert (there > 2).sum().item() == 3
        there[there > 4]
        torch.ones(6).to("cuda")
        assert gpu.waits == Counter({"scalar": 1, "nonzero": 1, "to device, not pinned": 1})
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(6)
