"""What bf16 changes of every loss: the bounds that docs/differences.md states."""

from __future__ import annotations

import pytest
import torch

from tests.vidssl.methods.test_host_waits import ARMS, STEPS, VIDEOS, a_batch, a_recipe, some_positives
from vidssl.backbones.trunk import Trunk
from vidssl.methods import build_method

BOUND, OF_MINED = 0.01, 0.1
"""Largest difference of a loss in bf16 from the same in fp32, as a share of it: weights of step 0, five steps of queues.

Where the step itself mines, another positive may be chosen: a cut between two scores, not a rounding error.
"""


def losses(recipe, precision):
    method, found = build_method(recipe, instances=VIDEOS).train(), []
    for step in range(STEPS):
        given = some_positives(step) if method.needs_positives(step) else None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
            out = method(a_batch(step, recipe.views), given)
        assert out.loss.dtype == torch.float32
        assert all(rows.dtype == torch.float32 for rows in out.embeddings.values())
        found.append(float(out.loss))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", ARMS)
def test_a_loss_in_bf16_is_near_that_in_fp32(arm, monkeypatch):
    monkeypatch.setattr(Trunk, "forward", Trunk._through)  # on a CPU a backbone keeps to fp32: here it must not
    recipe = a_recipe(arm)
    full, half = losses(recipe, "fp32"), losses(recipe, "bf16")
    assert full != half
    off = max(abs(one - other) / other for one, other in zip(half, full, strict=True) if other)
    assert off <= (OF_MINED if recipe.mines and recipe.mining.where == "inline" else BOUND)
