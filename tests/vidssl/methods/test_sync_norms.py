"""Ranks whose batch norms are synchronised are one process with the whole batch; rows that are shuffled move once."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.vidssl.methods.test_distributed_step import global_batch
from tests.vidssl.methods.two_ranks import found_by_ranks
from vidssl import distributed
from vidssl.distributed import gather_rows, on_shuffled_rows, rank, synchronise_norms, world
from vidssl.methods import build_method
from vidssl.recipe import Recipe

STEPS = 4
CPU = torch.device("cpu")
METHODS = {
    "infonce": {"name": "infonce", "queue": 13, "momentum": 0.9},
    "vicc": {
        "name": "vicc",
        "second_view": "residual",
        "vicc": {"streams": "single", "prototypes": 5, "queue": 0, "second_view_grad": True, "freeze_epochs": 0},
    },
}


def recipe_of(name, **model):
    tree = {
        "model": {"dim": 8, "width": 2, "sync_bn": True, **model},
        "method": METHODS[name],
        "mining": {"where": "off"},
    }
    return Recipe.model_validate(tree)


def share_of(batch):
    size = batch.size // world()
    mine = slice(rank() * size, (rank() + 1) * size)
    names = ("instance", "group", "label", "start")
    clips = {view: clips[mine] for view, clips in batch.clips.items()}
    return replace(batch, clips=clips, **{name: getattr(batch, name)[mine] for name in names})


def train(name, **model):
    """Losses, gradients of the first step and the end state; every batch norm in training mode."""
    method = build_method(recipe_of(name, **model))
    synchronise_norms(method, CPU)
    whole = method
    if world() > 1:
        whole = nn.parallel.DistributedDataParallel(
            method, broadcast_buffers=False, find_unused_parameters=method.unused_parameters
        )
    method.train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses, gradients = [], {}
    for step in range(STEPS):
        output = whole(share_of(global_batch(step)), None)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(float(gather_rows(output.loss.detach()[None]).mean()))
    return {"losses": losses, "gradients": gradients, "state": method.state_dict()}


def sent_by_a_shuffle():
    """Rows that this rank sends to others while 60 rows a rank are shuffled, and whether they come home."""
    sizes, exchange = [], dist.all_to_all_single

    def counted(found, rows, got, sent):
        sizes.append(sum(sent) - sent[rank()])
        exchange(found, rows, got, sent)

    distributed.dist.all_to_all_single = counted
    rows = torch.arange(60.0)[:, None] + 100 * rank()
    home = on_shuffled_rows(lambda x: 2 * x, rows, 1, 2)
    distributed.dist.all_to_all_single = exchange
    return {"sizes": sizes, "home": bool(torch.equal(home, 2 * rows))}


def on_one_rank(me, folder):
    found = {name: train(name) for name in METHODS}
    return found | {"again": train("infonce", checkpointing=True), "shuffle": sent_by_a_shuffle()}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    return found_by_ranks(on_one_rank, tmp_path_factory.mktemp("gloo"), request.param)


@pytest.mark.parametrize("name", [*METHODS, "again"])
def test_ranks_with_synchronised_norms_are_one_process_with_the_whole_batch(ranks, name):
    alone = train("infonce" if name == "again" else name)
    for found in (one[name] for one in ranks):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        for kind in ("gradients", "state"):
            assert found[kind].keys() == alone[kind].keys()
            for key, expected in alone[kind].items():
                torch.testing.assert_close(found[kind][key], expected, rtol=2e-3, atol=2e-5, msg=f"{kind} {key}")


def test_a_shuffle_sends_each_row_that_moves_once(ranks):
    for one in ranks:
        there, back = one["shuffle"]["sizes"]
        assert one["shuffle"]["home"]
        assert 0 < there < 60  # gathering would send all 60 to each of the others
        assert there == pytest.approx(60 * (len(ranks) - 1) / len(ranks), rel=0.35)
        assert 0 < back < 60


def test_alone_no_norm_is_changed():
    norms = nn.Sequential(nn.BatchNorm3d(3))
    assert type(synchronise_norms(norms, CPU)[0]) is nn.BatchNorm3d
