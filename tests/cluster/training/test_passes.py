"""A step in parts learns what the undivided step learns, wherever no batch norm looks at a part, and remembers the same."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cluster.training.driver import train
from cluster.training.passes import passes
from cluster.training.plan import plan_run
from tests.cluster.training.small_runs import small
from tests.vidssl.methods.method_parts import a_batch, a_recipe, some_positives
from vidssl.errors import RecipeError
from vidssl.methods import build_method, method_class
from vidssl.recipe import load_recipe
from vidssl.saved.checkpoint import latest_step, read_meta
from vidssl.saved.run_folder import RunFolder

ROWS = 4
ARMS: dict[str, dict[str, Any]] = {
    "infonce": {"name": "infonce"},
    "infonce + cascade": {"name": "infonce", "where": "inline", "cascade": True, "warmup_steps": 4},
    "ubernce": {"name": "ubernce"},
    "coclr": {"name": "coclr", "where": "inline", "warmup_steps": 2},
    "cpr": {"name": "cpr", "where": "inline", "hold_until_full": True},
    "cpr of the bank": {"name": "cpr"},
    "iic": {"name": "iic", "iic": {"negatives": 6}},
    "iic + cascade": {"name": "iic", "where": "inline", "cascade": True, "warmup_steps": 2, "iic": {"negatives": 6}},
}


def trained(arm: str, parts: int, steps: range, state: dict[str, Any] | None = None, still: bool = True):
    """Weights, queues and losses after some steps; `still`: batch norms do not look at their batch."""
    method = build_method(a_recipe(**ARMS[arm]), instances=24).train()
    for module in method.modules():
        if still and isinstance(module, nn.BatchNorm3d):
            module.eval()
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.SGD(weights, lr=0.05, momentum=0.9), []
    if state is not None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    for step in steps:
        given = some_positives(step) if method.needs_positives(step) else None
        optimizer.zero_grad(set_to_none=True)
        out = passes(method, a_batch(step), given, parts, contextlib.nullcontext)
        if out.update:
            optimizer.step()
        assert all(len(rows) == ROWS for rows in out.embeddings.values())
        losses.append(float(out.loss.detach()))
    return SimpleNamespace(method=method.state_dict(), optimizer=optimizer.state_dict(), losses=losses)


@pytest.mark.parametrize("arm", ARMS)
def test_parts_add_up_to_the_gradient_of_the_whole_batch_and_remember_the_same_rows(arm):
    whole, halves = trained(arm, 1, range(7)), trained(arm, 2, range(7))
    assert halves.losses == pytest.approx(whole.losses, rel=1e-3)
    for name, values in whole.method.items():
        torch.testing.assert_close(halves.method[name], values, rtol=1e-3, atol=2e-5, equal_nan=True)


def test_batch_norms_look_at_a_part():
    whole, halves = trained("infonce", 1, range(1), still=False), trained("infonce", 2, range(1), still=False)
    norms = [name for name in whole.method if name.endswith("num_batches_tracked") and "query" in name]
    assert norms
    assert all(2 * whole.method[name] == halves.method[name] for name in norms)


@pytest.mark.parametrize("arm", ["cpr", "iic"])
def test_a_run_in_parts_goes_on_from_its_checkpoint_bit_for_bit(arm):
    straight, cut = trained(arm, 2, range(6)), trained(arm, 2, range(3))
    rest = trained(arm, 2, range(3, 6), vars(cut))
    assert rest.losses == straight.losses[3:]
    for name, values in straight.method.items():
        torch.testing.assert_close(rest.method[name], values, rtol=0, atol=0, equal_nan=True)


def test_ranks_exchange_gradients_once_in_a_step(monkeypatch):
    left_out = []

    class Alone(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.inside = module

        def forward(self, *given):
            return self.inside(*given)

        @contextlib.contextmanager
        def no_sync(self):
            left_out.append(True)
            yield

    method = build_method(a_recipe("infonce")).train()
    passes(Alone(method), a_batch(0), None, 2, contextlib.nullcontext)
    assert len(left_out) == 1


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(RecipeError, match=r"trainer.accumulate=3 does not divide trainer.batch=16"):
        load_recipe("cpr-tiny", ["trainer.accumulate=3", "trainer.batch=16"])


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("vicc-tiny", [], "vicc balances its assignments over all rows of a step at once"),
        ("iic-tiny", ["method.iic.loss=nce"], "method.iic.loss=nce takes its constant from one whole batch"),
    ],
)
def test_methods_that_need_the_whole_batch_refuse_parts(name, words, why):
    recipe = load_recipe(name, ["trainer.accumulate=2", "trainer.batch=8", *words])
    with pytest.raises(RecipeError, match=why):
        method_class(recipe.method.name).check(recipe)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
def test_two_workers_train_in_parts_and_steps_are_those_of_the_optimizer(packed, tmp_path, ray_cluster):
    recipe = small(packed, tmp_path, "trainer.accumulate=2", "trainer.steps=6", "trainer.log_every_steps=2")
    train(plan_run(recipe), lambda line: None)
    folder = RunFolder(tmp_path / "small")
    assert latest_step(folder) == 6
    rows = [json.loads(line) for line in folder.log.read_text().splitlines() if '"loss"' in line]
    assert [row["step"] for row in rows] == [0, 1, 3, 5]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert read_meta(folder, 6).seen == 6 * recipe.trainer.batch * recipe.trainer.workers
