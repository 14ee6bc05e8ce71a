"""Our losses, cascade, queue, S3D and importer give the numbers of the code that CoCLR and CPR published.

The `.npz` files hold what that code computed; inputs are rebuilt from names, see `rebuilt`.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.rebuilt import assert_same, cases, load, unit
from vidssl.batch import ClipBatch
from vidssl.losses import info_nce, mean_log_nce
from vidssl.methods import build_method, mined
from vidssl.recipe import Recipe


class Fixed(nn.Module):
    """An encoder that has made up its mind: the same rows for any clips, with a gradient to them."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows.clone())

    def forward(self, clips):
        return self.rows


def shuffled_keys(stored, rows, dim, salt):
    """The keys in the order that the published run drew.

    It shuffles the key encoder's input (ShuffleBN) and puts the output back in order. The encoder of that run was a
    constant, so only the way back acted: `coclr/k` is permuted, by a draw that the file shows in the queue's new rows.
    """
    keys = unit("coclr/k", rows, dim, salt=salt)
    order = (torch.from_numpy(stored["queue_after"][:rows]) @ keys.T).argmax(1)
    assert sorted(order.tolist()) == list(range(rows))
    return keys[order]


@pytest.fixture(params=cases("loss_coclr"))
def step(request, monkeypatch):
    """One published step run by our method: what was stored, what the loss was given, the output, the method."""
    case, stored = load(request.param)
    rows, size, dim, stages, salt = case["B"], case["K"], case["D"], case["stages"], case["salt"]
    recipe = Recipe.model_validate(
        {
            "model": {"dim": dim, "width": 2},
            "method": {
                "name": "cpr" if stages else "coclr",
                "queue": size,
                "temperature": case["temperature"],
                "self_positive": "keep",
                "momentum": 1 - 1e-12,
                "second_from": "given below",
            },
            "mining": {"where": "inline", "topk": case["topk"], "stages": stages or 9, "ratio": case["ratio"] or 0.9},
        }
    )
    method = build_method(recipe)
    method.stream("rgb").query = Fixed(3 * unit("coclr/q", rows, dim, salt=salt))
    method.stream("rgb").key = Fixed(shuffled_keys(stored, rows, dim, salt))
    method.stream("residual").query = Fixed(unit("coclr/kf", rows, dim, salt=salt))
    sources = torch.from_numpy(stored["bank_source"])
    old = {
        "rgb": unit("coclr/queue", size, dim, salt=salt),
        "residual": unit("coclr/queue_second", size, dim, salt=salt),
    }
    method.queue.push(old, sources, sources)
    query_source = torch.from_numpy(stored["query_source"])
    nothing = torch.zeros(rows, 2, 1, 1, 1, 1)
    unknown = torch.full((rows,), -1)
    clips = {"rgb": nothing, "residual": nothing}
    batch = ClipBatch(clips, query_source, query_source, unknown, 0, 0, torch.zeros(rows, 2, dtype=torch.int64))
    seen = {}

    def listening(logits, positive, valid, weights):
        assert weights is None  # as published, every positive counts alike
        seen.update(logits=logits, positive=positive, valid=valid)
        return real(logits, positive, valid)

    real = mined.mil_nce
    monkeypatch.setattr(mined, "mil_nce", listening)
    output = method.train()(batch)
    output.loss.backward()
    return stored, seen, output, method


def test_logits_and_positives_are_the_published_ones(step):
    stored, seen, _, _ = step
    assert_same(seen["logits"], stored["logits"])
    np.testing.assert_array_equal(seen["positive"].numpy(), stored["positive_mask"] > 0)
    assert seen["valid"].all()


def test_losses_of_the_table_are_the_published_ones(step):
    stored, seen, output, _ = step
    assert_same(output.loss, stored["loss_mil_nce"])
    assert_same(info_nce(seen["logits"]), stored["loss_infonce"])
    assert_same(mean_log_nce(seen["logits"], seen["positive"]), stored["loss_mean_log"])


def test_gradient_at_the_encoder_output_is_the_published_one(step):
    stored, _, _, method = step
    assert_same(method.stream("rgb").query.rows.grad, stored["grad_query_unnormalised"])


def test_queues_after_the_step_are_the_published_ones(step):
    stored, _, _, method = step
    assert_same(method.queue.rows("rgb"), stored["queue_after"])
    assert_same(method.queue.rows("residual"), stored["queue_second_after"])
    assert method.queue.pointer == stored["query_source"].size
