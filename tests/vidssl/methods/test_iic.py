"""IIC against slow loops: columns, both losses, memories, the cascade on them, exact continuation, refusals."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vidssl.batch import ClipBatch
from vidssl.errors import DataError, RecipeError
from vidssl.methods import build_method
from vidssl.methods.iic import IIC
from vidssl.recipe import Recipe
from vidssl.views import make_views

DIM, ROWS, VIDEOS, K = 8, 4, 20, 6


def a_recipe(per_video=1, view="rgb", second="residual", mining=None, cascade=False, model=None, method=None, **iic):
    return Recipe.model_validate(
        {
            "clips": {"per_video": per_video},
            "model": {"dim": DIM, "width": 2} | (model or {}),
            "method": {"name": "iic", "view": view, "second_view": second, "cascade": cascade}
            | (method or {})
            | {"iic": {"negatives": K} | iic},
            "mining": {"where": "inline", "topk": 2, "stages": 3, "ratio": 0.6} | (mining or {}),
        }
    )


def a_method(seed=0, rows=None, **given):
    if rows is None:
        return build_method(a_recipe(**given), seed, VIDEOS).train()
    torch.manual_seed(seed)
    return IIC(a_recipe(**given), seed, VIDEOS, rows).train()


def a_batch(step, per_video=1, rows=ROWS, videos=VIDEOS, epoch=0):
    generator = torch.Generator().manual_seed(1000 + step)
    rgb = torch.rand(rows, per_video, 3, 4, 16, 16, generator=generator)
    instance = torch.randperm(videos, generator=generator)[:rows]
    views = make_views(rgb, ("rgb", "residual"), boundary="wrap", scale="half_shift")
    start = torch.randint(0, 50, (rows, per_video), generator=generator)
    return ClipBatch(views, instance, instance // 3, torch.full((rows,), -1), epoch, step, start)


def run(method, steps, optimizer=None, **given):
    """Outputs of some steps; plain SGD unless an optimizer is given."""
    optimizer = optimizer or torch.optim.SGD(method.parameters(), lr=0.01)
    outputs = []
    for step in steps:
        outputs.append(method(a_batch(step, **given)))
        optimizer.zero_grad(set_to_none=True)
        outputs[-1].loss.backward()
        optimizer.step()
    return outputs


class Told(nn.Module):
    """A network that has made up its mind: rows of the first view, of the second, of the intra-negative."""

    def __init__(self, rows=ROWS, dtype=torch.float32, calls=3, scale=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        made = scale * torch.randn(calls, rows, DIM, generator=generator, dtype=dtype)
        self.rows = nn.ParameterList([nn.Parameter(part) for part in made])
        self.given = []

    def forward(self, clips):
        self.given.append(clips)
        return self.rows[(len(self.given) - 1) % len(self.rows)]


def told(method, **given):
    network = Told(**given)
    method.stream("rgb").query = network
    return network


def ids_of(method, batch):
    """The drawn videos, made again as the method makes them."""
    from vidssl.memory import drawn_ids

    return drawn_ids(method.seed, batch.step, batch.instance.numpy(), method.drawn_from, K)


def slow_loss(method, network, batch, mined=None):
    """The loss from the table in the docstring, column by column, with Python sums."""
    options, temperature, ids = method.iic, method.options.temperature, ids_of(method, batch)
    unit = torch.nn.functional.normalize
    first, second, fresh = (part.detach().double() for part in network.rows)
    memory = {name: method.memory.rows(name).double() for name in method.memory.names}
    total = 0.0
    for z, other in ((first, memory["second"]), (second, memory["first"])):
        z = unit(z) if options.normalize else z
        for b in range(batch.size):
            found = [] if mined is None else [i for i in mined[b] if i >= 0]
            columns = [(z[b] @ other[ids[b, 0]], True)]
            columns += [(z[b] @ other[j], False) for j in ids[b, 1:] if j not in found]
            columns += [(z[b] @ other[j], True) for j in found]
            if options.intra != "none" and options.intra_negative == "bank":
                columns += [(z[b] @ memory["intra"][j], False) for j in ids[b]]
            elif options.intra != "none":
                columns += [(z[b] @ unit(fresh[b], dim=0), False)]
            weights = [(math.exp(float(s) / temperature), good) for s, good in columns]
            total -= math.log(sum(w for w, good in weights if good) / sum(w for w, _ in weights))
    return total / batch.size


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        {"intra": "none"},
        {"intra": "none", "intra_negative": "live"},
        {"intra_negative": "bank"},
        {"intra_negative": "live"},
        {"intra": "shuffle", "intra_negative": "live_stopped"},
    ],
)
def test_the_loss_equals_a_slow_loop_over_columns(kind, normalize):
    method = a_method(normalize=normalize, **kind)
    run(method, range(5))  # memories hold rows of their own
    network, batch = told(method), a_batch(5)
    expected = slow_loss(method, network, batch)
    assert method(batch).loss.item() == pytest.approx(expected, rel=1e-4)


def test_columns_of_the_published_layout():
    method = a_method()
    run(method, range(3))
    network, batch = told(method), a_batch(3)
    ids = torch.from_numpy(ids_of(method, batch))
    rows = {"first": network.rows[0], "second": network.rows[1]}
    memory = {name: method.memory.rows(name).clone() for name in method.memory.names}
    for table, z, other in zip(method.tables(rows, ids), network.rows, ("second", "first"), strict=False):
        scores = table.logits * method.options.temperature
        assert scores.shape == (ROWS, 2 * (K + 1))
        assert table.intra == K + 1
        assert table.positive.nonzero()[:, 1].tolist() == [0] * ROWS
        assert table.valid.all()
        for b, y in enumerate(batch.instance.tolist()):
            torch.testing.assert_close(scores[b, 0], z[b] @ memory[other][y])
            torch.testing.assert_close(scores[b, K + 1], z[b] @ memory["intra"][y])
            torch.testing.assert_close(scores[b, 1 : K + 1], memory[other][ids[b, 1:]] @ z[b])
            torch.testing.assert_close(scores[b, K + 2 :], memory["intra"][ids[b, 1:]] @ z[b])


def test_rows_of_the_memories_are_unit_rows_after_a_step_and_only_the_batchs_move():
    method, batch = a_method(), a_batch(0)
    before = {name: method.memory.rows(name).clone() for name in method.memory.names}
    method(batch)
    others = [i for i in range(VIDEOS) if i not in batch.instance.tolist()]
    assert method.memory.names == ("first", "second", "intra")
    for name in method.memory.names:
        torch.testing.assert_close(method.memory.rows(name)[batch.instance].norm(dim=1), torch.ones(ROWS))
        assert torch.equal(method.memory.rows(name)[others], before[name][others])
        assert not torch.equal(method.memory.rows(name)[batch.instance], before[name][batch.instance])
    assert "intra" not in a_method(intra_negative="live").memory.names


def test_evaluation_changes_nothing():
    for loss in ("softmax", "nce"):
        method = a_method(loss=loss).eval()
        before = copy.deepcopy(method.state_dict())
        assert method(a_batch(0)).loss.isfinite()
        after = method.state_dict()
        assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


@pytest.mark.parametrize(
    ("per_video", "second", "of", "expected"),
    [
        (1, "residual", "first", [("rgb", 0), ("residual", 0), ("rgb", 0)]),
        (2, "residual", "second", [("rgb", 0), ("residual", 1), ("residual", 0)]),
        (2, "rgb", "first", [("rgb", 0), ("rgb", 1), ("rgb", 0)]),
        (1, "rgb", "first", [("rgb", 0), ("rgb", 0)]),
    ],
)
def test_which_clip_each_pass_sees(per_video, second, of, expected):
    method = a_method(per_video=per_video, second=second, intra_of=of, intra="rot90")
    network = told(method)
    batch = a_batch(0, per_video)
    output = method(batch)
    assert len(network.given) == len(expected)
    for number, (clips, (view, clip)) in enumerate(zip(network.given, expected, strict=True)):
        want = batch.clips[view][:, clip]
        turned = number == len(expected) - 1
        assert torch.equal(clips, torch.rot90(want, 1, (3, 4)) if turned else want)
    assert set(output.embeddings) == {"rgb", second}
    torch.testing.assert_close(output.embeddings["rgb"], nn.functional.normalize(network.rows[0].detach()))


def test_one_network_serves_all_views_and_its_batch_norms_see_three_batches():
    method = a_method()
    assert method.encoder("rgb") is method.encoder("residual")
    assert method.stream("u") is method.stream("rgb")
    assert method.stream("rgb").key is None
    method(a_batch(0))
    counts = [int(rows) for name, rows in method.state_dict().items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {3}


@pytest.mark.parametrize(("kind", "reached"), [("bank", False), ("live", True), ("live_stopped", False)])
def test_only_a_live_negative_takes_gradient(kind, reached):
    method = a_method(intra_negative=kind)
    network = told(method)
    method(a_batch(0)).loss.backward()
    assert network.rows[0].grad is not None
    assert network.rows[1].grad is not None
    assert (network.rows[2].grad is not None) == reached


@pytest.mark.parametrize("loss", ["softmax", "nce"])
@pytest.mark.parametrize("kind", ["bank", "live"])
def test_gradients_are_those_of_finite_differences(loss, kind):
    method = a_method(loss=loss, intra_negative=kind, method={"temperature": 0.5}).double().eval()
    method.log_z.fill_(4.0)
    ids = torch.from_numpy(ids_of(method, a_batch(0)))
    torch.manual_seed(1)
    given = [torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def both(first, second, intra):
        tables = method.tables({"first": first, "second": second, "intra": intra}, ids)
        return sum(method._loss(table, number) for number, table in enumerate(tables))

    inputs = given if kind == "live" else [*given[:2], given[2].detach()]
    assert torch.autograd.gradcheck(both, inputs)


def test_z_is_fixed_by_the_first_batch_and_survives_a_checkpoint():
    method = a_method(loss="nce")
    assert method.log_z.isnan().all()
    network, batch = told(method), a_batch(0)
    ids = torch.from_numpy(ids_of(method, batch))
    tables = method.tables({"first": network.rows[0], "second": network.rows[1]}, ids)
    plain = [math.log(VIDEOS * table.logits.double().exp().mean().item()) for table in tables]
    method(batch)
    assert method.log_z.tolist() == pytest.approx(plain, rel=1e-5)
    fixed = method.log_z.clone()
    method(a_batch(1))
    assert torch.equal(method.log_z, fixed)
    again = a_method(loss="nce", seed=3)
    again.load_state_dict({**again.state_dict(), "log_z": method.state_dict()["log_z"]})
    again(a_batch(2))
    assert torch.equal(again.log_z, fixed)


@pytest.mark.parametrize("given", [{}, {"cascade": True}, {"loss": "nce", "intra": "rot"}, {"intra_negative": "live"}])
def test_a_resumed_run_continues_exactly(given):
    straight = a_method(**given)
    optimizer = torch.optim.SGD(straight.parameters(), lr=0.01, momentum=0.9)
    run(straight, range(4), optimizer)
    kept = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    expected = [output.loss.item() for output in run(straight, range(4, 7), optimizer)]
    resumed = a_method(**given)
    resumed.load_state_dict(kept[0])
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.01, momentum=0.9)
    optimizer.load_state_dict(kept[1])
    assert [output.loss.item() for output in run(resumed, range(4, 7), optimizer)] == expected


def test_labels_are_never_read():
    one, other = a_method(cascade=True), a_method(cascade=True)
    for step in range(6):
        batch = a_batch(step)
        same = other(replace(batch, label=batch.instance % 2)).loss
        assert torch.equal(one(batch).loss, same)


def test_negatives_come_from_the_given_videos_alone():
    visited = np.arange(0, VIDEOS, 2)
    method = a_method(rows=visited)
    network, batch = told(method), a_batch(0)
    seen = {}
    real = method.tables

    def listening(rows, ids, mined=None):
        seen["ids"] = ids
        return real(rows, ids, mined)

    method.tables = listening
    method(batch)
    assert set(seen["ids"][:, 1:].flatten().tolist()) <= set(visited.tolist())
    assert seen["ids"][:, 0].tolist() == batch.instance.tolist()
    assert network.given


def test_metrics_say_what_they_are_called():
    method = a_method()
    run(method, range(5))
    network, known = told(method), a_batch(4)  # these videos have been seen: their rows are unit rows
    batch = replace(a_batch(5), instance=known.instance, group=known.group)
    memory = {name: method.memory.rows(name).clone() for name in method.memory.names}
    metrics = method(batch).metrics
    cosine = torch.nn.functional.cosine_similarity
    margins = [
        cosine(z, memory[other][batch.instance]) - cosine(z, memory["intra"][batch.instance])
        for z, other in zip(network.rows, ("second", "first"), strict=False)
    ]
    assert metrics["iic/intra_margin"].item() == pytest.approx(torch.cat(margins).mean().item(), abs=1e-5)
    norms = torch.cat([network.rows[0], network.rows[1]]).norm(dim=1).mean().item()
    assert metrics["iic/norm"].item() == pytest.approx(norms)
    assert metrics["loss/total"] == metrics["loss/first"] + metrics["loss/second"]
    assert "iic/intra_margin" not in a_method(intra="none")(batch).metrics


def test_the_norm_is_that_of_the_network_even_where_scores_are_normalised():
    method = a_method(normalize=True)
    network = told(method, scale=6.0)
    norms = torch.cat([network.rows[0], network.rows[1]]).norm(dim=1).mean().item()
    assert method(a_batch(0)).metrics["iic/norm"].item() == pytest.approx(norms)


def test_a_video_twice_is_refused_and_the_loaders_copy_counts_once():
    batch = a_batch(0)
    twice = batch.instance.clone()
    twice[2] = twice[0]
    with pytest.raises(DataError, match=f"video {int(twice[0])} comes twice in one step with different clips"):
        a_method()(replace(batch, instance=twice))
    start = batch.start.clone()
    start[2] = start[0]
    method = a_method()
    network = told(method)
    old = method.memory.rows("first")[twice[0]].clone()
    method(replace(batch, instance=twice, start=start))
    kept = nn.functional.normalize(0.5 * old + 0.5 * network.rows[0][0].detach(), dim=0)
    torch.testing.assert_close(method.memory.rows("first")[twice[0]], kept)


def test_a_video_without_a_memory_row_is_refused():
    batch = a_batch(0)
    with pytest.raises(DataError, match=f"video {VIDEOS} has no row in memories of {VIDEOS} videos"):
        a_method()(replace(batch, instance=batch.instance - batch.instance.max() + VIDEOS))


def test_autocast_leaves_scores_and_loss_in_full_precision():
    method = a_method(cascade=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(a_batch(0))
    assert output.loss.dtype == torch.float32
    assert output.embeddings["rgb"].dtype == torch.float32


def test_trained_weights_start_the_one_network_from_either_view():
    donor, method = a_method(seed=1), a_method(seed=2)
    method.start_from(donor.artifact("residual"))
    state = donor.encoder("rgb").state_dict()
    assert all(torch.equal(rows, state[name]) for name, rows in method.encoder("residual").state_dict().items())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"second": "flow"}, r"one network for rgb \(3 channels\) and flow \(2\); type method\.second_view=residual"),
        ({"method": {"second_from": "x"}}, "one network for both views; type method.first_from"),
        ({"cascade": True, "mining": {"strategy": "oracle"}}, "oracle reads labels.*type mining.strategy=cascade"),
        ({"cascade": True, "loss": "nce"}, "nce knows one positive.*type method.iic.loss=softmax"),
        ({"cascade": True, "mining": {"topk": 21}}, r"mining\.topk=21 of 20 slots"),
        ({"model": {"head": "none"}}, r"model\.head=none gives 16 columns, not model\.dim=8; type model\.dim=16"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(RecipeError, match=sentence):
        a_method(**given)


def test_flow_with_as_many_channels_as_the_frames_is_a_second_view():
    assert a_method(second="flow", model={"flow_channels": 3}).second_view == "flow"


def slowly_mined(method, batch, k=2):
    """Ids [B][k] by the cascade of three stages in plain Python: second memory, first, second; N·0.6, N·0.36, k."""
    seen = method.memory.seen.tolist()
    memory = [method.memory.rows(name).double() for name in ("second", "first")]
    n = sum(seen)
    mined = []
    for y, group in zip(batch.instance.tolist(), batch.group.tolist(), strict=True):
        left = [j for j in range(VIDEOS) if seen[j] and j // 3 != group]
        for view, size in zip((0, 1, 0), (max(2, int(n * 0.6)), max(2, int(n * 0.36)), 2), strict=True):
            score = memory[view] @ memory[view][y]
            left = sorted(left, key=lambda j: -float(score[j]))[:size]
        mined.append((left[:k] + [-1] * k)[:k] if seen[y] else [-1] * k)
    return mined


@pytest.mark.parametrize("kind", [{"intra": "none"}, {}, {"intra_negative": "live"}])
@pytest.mark.parametrize("steps", [2, 12])  # few videos seen; nearly all
def test_mined_videos_are_positives_and_leave_the_negatives(steps, kind):
    method = a_method(cascade=True, normalize=True, **kind)
    run(method, range(steps))
    network, batch = told(method), a_batch(steps)
    mined = slowly_mined(method, batch)
    expected = slow_loss(method, network, batch, mined)
    ids = ids_of(method, batch)
    if steps == 12:
        assert any(set(row) & set(ids[b, 1:].tolist()) for b, row in enumerate(mined))  # else nothing leaves
    output = method(batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    counts = np.array([sum(i >= 0 for i in row) for row in mined])
    assert output.metrics["mining/mined_mean"].item() == pytest.approx(counts.mean())
    assert output.metrics["mining/fallback_rate"].item() == pytest.approx((counts == 0).mean())


def test_own_siblings_and_unseen_videos_are_never_mined():
    method = a_method(cascade=True, mining={"topk": 5, "stages": 1})
    for step in range(10):
        batch = a_batch(step)
        mined, seen = method._mined(batch), method.memory.seen.clone()
        for y, row in zip(batch.instance.tolist(), mined.tolist(), strict=True):
            found = [i for i in row if i >= 0]
            assert all(seen[i] and i // 3 != y // 3 for i in found)
            possible = sum(bool(seen[i]) and i // 3 != y // 3 for i in range(VIDEOS))
            assert len(found) == (min(5, possible) if seen[y] else 0)
        method(batch)


def test_the_cascade_waits_for_the_warm_up_and_takes_more_positives_later():
    given = {"mining": {"topk": 4, "stages": 1, "progressive": [[0, 1], [2, 3]]}, "method": {"warmup_steps": 6}}
    method, plain = a_method(cascade=True, **given), a_method(cascade=False)
    assert [method.period(step) for step in (0, 5, 6)] == ["warmup", "warmup", "main"]
    assert plain.period(0) == "main"
    ours, theirs = run(method, range(6)), run(plain, range(6))
    assert [output.loss.item() for output in ours] == [output.loss.item() for output in theirs]
    assert method._mined(a_batch(6, epoch=0)).shape == (ROWS, 1)
    late = method._mined(a_batch(6, epoch=2))
    assert late.shape == (ROWS, 3)
    assert torch.equal(late[:, :1], method._mined(a_batch(6, epoch=1)))  # the best of the same order
    assert method(a_batch(6)).loss.item() != plain(a_batch(6)).loss.item()


def test_rivals_of_the_cascade_mine_by_their_own_rule():
    found = {}
    for strategy in ("single", "sum", "minrank"):
        method = a_method(cascade=True, mining={"strategy": strategy, "topk": 3})
        for step in range(12):
            method(a_batch(step))
        batch = a_batch(12)
        found[strategy] = method._mined(batch)
        second, first = method.memory.rows("second"), method.memory.rows("first")
        scores = [rows[batch.instance] @ rows.T for rows in (second, first)]
        banned = ~method.memory.seen | (torch.arange(VIDEOS) // 3 == batch.group[:, None])
        for b in range(ROWS):
            allowed = [j for j in range(VIDEOS) if not banned[b, j]]
            key = {
                "single": lambda j: -scores[0][b, j],  # noqa: B023
                "sum": lambda j: -(scores[0][b, j] + scores[1][b, j]),  # noqa: B023
                "minrank": lambda j: max(sum(s[b, i] > s[b, j] for i in allowed) for s in scores),  # noqa: B023
            }[strategy]
            expected = sorted(allowed, key=lambda j: (float(key(j)), j))[:3]
            assert found[strategy][b].tolist() == expected
    assert len({tuple(ids.flatten().tolist()) for ids in found.values()}) == 3


def test_the_cascade_is_planned_for_the_videos_that_are_trained_on():
    words = {"name": "iic", "cascade": True}
    mining = {"where": "inline", "topk": 5, "stages": 3, "pool": 20}
    recipe = Recipe.model_validate({"model": {"dim": 8, "width": 2}, "method": words, "mining": mining})
    plan = build_method(recipe, 0, 150, np.arange(100)).plan
    assert plan.n_slots == 100
    assert plan.last_pool == 20
    assert plan.sizes(100) == (int(100 * (20 / 100) ** 0.5), 20, 5) == (44, 20, 5)


def test_a_method_that_is_built_for_its_encoder_alone_needs_no_number_of_videos():
    assert build_method(a_recipe(cascade=True)).encoder("residual").dim == DIM


MOVING, SIDE = 32, 24


def a_moving_batch(step, rows=16):
    """A coloured blob per video, each on its own path around a torus; every clip begins at another time."""
    paths = torch.Generator().manual_seed(0)
    place = torch.rand(MOVING, 2, generator=paths) * SIDE
    speed = (torch.rand(MOVING, 2, generator=paths) - 0.5) * 6
    colour = torch.rand(MOVING, 3, generator=paths)
    generator = torch.Generator().manual_seed(step)
    videos = torch.randperm(MOVING, generator=generator)[:rows]
    time = torch.arange(8) + torch.randint(0, 8, (rows, 1), generator=generator)
    centre = place[videos, None] + time[:, :, None] * speed[videos, None]
    line = torch.arange(SIDE)
    gap = torch.remainder(line - centre[..., None] + SIDE / 2, SIDE) - SIDE / 2  # [B, T, 2, SIDE]
    blob = torch.exp(-(gap[:, :, 0, :, None] ** 2 + gap[:, :, 1, None] ** 2) / 12)
    rgb = blob[:, None, None] * colour[videos][:, None, :, None, None, None]
    views = make_views(rgb, ("rgb", "residual"), boundary="wrap", scale="half_shift")
    start = torch.zeros(rows, 1, dtype=torch.int64)
    return ClipBatch(views, videos, videos, torch.full((rows,), -1), step // 2, step, start)


@pytest.mark.slow
def test_intra_negatives_drive_a_clip_away_from_its_frozen_self():
    alike = {}
    for intra in ("none", "repeat"):
        given = a_recipe(
            model={"dim": 32, "width": 4, "head": "none"}, intra=intra, intra_negative="live", negatives=24
        )
        method = build_method(given, 0, MOVING).train()
        optimizer = torch.optim.SGD(method.parameters(), lr=0.03, momentum=0.9)
        losses = []
        for step in range(80):
            output = method(a_moving_batch(step))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            losses.append(output.loss.item())
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
        clips = a_moving_batch(1000).clips["rgb"][:, 0]
        encoder = method.eval().encoder("rgb")
        with torch.no_grad():
            frozen = encoder(clips[:, :, :1].expand_as(clips))
            alike[intra] = float(nn.functional.cosine_similarity(encoder(clips), frozen).mean())
    assert alike["repeat"] < alike["none"] - 0.2
