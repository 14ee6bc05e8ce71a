"""Mining inline in a space: what the bank would mine, fitted when it is due, kept in the checkpoint, in every method that mines."""

import copy

import numpy as np
import pytest
import torch

from tests.vidssl.methods.method_parts import a_batch, a_recipe, adam
from tests.vidssl.mining.space_worlds import two_views
from vidssl.batch import Embeddings
from vidssl.methods import build_method
from vidssl.methods.fitted import FittedSpace, fitted_space
from vidssl.methods.inline import mine_in_queue
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.mapped import MappedRows
from vidssl.mining.plan import CascadePlan
from vidssl.mining.space import fit_space
from vidssl.queue import RingQueue
from vidssl.recipe import Mining

N, D = 160, 16
VIEWS = ("residual", "rgb")


def tensors(count=N, seed=0):
    return [torch.from_numpy(rows) for rows in two_views(count, D, seed=seed)[0].values()]


def a_space(kind="canonical", refit_steps=10):
    return FittedSpace(kind, refit_steps, D, 0).train()


@pytest.mark.parametrize("kind", ["white", "canonical", "auto"])
@pytest.mark.parametrize("strategy", ["cascade", "single", "sum", "minrank"])
def test_a_queue_and_a_bank_of_the_same_rows_mine_the_same(kind, strategy):
    plan, rows = CascadePlan(N, 3, 0.4, 4, strategy=strategy), dict(zip(VIEWS, tensors(), strict=True))
    queue, slots = RingQueue(VIEWS, N, D), torch.arange(N)
    queue.push(rows, slots, slots)
    forbidden = torch.eye(N, dtype=torch.bool)
    picked = mine_in_queue(tuple(rows.values()), queue, VIEWS, forbidden, plan, "auto", 4, a_space(kind), 3)
    bank = EmbeddingBank(N, D, VIEWS, mapped=MappedRows(kind))
    bank.push(Embeddings({view: part.numpy() for view, part in rows.items()}, slots.numpy(), 3, 0))
    ids = bank.mine(slots.numpy(), plan, *VIEWS).ids
    expected = torch.zeros_like(forbidden).scatter_(1, torch.from_numpy(ids), True)
    assert (picked != expected).sum() <= 2  # scores that float32 makes equal


@pytest.mark.parametrize(("refit_steps", "fits"), [(None, [0, 10, 20]), (7, [0, 7, 14, 21])])
def test_it_is_fitted_when_half_of_the_rows_are_new_or_at_multiples_but_not_while_it_is_evaluated(refit_steps, fits):
    space, at = a_space("white", refit_steps), []
    for step in range(25):
        if step == 12:
            space.eval()(29, 8, (), tensors(seed=1))
            space.train()
        space(step, N // 20, (), tensors(seed=step))
        at.append(int(space.fitted[1]))
    assert sorted(set(at)) == fits


def test_before_it_is_fitted_rows_stay_as_they_are():
    rows = tensors()
    queries, bank = a_space().eval()(0, 8, rows, rows)
    assert all(one is other for one, other in zip([*queries, *bank], rows * 2, strict=True))


def test_the_images_are_those_of_the_space_that_the_rows_carry():
    rows = tensors()
    queries, bank = a_space()(0, 8, [part[:3] for part in rows], rows)
    expected = fit_space("canonical", {"0": rows[0].numpy(), "1": rows[1].numpy()})
    for place in (0, 1):
        image = expected.apply(place, rows[place].numpy())
        np.testing.assert_allclose(bank[place][:, : expected.columns], image, atol=1e-5)
        np.testing.assert_allclose(queries[place], bank[place][:3], atol=1e-6)
        assert not bank[place][:, expected.columns :].any()


def test_one_stream_that_is_both_views_is_whitened():
    rows = tensors()[0]
    space = a_space("canonical")
    _, bank = space(0, 8, (), [rows, rows])
    np.testing.assert_allclose(bank[0], fit_space("white", {"0": rows.numpy()}).apply(0, rows.numpy()), atol=1e-5)
    assert torch.equal(bank[0], bank[1])


def test_autocast_does_not_round_the_images():
    rows = tensors()
    space = a_space("white")
    _, plain = space(0, 8, (), rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, cast = space(1, 8, (), rows)
    assert torch.equal(plain[0], cast[0])


def test_what_is_raw_or_in_the_bank_has_no_space_in_its_checkpoint():
    assert fitted_space(Mining(where="inline"), D, 0) is None
    assert fitted_space(Mining(where="actor", space="white"), D, 0) is None
    raw, white = (build_method(a_recipe("cpr", "inline", {"space": kind})) for kind in ("raw", "white"))
    assert {key for key in white.state_dict() if key not in raw.state_dict()} == {
        "space.means",
        "space.matrices",
        "space.fitted",
    }


def methods():
    spaced = {"space": "white", "refit_steps": 4}
    return {
        "cpr": a_recipe("cpr", "inline", spaced, queue=12, warmup_steps=1),
        "coclr": a_recipe("coclr", "inline", spaced, queue=12, warmup_steps=1),
        "infonce": a_recipe("infonce", "inline", spaced, queue=12, warmup_steps=1, cascade=True),
        "iic": a_recipe("iic", "inline", spaced, warmup_steps=1, cascade=True, iic={"negatives": 6, "normalize": True}),
    }


def train(method, steps):
    optimizer, losses = adam(method), []
    for step in steps:
        output = method(a_batch(step))
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses


@pytest.mark.parametrize("name", ["cpr", "coclr", "infonce", "iic"])
def test_every_method_that_mines_inline_goes_on_in_the_space_of_its_checkpoint(name):
    straight = build_method(methods()[name], instances=24).train()
    train(straight, range(14))
    assert straight.space.fitted[0] == 1  # white
    assert straight.space.fitted[1] % 4 == 0
    resumed = build_method(methods()[name], seed=7, instances=24).train()
    resumed.seed = straight.seed
    if getattr(resumed, "mined", None) is not None:
        resumed.mined.seed = straight.seed
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for step in range(14, 22):
        assert resumed(a_batch(step)).loss.item() == straight(a_batch(step)).loss.item()
    for one, other in zip(straight.space.buffers(), resumed.space.buffers(), strict=True):
        assert torch.equal(one, other)


def test_training_in_a_space_differs_from_training_in_the_rows():
    recipe = methods()["cpr"]
    raw = recipe.model_copy(update={"mining": recipe.mining.model_copy(update={"space": "raw"})})
    losses = [train(build_method(one).train(), range(14)) for one in (recipe, raw)]
    assert losses[0][:4] == losses[1][:4]
    assert losses[0] != losses[1]
