"""ViCC: which encoder learns from which view, what the queue and the prototypes do when, and what is refused."""

import copy
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vidssl.batch import ClipBatch
from vidssl.errors import CheckpointError, RecipeError, VidsslError
from vidssl.methods import build_method
from vidssl.methods.vicc import ViCC, queue_rows
from vidssl.prototypes import STUCK_STEPS, AssignmentQueue
from vidssl.recipe import Recipe
from vidssl.views import make_views

DIM, ROWS, P = 8, 4, 6


def a_recipe(streams="single", trainer=None, method=None, **vicc):
    given = {"streams": streams, "prototypes": P, "queue": 0, "queue_from_epoch": 0, "freeze_epochs": 0} | vicc
    return Recipe.model_validate(
        {
            "model": {"dim": DIM, "width": 2},
            "trainer": {"batch": ROWS, "steps": 10} | (trainer or {}),
            "method": {"name": "vicc", "temperature": 0.1, "vicc": given} | (method or {}),
        }
    )


def a_batch(step=0, epoch=0, rows=ROWS):
    generator = torch.Generator().manual_seed(2000 + step)
    rgb = torch.randn(rows, 2, 3, 4, 16, 16, generator=generator)
    instance, start = torch.arange(rows), torch.zeros(rows, 2, dtype=torch.int64)
    views = make_views(rgb, ("rgb", "residual"))
    return ClipBatch(views, instance, instance, torch.full((rows,), -1), epoch, step, start)


def a_method(streams="single", **options):
    """In training mode, but batch statistics stay as they are, so that a clip has one embedding."""
    method = build_method(a_recipe(streams, **options), 1).train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    return method


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embedded(method, view, clips):
    with torch.no_grad():
        return unit(method.encoder(view)(clips).double().numpy())


def textbook(scores, epsilon=0.05, iterations=3):
    q = np.exp(scores / epsilon).T
    for _ in range(iterations):
        q = q / q.sum(1, keepdims=True)
        q = q / q.sum(0, keepdims=True)
    return q.T


def loss_by_hand(views, prototypes, queued=None, temperature=0.1):
    """Mean over the views of the mean over the other views, in float64 loops."""
    scores, means = [z @ prototypes.T for z in views], []
    for i, own in enumerate(scores):
        before = own[:0] if queued is None else queued[i] @ prototypes.T
        q = textbook(np.concatenate([before, own]))[len(before) :]
        parts = []
        for v, other in enumerate(scores):
            if v != i:
                e = np.exp(other / temperature)
                parts.append(-(q * np.log(e / e.sum(1, keepdims=True))).sum(1).mean())
        means.append(np.mean(parts))
    return np.mean(means)


def views_of(method, batch):
    clips = batch.clips["rgb"]
    views = [embedded(method, "rgb", clips[:, 0]), embedded(method, "rgb", clips[:, 1])]
    if method.cross:
        others = batch.clips["residual"]
        views += [embedded(method, "residual", others[:, at]) for at in (1, 0)]
    return views


@pytest.mark.parametrize("streams", ["single", "cross"])
def test_a_step_is_the_slow_one_with_and_without_the_queue(streams):
    method = a_method(streams, queue=2 * ROWS)
    prototypes = unit(method.prototypes.weight.detach().double().numpy())
    kept = []
    for step in range(4):
        batch = a_batch(step)
        views = views_of(method, batch)
        queued = np.concatenate([kept[-1], kept[-2]], axis=1) if step >= 2 else None  # newest first, full after two
        output = method(batch)
        assert output.loss.item() == pytest.approx(loss_by_hand(views, prototypes, queued), rel=1e-4)
        kept.append(np.stack(views))
    np.testing.assert_allclose(method.queue.rows.numpy(), np.concatenate([kept[3], kept[2]], axis=1), atol=1e-6)
    assert set(output.embeddings) == ({"rgb", "residual"} if streams == "cross" else {"rgb"})
    np.testing.assert_allclose(output.embeddings["rgb"].numpy(), views[0], atol=1e-6)
    if streams == "cross":
        np.testing.assert_allclose(output.embeddings["residual"].numpy(), views[3], atol=1e-6)
    assert not any(rows.requires_grad for rows in output.embeddings.values())


def test_prototypes_are_unit_before_every_forward_and_embeddings_always():
    method = a_method()
    with torch.no_grad():
        method.prototypes.weight.mul_(7.0)
    output = method(a_batch())
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(P))
    torch.testing.assert_close(output.embeddings["rgb"].norm(dim=1), torch.ones(ROWS))


def one_update(method, epoch, optimizer=torch.optim.SGD):
    batch = a_batch(1, epoch)
    optim = optimizer(method.parameters(), lr=0.1, weight_decay=0.1)
    loss = method(batch).loss
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    loss.backward()
    method.before_update(batch)
    optim.step()
    return {name: not torch.equal(p.detach(), before[name]) for name, p in method.named_parameters()}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_prototypes_do_not_move_in_the_first_epochs_though_the_encoder_does(optimizer):
    moved = one_update(a_method(freeze_epochs=2), epoch=1, optimizer=optimizer)
    assert not moved.pop("prototypes.weight")
    assert all(moved.values())
    assert all(one_update(a_method(freeze_epochs=2), epoch=2, optimizer=optimizer).values())


def test_the_frozen_second_stream_never_moves_and_never_leaves_evaluation():
    method = a_method("cross").train()
    before = copy.deepcopy(method.encoder("residual").state_dict())
    moved = one_update(method, epoch=0)
    assert not any(value for name, value in moved.items() if "residual" in name)
    assert all(value for name, value in moved.items() if "residual" not in name)
    assert all(torch.equal(value, before[name]) for name, value in method.encoder("residual").state_dict().items())


def gradients(second_view_grad, streams):
    method = a_method(streams, second_view_grad=second_view_grad)
    batch = a_batch()
    clips = batch.clips["rgb"].clone().requires_grad_()
    loss = method(replace(batch, clips={**batch.clips, "rgb": clips})).loss
    loss.backward()
    encoder = torch.cat([p.grad.flatten() for p in method.encoder("rgb").parameters()])
    return loss.detach(), clips.grad, method.prototypes.weight.grad, encoder


@pytest.mark.parametrize("streams", ["single", "cross"])
def test_without_second_view_grad_exactly_the_encoders_gradient_of_clip_2_is_gone(streams):
    loss, both, prototypes, encoder = gradients(True, streams)
    same_loss, one, same_prototypes, less = gradients(False, streams)
    torch.testing.assert_close(loss, same_loss)
    torch.testing.assert_close(prototypes, same_prototypes)  # its term still trains the prototypes
    torch.testing.assert_close(one[:, 0], both[:, 0])
    assert both[:, 1].abs().max() > 0
    assert one[:, 1].abs().max() == 0
    assert (encoder - less).abs().max() > 1e-4


@pytest.mark.parametrize("streams", ["single", "cross"])
def test_the_loss_begins_near_ln_p_with_the_published_sizes(streams):
    given = a_recipe(streams, trainer={"batch": 16}, prototypes=300)
    recipe = given.model_copy(update={"model": given.model.model_copy(update={"dim": 128})})
    for seed in range(3):
        output = build_method(recipe, seed).train()(a_batch(seed, rows=16))
        assert output.loss.item() == pytest.approx(math.log(300), rel=0.1)
        assert float(output.metrics["vicc/ln_p_gap"]) == pytest.approx(math.log(300) - output.loss.item(), abs=1e-5)


def test_the_queue_waits_for_its_epoch_and_then_until_it_is_full():
    method = a_method(queue=2 * ROWS, queue_from_epoch=3)
    method(a_batch(0, epoch=2))
    assert method.queue.count == 0
    for step, filled in ((1, 0.5), (2, 1.0), (3, 1.0)):
        assert method(a_batch(step, epoch=3)).metrics["queue/filled"] == filled
    fresh = a_method(queue=2 * ROWS, queue_from_epoch=9)
    method(a_batch(4, epoch=3))
    with_queue, without = method(a_batch(5, epoch=3)).loss, fresh(a_batch(5, epoch=3)).loss
    assert abs(with_queue - without) > 1e-3


def test_evaluation_mode_leaves_the_queue_alone():
    method = a_method(queue=2 * ROWS)
    method(a_batch(0))
    before = copy.deepcopy(method.queue.state_dict())
    method.eval()(a_batch(1))
    assert all(torch.equal(value, before[name]) for name, value in method.queue.state_dict().items())


def test_the_newest_rows_stand_first_and_more_rows_than_slots_keep_the_newest():
    queue = AssignmentQueue(1, 5, 1)
    queue.push(torch.tensor([[[1.0], [2.0], [3.0]]]))
    assert not queue.full
    queue.push(torch.tensor([[[4.0], [5.0], [6.0]]]))
    assert queue.full
    assert queue.rows.flatten().tolist() == [4, 5, 6, 1, 2]
    none = AssignmentQueue(1, 0, 1)
    none.push(torch.ones(1, 3, 1))
    assert not none.full


def test_a_queue_that_is_loaded_forgets_what_it_counted_itself():
    full, empty = AssignmentQueue(1, 2, 1), AssignmentQueue(1, 2, 1)
    full.push(torch.ones(1, 2, 1))
    stored = copy.deepcopy(empty.state_dict())
    assert not empty.full
    empty.load_state_dict(full.state_dict())
    assert empty.full
    full.load_state_dict(stored)
    assert full.count == 0


@pytest.mark.parametrize(("size", "rows", "full"), [(4, [7, 6, 5, 4], True), (6, [7, 6, 5, 4, 3, 0], False)])
def test_a_queue_of_other_workers_gives_its_newest_rows_and_waits_until_it_is_full(size, rows, full):
    before, now = AssignmentQueue(1, 5, 1), AssignmentQueue(1, size, 1)
    for row in range(8):
        before.push(torch.tensor([[[float(row)]]]))
    stored = copy.deepcopy(before.state_dict())
    now.load_state_dict(before.state_dict())
    assert now.rows.flatten().tolist() == rows
    assert (now.count, now.full, now.came_from) == (min(size, 5), full, 5)
    assert all(torch.equal(value, stored[name]) for name, value in before.state_dict().items())
    now.push(torch.tensor([[[8.0]]]))
    assert now.full
    assert now.rows.flatten().tolist() == [8, *rows[:-1]]
    now.load_state_dict(copy.deepcopy(now.state_dict()))
    assert now.came_from is None


def test_a_queue_that_changed_its_size_is_said_once():
    method, other = a_method(queue=2 * ROWS), a_method(queue=3 * ROWS)
    method(a_batch(0))
    other.load_state_dict(method.state_dict())
    assert other.news() == [
        f"the queue of assignments held {2 * ROWS} rows and holds {3 * ROWS} for the workers of now: its newest rows stay, "
        "and it is used again once it is full"
    ]
    assert other.news() == []
    assert method.news() == []


def test_a_resumed_run_goes_on_exactly(tmp_path):
    def steps(method, optimizer, which):
        losses = []
        for step in which:
            batch = a_batch(step, epoch=step // 2)
            output = method(batch)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            method.before_update(batch)
            optimizer.step()
            losses.append(output.loss.item())
        return losses

    options = {"queue": 2 * ROWS, "queue_from_epoch": 1, "freeze_epochs": 1, "second_view_grad": False}
    method = build_method(a_recipe("cross", **options), 1).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    steps(method, optimizer, range(5))
    torch.save({"m": method.state_dict(), "o": optimizer.state_dict()}, tmp_path / "at-5.pt")
    straight = steps(method, optimizer, range(5, 8))
    other = build_method(a_recipe("cross", **options), 9).train()
    again = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    stored = torch.load(tmp_path / "at-5.pt", weights_only=True)
    other.load_state_dict(stored["m"])
    again.load_state_dict(stored["o"])
    other.seed = method.seed
    assert other.queue.full
    assert steps(other, again, range(5, 8)) == straight


def test_the_cross_stage_goes_on_with_the_encoder_and_prototypes_of_the_single_one():
    single, flow = build_method(a_recipe(), 1), build_method(a_recipe(method={"view": "residual"}), 2)
    cross = build_method(a_recipe("cross"), 3)
    cross.start_from(single.artifact("rgb"))
    cross.load_encoder("residual", {k: v for k, v in flow.artifact("residual").items() if not k.startswith("extra.")})
    assert torch.equal(cross.prototypes.weight, single.prototypes.weight)
    for view, source in (("rgb", single), ("residual", flow)):
        for name, value in source.encoder(view).state_dict().items():
            assert torch.equal(cross.encoder(view).state_dict()[name], value)
    assert "extra.prototypes.weight" not in cross.artifact("residual")


def test_a_start_without_prototypes_keeps_fresh_ones_and_one_with_others_is_refused():
    method = build_method(a_recipe(), 1)
    fresh = method.prototypes.weight.detach().clone()
    method.start_from(
        build_method(
            Recipe.model_validate({"model": {"dim": DIM, "width": 2}, "method": {"name": "infonce"}}), 2
        ).artifact("rgb")
    )
    assert torch.equal(method.prototypes.weight, fresh)
    other = build_method(a_recipe(prototypes=P + 1), 1)
    with pytest.raises(CheckpointError, match=r"method\.vicc\.prototypes=6"):
        other.start_from(method.artifact("rgb"))


def test_labels_ids_and_mined_positives_are_not_read():
    method, batch = a_method(), a_batch()
    expected = method(batch).loss
    other = replace(batch, label=torch.arange(ROWS), instance=batch.instance + 7, group=batch.group * 0)
    assert torch.equal(method(other).loss, expected)


def test_half_precision_encoders_keep_a_full_precision_loss():
    method = a_method("cross", queue=ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(2):
            output = method(a_batch(step))
    assert output.loss.dtype == torch.float32
    assert all(rows.dtype == torch.float32 for rows in output.embeddings.values())
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


class Same(nn.Module):
    """An encoder that has collapsed: one embedding for every clip."""

    def __init__(self, value=1.0):
        super().__init__()
        self.row = nn.Parameter(torch.full((DIM,), value))

    def forward(self, clips):
        return self.row.expand(len(clips), DIM)


def test_a_loss_stuck_at_ln_p_is_said_once_and_in_words(caplog):
    recipe = a_recipe(method={"temperature": 100.0})  # predictions that cannot say anything
    method, batch = build_method(recipe, 1).train(), a_batch()
    method.stream("rgb").query = Same()
    with caplog.at_level(logging.WARNING, "vidssl.methods.vicc"):
        for step in range(STUCK_STEPS - 1):
            method(replace(batch, step=step))
        assert not caplog.records
        for step in range(STUCK_STEPS - 1, STUCK_STEPS + 101):
            method(replace(batch, step=step))
    assert len(caplog.records) == 1
    assert "within 2% of ln 6 = 1.79" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_embeddings_that_are_no_unit_rows_stop_the_run(value):
    method = build_method(a_recipe(), 1).train()
    method.stream("rgb").query = Same(value)
    with pytest.raises(VidsslError, match=r"no unit rows .* lower optim\.lr"):
        method(a_batch())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"queue": ROWS - 1}, "method.vicc.queue=4 or a multiple"),
        ({"queue": 7, "trainer": {"workers": 2}}, "method.vicc.queue=8 or a multiple"),
        ({"method": {"warmup_steps": 5}}, "method.warmup_steps=0"),
        ({"prototypes": 1}, "method.vicc.prototypes=300"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_type(changes, says):
    with pytest.raises(RecipeError, match=says):
        ViCC.check(a_recipe(**changes))


@pytest.mark.parametrize("clips", [1, 3])
def test_any_other_number_of_clips_than_two_is_refused(clips):
    recipe = a_recipe()
    with pytest.raises(RecipeError, match=r"type clips\.per_video=2"):
        ViCC.check(recipe.model_copy(update={"clips": recipe.clips.model_copy(update={"per_video": clips})}))


def test_a_queue_is_rounded_down_to_whole_steps_and_says_so(caplog):
    recipe = a_recipe(queue=11, trainer={"workers": 1})
    with caplog.at_level(logging.WARNING, "vidssl.methods.vicc"):
        method = build_method(recipe, 1)
    assert (queue_rows(recipe), method.queue.rows.shape) == (8, (2, 8, DIM))
    assert [record.getMessage() for record in caplog.records] == [
        "method.vicc.queue=11 is no multiple of a step of all workers (4 videos): it holds 8 rows"
    ]


def test_a_random_second_stream_and_prototypes_frozen_for_good_are_remarked_on(caplog):
    with caplog.at_level(logging.WARNING, "vidssl.methods.vicc"):
        build_method(a_recipe("cross", trainer={"steps": None, "epochs": 10}, freeze_epochs=10), 1)
    assert "method.vicc.freeze_epochs=2" in caplog.text
    assert "'residual' has random weights" in caplog.text
