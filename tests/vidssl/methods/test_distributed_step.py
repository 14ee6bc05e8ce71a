"""Two gloo ranks are one process with the doubled batch; shuffled keys come home; what ranks must agree on, they do."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.vidssl.methods.two_ranks import WORLD, found_by_ranks
from vidssl.batch import ClipBatch, Positives
from vidssl.distributed import copy_buffers_from_first, gather_rows, on_shuffled_rows, rank, world
from vidssl.methods import build_method
from vidssl.recipe import Recipe
from vidssl.views import make_views

ROWS, STEPS, DIM = 3, 8, 8


CASES = {
    "actor": ("cpr", "actor", {}),
    "inline": ("cpr", "inline", {}),
    "coclr": ("coclr", "inline", {}),
    "infonce": ("infonce", "off", {}),
    "ubernce": ("ubernce", "off", {}),
    "cascade": ("infonce", "inline", {"cascade": True}),
    "cascade-actor": ("infonce", "actor", {"cascade": True}),
}


def a_recipe(case):
    name, where, more = CASES[case]
    method = {"name": name, "warmup_steps": 2, "queue": 13, "momentum": 0.9, "drop_p": 0.5}
    return Recipe.model_validate(
        {
            "model": {"dim": DIM, "width": 2},
            "method": method | {"hold_until_full": True} | more,
            "mining": {"where": where, "topk": 2, "stages": 3, "ratio": 0.6},
        }
    )


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    rows = WORLD * ROWS
    rgb = torch.randn(rows, 2, 3, 4, 16, 16, generator=generator)
    instance = torch.randperm(30, generator=generator)[:rows]
    label, start = torch.where(instance < 6, -1, instance // 6), torch.zeros(rows, 2, dtype=torch.int64)
    return ClipBatch(make_views(rgb, ("rgb", "residual")), instance, instance // 3, label, 0, step, start)


def share_of(batch, of_rank):
    mine = slice(of_rank * ROWS, (of_rank + 1) * ROWS)
    return replace(
        batch,
        clips={view: clips[mine] for view, clips in batch.clips.items()},
        instance=batch.instance[mine],
        group=batch.group[mine],
        label=batch.label[mine],
        start=batch.start[mine],
    )


def positives_of(batch):
    """Mined ids and vectors that depend on the row alone, so that both ways of cutting the batch see the same."""
    ids = torch.stack([(batch.instance + 7) % 30, torch.where(batch.instance % 2 == 0, batch.instance * 0 - 1, 3)], 1)
    angle = ids[..., None] * torch.arange(1.0, DIM + 1)
    vectors = torch.nn.functional.normalize(torch.cos(angle), dim=-1) * (ids >= 0)[..., None]
    return Positives(ids.numpy(), vectors.float().numpy(), torch.full((batch.size,), batch.step).numpy())


def train(case, share, statistics=False, steps=STEPS):
    """Losses, gradients of one step of each phase, and the end state; batch norm in evaluation mode by default."""
    method = build_method(a_recipe(case))
    model = method
    if world() > 1:
        model = nn.parallel.DistributedDataParallel(
            method, broadcast_buffers=False, find_unused_parameters=method.unused_parameters
        )
    method.train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.train(statistics)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    losses, gradients, updates = [], {}, []
    for step in range(steps):
        batch = share(global_batch(step))
        output = model(batch, positives_of(batch) if method.needs_positives(step) else None)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        if step in (1, STEPS - 1):
            gradients[step] = {n: None if p.grad is None else p.grad.clone() for n, p in method.named_parameters()}
        if output.update:
            optimizer.step()
        updates.append(output.update)
        losses.append(float(gather_rows(output.loss.detach()[None]).mean()))
    return {"losses": losses, "updates": updates, "gradients": gradients, "state": method.state_dict()}


def check_rows_and_buffers():
    """What each rank sees of the small functions."""
    me = rank()
    rows = torch.arange(ROWS).float()[:, None] + 10 * me
    visits = []

    def encode(x):
        visits.append(sorted(x.flatten().tolist()))
        return 2 * x

    back = [on_shuffled_rows(encode, rows, 5, step) for step in range(6)]
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(me + 1.0)
    copy_buffers_from_first(norm)
    return {
        "gathered": gather_rows(rows).flatten().tolist(),
        "home": all(torch.equal(part, 2 * rows) for part in back),
        "visits": visits,
        "mean": norm.running_mean.tolist(),
    }


def on_one_rank(me, folder):
    found = {case: train(case, lambda batch: share_of(batch, me)) for case in CASES}
    found["normed"] = train("actor", lambda batch: share_of(batch, me), statistics=True, steps=4)
    return {**found, "small": check_rows_and_buffers()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo ranks found: this very file, run by two processes."""
    return found_by_ranks(on_one_rank, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_with_the_doubled_batch(ranks, case):
    alone = train(case, lambda batch: batch)
    for found in (one[case] for one in ranks):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert found["updates"] == alone["updates"]
        assert False in found["updates"]
        assert found["updates"][-1]
        for step, gradients in alone["gradients"].items():
            for name, expected in gradients.items():
                ours = found["gradients"][step][name]
                assert (ours is None) == (expected is None), (step, name)
                if expected is not None:
                    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
        for name, expected in alone["state"].items():
            torch.testing.assert_close(found["state"][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_queues_of_all_ranks_are_bit_equal(ranks, case):
    first, second = (one[case]["state"] for one in ranks)
    names = [name for name in first if name.startswith("queue.")]
    assert names
    for name in names:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("where", ["actor", "inline"])
def test_a_frozen_stream_gets_no_gradient_not_even_zero(ranks, where):
    gradients = ranks[0][where]["gradients"]
    names = [name for name in gradients[1] if name.startswith("streams.residual.query")]
    assert all(gradients[1][name] is not None for name in names)
    assert all(gradients[STEPS - 1][name] is None for name in names)


def test_the_frozen_encoder_is_the_same_everywhere_though_batch_statistics_were_not(ranks):
    first, second = (one["normed"]["state"] for one in ranks)
    frozen = [name for name in first if name.startswith("streams.residual.query")]
    learning = [name for name in first if name.startswith("streams.rgb.query") and "running_mean" in name]
    assert all(torch.equal(first[name], second[name]) for name in frozen)
    assert not any(torch.equal(first[name], second[name]) for name in learning)


def test_shuffled_rows_come_home_and_have_been_abroad(ranks):
    assert all(one["small"]["home"] for one in ranks)
    for mine, theirs in zip(ranks[0]["small"]["visits"], ranks[1]["small"]["visits"], strict=True):
        assert sorted(itertools.chain(mine, theirs)) == [0, 1, 2, 10, 11, 12]  # each row is encoded once
    assert any(max(visit) > 9 for visit in ranks[0]["small"]["visits"])
    assert len({tuple(visit) for visit in ranks[0]["small"]["visits"]}) > 1  # another permutation at another step


def test_ranks_agree(ranks):
    for one in ranks:
        assert one["small"]["gathered"] == [0, 1, 2, 10, 11, 12]
        assert one["small"]["mean"] == [1.0, 1.0]


def test_alone_nothing_is_sent_or_moved():
    rows = torch.randn(4, 3)
    assert (world(), rank()) == (1, 0)
    assert gather_rows(rows) is rows
    assert on_shuffled_rows(lambda x: x, rows, 0, 0) is rows
