"""Our IIC step gives the scores, losses, gradients and memories of the code that IIC published.

The `.npz` files hold what that code computed; memories and views are rebuilt here from names.
"""

import pytest
import torch
from torch import nn

from tests.conformance.rebuilt import assert_same, cases, load, unit
from vidssl.batch import ClipBatch
from vidssl.methods import iic
from vidssl.recipe import Recipe


class Told(nn.Module):
    """A network that has made up its mind: its n-th call gives the n-th rows, with a gradient to them."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(part) for part in rows])
        self.calls = 0

    def forward(self, clips):
        self.calls += 1
        return self.rows[self.calls - 1]


@pytest.fixture(params=cases("loss_iic"))
def step(request, monkeypatch):
    """One published step run by our method: the case, what was stored, the tables, the output, the method, its network."""
    case, stored = load(request.param)
    rows, size, dim, salt = case["B"], case["N"], case["D"], case["salt"]
    intra, loss = request.param.split("_")[2:4]  # loss_iic_INTRA_LOSS
    options = {
        "negatives": case["K"],
        "loss": loss,
        "momentum": case["momentum"],
        "intra": "none" if intra == "inter" else "repeat",
    }
    recipe = Recipe.model_validate(
        {
            "model": {"dim": dim, "width": 2},
            "clips": {"per_video": 1},
            "method": {"name": "iic", "temperature": case["temperature"], "iic": options},
        }
    )
    method = iic.IIC(recipe, 0, size)
    network = Told(*(unit(f"iic/{name}", rows, dim, salt=salt) for name in ("l", "ab", "neg")))
    method.stream("rgb").query = network
    for name, published in (("first", "memory_l"), ("second", "memory_ab"), ("intra", "memory_neg")):
        if name in method.memory.names:
            method.memory.rows(name).copy_(unit(f"iic/{published}", size, dim, salt=salt))
    monkeypatch.setattr(iic, "drawn_ids", lambda *_: stored["indices"])
    seen = {}
    real = method.tables

    def listening(*given):
        seen["tables"] = real(*given)
        return seen["tables"]

    monkeypatch.setattr(method, "tables", listening)
    instance, unknown = torch.from_numpy(stored["instance"]), torch.full((rows,), -1)
    clips = torch.zeros(rows, 1, 3, 4, 2, 2)
    start = torch.zeros(rows, 1, dtype=torch.int64)
    batch = ClipBatch({"rgb": clips, "residual": clips}, instance, instance, unknown, 0, 0, start)
    output = method.train()(batch)
    output.loss.backward()
    return loss, stored, seen["tables"], output, method, network


def test_scores_of_both_views_are_the_published_ones(step):
    loss, stored, tables, _, method, _ = step
    for number, table in enumerate(tables):
        ours = table.logits if loss == "softmax" else (table.logits - method.log_z[number]).exp()
        assert ours.shape == stored[f"scores_view{number + 1}"].shape
        assert_same(ours, stored[f"scores_view{number + 1}"])


def test_loss_and_gradients_of_both_views_are_the_published_ones(step):
    _, stored, _, output, _, network = step
    assert_same(output.loss, stored["loss"])
    assert_same(network.rows[0].grad, stored["grad_view1"])
    assert_same(network.rows[1].grad, stored["grad_view2"])
    assert network.rows[2].grad is None  # the fresh intra-negative only refreshes the memory


def test_memories_after_the_step_are_the_published_ones(step):
    _, stored, _, _, method, _ = step
    assert_same(method.memory.rows("first"), stored["memory_l_after"])
    assert_same(method.memory.rows("second"), stored["memory_ab_after"])
    assert ("memory_neg_after" in stored) == ("intra" in method.memory.names)
    if "memory_neg_after" in stored:
        assert_same(method.memory.rows("intra"), stored["memory_neg_after"])
