"""Our swapped prediction gives the numbers of the code that ViCC published: loss, scores, gradients, queue.

The `.npz` files hold what that code computed; inputs are rebuilt here from names.
"""

import pytest
import torch
from torch import nn

from tests.conformance.rebuilt import assert_same, cases, load, unit
from vidssl.batch import ClipBatch
from vidssl.methods.vicc import ViCC
from vidssl.recipe import Recipe


class Read(nn.Module):
    """An encoder whose embedding stands in the clip."""

    def forward(self, clips):
        return clips.flatten(1)


@pytest.fixture(scope="module", params=cases("loss_vicc"))
def step(request):
    """Our step on a published case: stored arrays, unit views with their gradients, scores, output and method."""
    case, stored = load(request.param)
    salt = case["salt"]
    rows, dim, count, views = case["B"], case["D"], case["prototypes"], sum(case["views"])
    assert case["assign"] == list(range(views))  # what the method does: every view is assigned
    cross = len(case["views"]) == 2
    vicc = {
        "streams": "cross" if cross else "single",
        "prototypes": count,
        "epsilon": case["epsilon"],
        "iterations": case["iterations"],
        "queue": case["queue"],
        "queue_from_epoch": 5,
    }
    recipe = Recipe.model_validate(
        {
            "model": {"dim": dim, "width": 2},
            "trainer": {"batch": rows, "steps": 1},
            "method": {"name": "vicc", "temperature": case["temperature"], "vicc": vicc},
        }
    )
    method = ViCC(recipe, 0)
    for stream in method.streams.values():
        stream.query = Read()
    with torch.no_grad():
        method.prototypes.weight.copy_(
            3.0 * unit("vicc/prototypes", count, dim, salt=salt)
        )  # the method makes them unit
    if case["queue"]:
        queued = unit("vicc/queue", views * case["queue"], dim, salt=salt)
        method.queue.push(queued.reshape(views, case["queue"], dim))
    seen_as = [unit(f"vicc/view{v}", rows, dim, salt=salt) for v in range(views)]
    first, second = (view.clone().requires_grad_() for view in seen_as[:2])
    clips = {"rgb": torch.stack([first, second], 1)[..., None, None, None]}
    if cross:  # view 2 is the other stream of clip 2, view 3 that of clip 1
        clips["residual"] = torch.stack([seen_as[3], seen_as[2]], 1)[..., None, None, None]
    seen = {}
    method.prototypes.register_forward_hook(lambda module, given, scores: seen.setdefault(len(seen), scores))
    instance, unknown = torch.arange(rows), torch.full((rows,), -1)
    batch = ClipBatch(clips, instance, instance, unknown, 5, 1, torch.zeros(rows, 2, dtype=torch.int64))
    output = method.train()(batch)
    output.loss.backward()
    return stored, (first, second), seen[0], output, method


def test_loss_is_the_published_one(step):
    stored, _, _, output, _ = step
    assert_same(output.loss, stored["loss"])


def test_scores_are_the_published_ones(step):
    stored, _, scores, _, _ = step
    assert_same(scores.flatten(0, 1), stored["scores"])


def test_gradients_are_the_published_ones(step):
    stored, views, _, _, method = step
    assert_same(method.prototypes.weight.grad, stored["grad_prototypes"])
    for at, view in enumerate(views):  # through the normalisation of the rows
        assert_same(view.grad, stored[f"grad_view{at}"])


def test_queue_after_the_step_is_the_published_one(step):
    stored, _, _, output, method = step
    if "queue_after" not in stored:
        assert method.queue.size == 0
        assert "queue/filled" not in output.metrics
        return
    assert_same(method.queue.rows, stored["queue_after"])
    assert output.metrics["queue/filled"] == 1.0
