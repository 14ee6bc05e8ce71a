"""Mining in the queue: on a GPU it is the same, and the host waits for nothing."""

from __future__ import annotations

import pytest
import torch

from tests.pretended_gpu import PretendedGpu
from vidssl.encoder import unit_rows
from vidssl.methods.inline import mine_in_queue
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
