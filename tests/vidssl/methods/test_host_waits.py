"""On a GPU a training step never makes the host wait, whatever is trained, and no devices are mixed; asked of a pretended one.

A step here is everything between two batches: forward pass, backward pass, what is remembered, the optimizer.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pretended_gpu import PretendedGpu
from vidssl.batch import ClipBatch, Positives
from vidssl.encoder import build_encoder
from vidssl.methods import build_method
from vidssl.optimizers import build_optimizer, clip_gradients
from vidssl.recipe import Model, load_recipe
from vidssl.tables.backbones import BACKBONES
from vidssl.tables.methods import METHODS
from vidssl.views import make_views

ROWS, DIM, QUEUE, VIDEOS, STEPS = 8, 16, 16, 24, 5
QUICK = ("tiny",)
INLINE = ["mining.where=inline", "method.warmup_steps=0"]
ARMS = {
    "infonce": [],
    "infonce of sources": ["method.exclude_siblings=true"],
    "infonce + cascade": ["method.cascade=true", *INLINE],
    "infonce + cascade of the bank": ["method.cascade=true", "method.warmup_steps=0"],
    "ubernce": [],
    "coclr": INLINE,
    "coclr of the bank": ["method.warmup_steps=2"],
    "cpr": [*INLINE, "method.hold_until_full=true"],
    "cpr of the bank": ["method.warmup_steps=0"],
    "cpr by sum": [*INLINE, "mining.strategy=sum"],
    "cpr by minrank": [*INLINE, "mining.strategy=minrank"],
    "cpr by agreement": [*INLINE, "mining.weights=agreement"],
    "cpr by labels": [*INLINE, "mining.strategy=oracle"],
    "cpr with nothing mined": ["mining.where=off", "method.warmup_steps=2"],
    "vicc": [],
    "vicc with a queue": ["method.vicc.queue=16", "method.vicc.queue_from_epoch=0", "method.vicc.second_view_grad=false"],
    "vicc cross": ["method.vicc.streams=cross"],
    "iic": [],
    "iic live": ["method.iic.intra_negative=live", "method.iic.intra=shuffle"],
    "iic nce": ["method.iic.loss=nce"],
    "iic v2": ["method.iic.intra=rot", "method.iic.intra_of=second", "method.iic.normalize=true"],
    "iic without intra": ["method.iic.intra=none"],
    "iic + cascade": ["method.cascade=true", *INLINE],
}  # fmt: skip


def a_recipe(arm: str, *words: str):
    base = [
        f"method.name={arm.split()[0]}",
        f"model.dim={DIM}",
        "model.width=4",
        f"method.queue={QUEUE}",
        "mining.topk=2",
    ]
    base += [
        "method.iic.negatives=8",
        "method.vicc.prototypes=6",
        "method.vicc.queue=0",
        "mining.pool=4",
        "optim.clip=1",
    ]
    plain = arm.startswith(("vicc", "iic")) or arm in ("infonce", "ubernce", "infonce of sources")
    return load_recipe(
        "cpr-tiny",
        [
            *base,
            *(["method.warmup_steps=0"] if plain else []),
            *ARMS.get(arm, []),
            f"trainer.batch={ROWS}",
            "trainer.workers=1",
            *words,
        ],
    )


def a_batch(step: int, views, size: int = 16, frames: int = 4, rows: int = ROWS) -> ClipBatch:
    """Both clips of other videos in every step, with the columns on the host as a loader brings them."""
    draw = torch.Generator().manual_seed(step)
    ids = (torch.arange(rows) + rows * step) % VIDEOS
    clips = make_views(torch.randn(rows, 2, 3, frames, size, size, generator=draw), views)
    start = torch.arange(rows)[:, None].repeat(1, 2)
    return ClipBatch(clips, ids, ids // 3, ids % 4, 0, step, start)


def on_the(gpu: PretendedGpu, batch: ClipBatch) -> ClipBatch:
    columns = {name: getattr(batch, name) for name in ("instance", "group", "label", "start")}
    host = {name: values.numpy() for name, values in columns.items()}
    clips = {view: gpu.holds(values) for view, values in batch.clips.items()}
    return replace(batch, clips=clips, host=host, **{name: gpu.holds(values) for name, values in columns.items()})


def some_positives(step: int) -> Positives:
    ids = np.random.default_rng(step).integers(0, VIDEOS, (ROWS, 2))
    return Positives(ids, np.full((ROWS, 2, DIM), DIM**-0.5, np.float32), np.full(ROWS, step))


def losses_and_waits(recipe, gpu: PretendedGpu | None, batches) -> tuple[list[torch.Tensor], list[Counter[str]]]:
    method = build_method(recipe, instances=VIDEOS).train()
    if gpu is not None:
        method = gpu.moves(method)
    optimizer = build_optimizer(recipe.optim, [p for p in method.parameters() if p.requires_grad])
    losses, waits = [], []
    for batch in batches:
        given = some_positives(batch.step) if method.needs_positives(batch.step) else None
        there = batch if gpu is None else on_the(gpu, batch)
        before = Counter() if gpu is None else gpu.waits.copy()
        out = method(there, given)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        method.before_update(there)
        clip_gradients(optimizer, 1.0)
        if out.update:
            optimizer.step()
        waits.append(Counter() if gpu is None else gpu.waits - before)
        losses.append(out.loss.detach())
        if gpu is not None:
            assert {rows.device.type for rows in (out.loss, *out.embeddings.values())} == {"cuda"}
    return losses, waits


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_every_method_has_an_arm():
    assert {arm.split()[0] for arm in ARMS} == set(METHODS)


ONE_EACH = ("infonce", "infonce + cascade", "ubernce", "coclr", "cpr", "cpr of the bank", "cpr by agreement", "vicc", "vicc cross", "iic", "iic + cascade")  # fmt: skip


@pytest.mark.parametrize("arm", [pytest.param(arm, marks=[pytest.mark.slow] * (arm not in ONE_EACH)) for arm in ARMS])
def test_a_step_makes_the_host_wait_for_nothing(arm):
    recipe = a_recipe(arm)
    batches = [a_batch(step, recipe.views) for step in range(STEPS)]
    expected, _ = losses_and_waits(recipe, None, batches)
    with PretendedGpu() as gpu:
        losses, waits = losses_and_waits(recipe, gpu, batches)
        assert [float(loss) for loss in losses] == pytest.approx([float(loss) for loss in expected], rel=1e-5)
    allowed = 1 if arm == "iic + cascade" else 0
    assert max(sum(one.values()) for one in waits[2:]) <= allowed, waits


@pytest.mark.parametrize("loss", ["first", "later"])
def test_what_is_looked_at_now_and_then_is_not_waited_for(loss):
    """ViCC looks at its rows every 50 steps; on a GPU at what it noted 50 steps before."""
    recipe = a_recipe("vicc")
    with PretendedGpu() as gpu:
        method = gpu.moves(build_method(recipe, instances=VIDEOS).train())
        for step in (0, 50, 100) if loss == "first" else (49, 50, 51):
            gpu.waits.clear()
            method(on_the(gpu, a_batch(step, recipe.views)))
            assert not gpu.waits
        assert gpu.events == (2 if loss == "first" else 0)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
@pytest.mark.parametrize(
    "switches", [{}, {"channels_last": True}, {"checkpointing": True}], ids=["plain", "channels_last", "checkpointing"]
)
def test_every_backbone_goes_forward_and_back_on_the_device_alone(name, switches):
    encoder = build_encoder(Model(backbone=name, width=4).model_copy(update=switches)).train()
    clips = torch.randn(1, 3, 16, 32, 32).repeat(2, 1, 1, 1, 1) * torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1, 1)
    with PretendedGpu() as gpu:
        rows = gpu.moves(encoder)(gpu.holds(clips))
        rows.square().sum().backward()
        assert not gpu.waits
        assert {weight.grad.device.type for weight in encoder.parameters()} == {"cuda"}
