"""ViCC on two gloo ranks is ViCC in one process with the doubled batch: assignments, loss, gradients, queue."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.vidssl.methods.two_ranks import WORLD, found_by_ranks
from vidssl.batch import ClipBatch
from vidssl.distributed import gather_rows, rank, world
from vidssl.methods import build_method
from vidssl.optimizers import LARC
from vidssl.prototypes import AssignmentQueue
from vidssl.recipe import Recipe
from vidssl.sinkhorn import sinkhorn
from vidssl.views import make_views

ROWS, STEPS, DIM, P = 3, 6, 8, 7
CASES = {
    f"{streams}-{'queue' if queue else 'noqueue'}-{'both' if both else 'one'}": (streams, queue, both)
    for streams, queue, both in (
        ("single", 0, True),
        ("single", 2 * WORLD * ROWS, False),
        ("cross", 0, False),
        ("cross", 2 * WORLD * ROWS, True),
    )
}


def a_recipe(streams, queue, both):
    vicc = {
        "streams": streams,
        "prototypes": P,
        "queue": queue,
        "queue_from_epoch": 1,
        "freeze_epochs": 1,
        "second_view_grad": both,
    }
    return Recipe.model_validate(
        {
            "model": {"dim": DIM, "width": 2},
            "trainer": {"batch": ROWS, "workers": WORLD, "steps": STEPS},
            "method": {"name": "vicc", "temperature": 0.1, "vicc": vicc},
        }
    )


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    rows = WORLD * ROWS
    rgb = torch.randn(rows, 2, 3, 4, 16, 16, generator=generator)
    instance, start = torch.arange(rows), torch.zeros(rows, 2, dtype=torch.int64)
    views = make_views(rgb, ("rgb", "residual"))
    return ClipBatch(views, instance, instance, torch.full((rows,), -1), int(step > 0), step, start)


def share_of(batch, of_rank):
    mine = slice(of_rank * ROWS, (of_rank + 1) * ROWS)
    clips = {view: part[mine] for view, part in batch.clips.items()}
    return replace(
        batch,
        clips=clips,
        **{name: getattr(batch, name)[mine] for name in ("instance", "group", "label", "start")},
    )


def train(case, share):
    """Losses, gradients of the last step and the end state; batch norm in evaluation mode."""
    method = build_method(a_recipe(*CASES[case]), 4)
    model = method
    if world() > 1:
        model = nn.parallel.DistributedDataParallel(
            method, broadcast_buffers=False, find_unused_parameters=method.unused_parameters
        )
    method.train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    optimizer = LARC([p for p in method.parameters() if p.requires_grad], lr=10.0, weight_decay=1e-3)
    losses, frozen = [], method.prototypes.weight.detach().clone()
    for step in range(STEPS):
        batch = share(global_batch(step))
        output = model(batch, None)
        if step == 0:
            frozen = method.prototypes.weight.detach().clone()
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        method.before_update(batch)
        optimizer.step()
        if step == 0:
            assert torch.equal(method.prototypes.weight, frozen)
        losses.append(float(gather_rows(output.loss.detach()[None]).mean()))
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients, "state": method.state_dict()}


def some_scores(rows):
    return torch.randn(2, rows, P, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def assigned_share():
    """This rank's assignments of 8 rows that are cut 5 to 3, and of 4 + 4 rows that a queue of 6 joins."""
    me, both = rank(), some_scores(8)
    uneven = sinkhorn(both[:, :5] if me == 0 else both[:, 5:])
    queue = AssignmentQueue(2, 6, 1)
    queue.push(torch.arange(12.0).reshape(2, 6, 1))
    share = queue.share()
    queued = torch.stack([some_scores(6)[view, (share[view, :, 0] % 6).long()] for view in range(2)])
    mine = slice(4 * me, 4 * me + 4)
    return {"uneven": uneven, "queued": sinkhorn(both[:, mine], queued=queued), "share": share}


def rows_encoded_at_home(shuffle):
    """For each call of the encoder: how many of its clips are this rank's own, over some steps."""
    recipe = a_recipe("single", 0, False)
    recipe = recipe.model_copy(update={"method": recipe.method.model_copy(update={"shuffle_bn": shuffle})})
    method, calls = build_method(recipe, 4).eval(), []
    method.encoder("rgb").register_forward_pre_hook(lambda module, given: calls.append(given[0]))
    found = {0: 0, 1: 0}
    for step in range(6):
        batch = share_of(global_batch(step), rank())
        method(batch)
        for clip, seen in enumerate(calls):
            own = batch.clips["rgb"][:, clip]
            found[clip] += sum(any(torch.equal(row, mine) for mine in own) for row in seen)
        calls.clear()
    return found


def on_one_rank(me, folder):
    found = {case: train(case, lambda batch: share_of(batch, me)) for case in CASES}
    found["home"] = {shuffle: rows_encoded_at_home(shuffle) for shuffle in (True, False)}
    return {**found, "small": assigned_share()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo ranks found: this very file, run by two processes."""
    return found_by_ranks(on_one_rank, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_with_the_doubled_batch(ranks, case):
    alone = train(case, lambda batch: batch)
    for found in (one[case] for one in ranks):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert set(found["gradients"]) == set(alone["gradients"])
        for name, expected in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], expected, rtol=1e-3, atol=1e-5, msg=name)
        for name, expected in alone["state"].items():
            torch.testing.assert_close(found["state"][name], expected, rtol=1e-3, atol=1e-5, msg=name)
    assert max(alone["losses"]) - min(alone["losses"]) > 1e-2  # otherwise equality says nothing


@pytest.mark.parametrize("case", CASES)
def test_queues_and_prototypes_of_both_ranks_are_bit_equal(ranks, case):
    first, second = (one[case]["state"] for one in ranks)
    names = [name for name in first if name.startswith(("queue.", "prototypes."))]
    assert len(names) == 3
    assert all(torch.equal(first[name], second[name]) for name in names)
    if CASES[case][1]:
        assert int(first["queue.written"]) == CASES[case][1]


def test_the_second_clip_is_encoded_among_strangers_and_the_first_at_home(ranks):
    for one in ranks:
        assert one["home"][True][0] == 6 * ROWS
        assert 0 < one["home"][True][1] < 6 * ROWS
        assert one["home"][False] == {0: 6 * ROWS, 1: 6 * ROWS}


def test_assignments_do_not_depend_on_who_holds_which_row(ranks):
    uneven = torch.cat([one["small"]["uneven"] for one in ranks], dim=1)
    torch.testing.assert_close(uneven, sinkhorn(some_scores(8)), rtol=1e-9, atol=0)
    queued = torch.cat([one["small"]["queued"] for one in ranks], dim=1)
    torch.testing.assert_close(queued, sinkhorn(some_scores(8), queued=some_scores(6)), rtol=1e-9, atol=0)


def test_shares_of_the_queue_are_disjoint_and_whole(ranks):
    shares = [one["small"]["share"][0, :, 0].tolist() for one in ranks]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3, 4, 5]
