"""IIC on two gloo ranks is IIC in one process with the doubled batch: loss, gradients, memories, mined positives."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.vidssl.methods.two_ranks import WORLD, found_by_ranks
from vidssl.batch import ClipBatch
from vidssl.distributed import gather_rows, rank, world
from vidssl.methods import build_method
from vidssl.recipe import Recipe
from vidssl.views import make_views

ROWS, STEPS, DIM, VIDEOS = 3, 7, 8, 20

CASES = {
    "inter": {"iic": {"intra": "none"}},
    "intra": {"iic": {"intra": "shuffle"}},
    "live": {"iic": {"intra_negative": "live", "normalize": True}},
    "nce": {"iic": {"loss": "nce"}},
    "cascade": {"cascade": True, "warmup_steps": 2, "iic": {"normalize": True}},
}


def a_recipe(case):
    method = {"name": "iic", **CASES[case]}
    method["iic"] = {"negatives": 6, **method["iic"]}
    mining = {"where": "inline", "topk": 2, "stages": 3, "ratio": 0.6}
    return Recipe.model_validate({"model": {"dim": DIM, "width": 2}, "method": method, "mining": mining})


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    rows = WORLD * ROWS
    rgb = torch.rand(rows, 2, 3, 4, 16, 16, generator=generator)
    instance = torch.randperm(VIDEOS, generator=generator)[:rows]
    unknown, start = torch.full((rows,), -1), torch.zeros(rows, 2, dtype=torch.int64)
    return ClipBatch(make_views(rgb, ("rgb", "residual")), instance, instance // 3, unknown, 0, step, start)


def share_of(batch):
    if world() == 1:
        return batch
    mine = slice(rank() * ROWS, (rank() + 1) * ROWS)
    return replace(
        batch,
        clips={view: clips[mine] for view, clips in batch.clips.items()},
        instance=batch.instance[mine],
        group=batch.group[mine],
        label=batch.label[mine],
        start=batch.start[mine],
    )


def train(case):
    """Losses, mined counts, gradients of the last step and the end state; batch norm in evaluation mode."""
    method = build_method(a_recipe(case), 0, VIDEOS)
    model = method if world() == 1 else nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
    method.train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses, mined = [], []
    for step in range(STEPS):
        output = model(share_of(global_batch(step)))
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        count = torch.as_tensor(output.metrics.get("mining/mined_mean", 0.0))
        losses.append(float(gather_rows(output.loss.detach()[None]).mean()))
        mined.append(float(gather_rows(count[None]).mean()))
    gradients = {name: parameter.grad.clone() for name, parameter in method.named_parameters()}
    return {"losses": losses, "mined": mined, "gradients": gradients, "state": method.state_dict()}


def on_one_rank(me, folder):
    return {case: train(case) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo ranks found: this very file, run by two processes."""
    return found_by_ranks(on_one_rank, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_with_the_doubled_batch(ranks, case):
    alone = train(case)
    for found in (one[case] for one in ranks):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert found["mined"] == pytest.approx(alone["mined"])
        for part in ("gradients", "state"):
            for name, expected in alone[part].items():
                torch.testing.assert_close(
                    found[part][name], expected, rtol=1e-3, atol=1e-5, equal_nan=True, msg=f"{part} {name}"
                )
    assert (max(alone["mined"]) > 0) == (case == "cascade")


@pytest.mark.parametrize("case", CASES)
def test_memories_and_z_of_all_ranks_are_bit_equal(ranks, case):
    first, second = (one[case]["state"] for one in ranks)
    names = [name for name in first if name.startswith("memory.")]
    assert len(names) == (4 if case in ("inter", "live") else 5)
    for name in [*names, "log_z"]:
        assert torch.equal(first[name].nan_to_num(), second[name].nan_to_num()), name
    assert bool(first["log_z"].isfinite().all()) == (case == "nce")
