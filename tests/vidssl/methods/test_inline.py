"""Mining in the queue: on a GPU it is the same, and the host waits for nothing."""

from __future__ import annotations

import math

import pytest
import torch

from tests.pretended_gpu import PretendedGpu
from vidssl.encoder import unit_rows
from vidssl.methods.fitted import FittedSpace
from vidssl.methods.inline import AGREEMENT, agreement_weights, mine_in_queue
from vidssl.mining import select_torch
from vidssl.mining.plan import CascadePlan
from vidssl.queue import RingQueue

VIEWS, K, B = ("residual", "rgb"), 120, 6


def problem(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    queue = RingQueue(VIEWS, K, 8)
    for view in VIEWS:
        queue.rows(view).copy_(torch.randint(-3, 4, (K, 8), generator=generator))  # small integers: ties
    queries = tuple(torch.randint(-3, 4, (B, 8), generator=generator).float() for _ in VIEWS)
    return queries, queue, torch.rand(B, K, generator=generator) < 0.2


@pytest.mark.parametrize("at_once", [B, 2])
@pytest.mark.parametrize(
    "plan",
    [
        CascadePlan(K, 5, 0.5, 5),
        CascadePlan(K, 4, 0.5, 5),
        CascadePlan(K, 1, k=5),
        CascadePlan(K, 1, k=5, strategy="sum"),
        CascadePlan(K, 1, k=5, strategy="minrank"),
    ],
)
def test_mining_in_a_queue_on_a_gpu_picks_the_same_and_the_host_waits_for_nothing(plan, at_once, monkeypatch):
    monkeypatch.setattr(select_torch, "device_budget", lambda device: at_once * K * (8 + 32))
    queries, queue, forbidden = problem()
    expected = mine_in_queue(queries, queue, VIEWS, forbidden, plan, "oracle", 3)
    with PretendedGpu() as gpu:
        for view in VIEWS:
            queue._buffers[f"rows_{view}"] = gpu.holds(queue.rows(view))
        asked = tuple(gpu.holds(rows) for rows in queries)
        found = mine_in_queue(asked, queue, VIEWS, gpu.holds(forbidden), plan, "auto", 3)
        assert not gpu.waits
        found = found.cpu()
    assert torch.equal(found, expected)
    assert expected.sum(1).tolist() == [3] * B


def test_a_row_that_may_mine_nothing_gets_nothing_on_a_gpu_too():
    queries, queue, forbidden = problem(1)
    forbidden[2] = True
    forbidden[3, 2:] = True
    with PretendedGpu() as gpu:
        for view in VIEWS:
            queue._buffers[f"rows_{view}"] = gpu.holds(unit_rows(queue.rows(view)))
        asked = tuple(gpu.holds(rows) for rows in queries)
        plan = CascadePlan(K, 5, 0.5, 5)
        found = mine_in_queue(asked, queue, VIEWS, gpu.holds(forbidden), plan, "torch", 5).cpu()
    assert found.sum(1).tolist() == [5, 5, 0, 2, 5, 5]
    assert not (found & forbidden).any()


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_mining_within_a_bf16_step_scores_in_float32(backend):
    queries, queue, forbidden = problem(2)
    for view in VIEWS:
        queue.rows(view).copy_(unit_rows(queue.rows(view) + torch.rand(K, 8)))
    plan = CascadePlan(K, 5, 0.5, 5)
    expected = mine_in_queue(queries, queue, VIEWS, forbidden, plan, "oracle", 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = mine_in_queue(queries, queue, VIEWS, forbidden, plan, backend, 5)
    assert torch.equal(found, expected)


def a_unit_problem():
    queries, queue, _ = problem(3)
    for view in VIEWS:
        queue.rows(view).copy_(unit_rows(queue.rows(view) + torch.rand(K, 8)))
    mined = torch.zeros(B, K, dtype=torch.bool)
    for row in range(1, B):  # the first row has mined nothing
        mined[row, 7 * row : 8 * row] = True
    return tuple(unit_rows(one + 0.1) for one in queries), queue, mined


@pytest.mark.parametrize("kind", ["raw", "white", "canonical"])
def test_weights_by_agreement_are_the_softmax_of_both_views_mean_cosine_times_its_number(kind):
    queries, queue, mined = a_unit_problem()
    space = None if kind == "raw" else FittedSpace(kind, None, 8, 0).train()
    bank = [queue.rows(view) for view in VIEWS]
    asking, asked = (queries, bank) if space is None else space(3, B, queries, bank)
    weights = agreement_weights(mined, queries, queue, VIEWS, space, 3)
    assert weights.dtype == torch.float32
    for row in range(B):
        slots = mined[row].nonzero()[:, 0].tolist()
        shares = [math.exp(sum(float(asking[v][row] @ asked[v][s]) for v in (0, 1)) / 2 / AGREEMENT) for s in slots]
        expected = {s: len(slots) * share / sum(shares) for s, share in zip(slots, shares, strict=True)}
        assert weights[row].tolist() == pytest.approx([expected.get(s, 1.0) for s in range(K)], rel=1e-4)
        assert weights[row].sum().item() == pytest.approx(K, rel=1e-5)


def test_weights_by_agreement_on_a_gpu_and_within_a_bf16_step_are_the_same_and_the_host_waits_for_nothing():
    queries, queue, mined = a_unit_problem()
    expected = agreement_weights(mined, queries, queue, VIEWS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(agreement_weights(mined, queries, queue, VIEWS), expected)
    with PretendedGpu() as gpu:
        for view in VIEWS:
            queue._buffers[f"rows_{view}"] = gpu.holds(queue.rows(view))
        found = agreement_weights(gpu.holds(mined), tuple(gpu.holds(rows) for rows in queries), queue, VIEWS)
        assert not gpu.waits
        found = found.cpu()
    assert torch.equal(found, expected)
