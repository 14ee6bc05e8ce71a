"""Mined positives: when they start, how many, in which stream, against a slow oracle, and who may read a label."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vidssl.methods.method_parts import (
    DIM,
    QUEUE,
    ROWS,
    a_batch,
    a_recipe,
    adam,
    run,
    slow_mil_nce,
    some_positives,
)
from vidssl.batch import Positives
from vidssl.errors import RecipeError
from vidssl.losses import contrast, info_nce
from vidssl.methods import bank_views_of, build_method
from vidssl.methods.fitted import fitted_space
from vidssl.methods.inline import agreement_weights, mine_in_queue
from vidssl.methods.mined import MinedLoss, Rows
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.oracle import mine_slowly
from vidssl.mining.plan import CascadePlan
from vidssl.mining.progress import topk_at
from vidssl.queue import RingQueue
from vidssl.recipe import Mining


def unit(*shape, seed):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def one_stream(where="inline", **method):
    return a_recipe("infonce", where, cascade=True, **method)


def classes(batch):
    """Labels that follow from the video: six videos (two sources) of a class, one class unknown."""
    return replace(batch, label=torch.where(batch.instance // 6 == 3, -1, batch.instance // 6))


# When mining and the optimizer start


@pytest.mark.parametrize(("size", "pushes"), [(8, 2), (10, 3), (13, 4)])
@pytest.mark.parametrize("name", ["coclr", "cpr", "infonce"])
def test_mining_and_the_optimizer_start_with_the_step_after_the_last_free_slot_was_written(name, size, pushes):
    given = {"cascade": True} if name == "infonce" else {"second_from": "a run"}
    recipe = a_recipe(name, "inline", warmup_steps=0, queue=size, hold_until_full=True, **given)
    method = build_method(recipe).train()
    outputs = [method(a_batch(step)) for step in range(pushes + 2)]
    assert [output.update for output in outputs] == [False] * pushes + [True] * 2
    assert [output.metrics["mining/mined_mean"] > 0 for output in outputs] == [False] * pushes + [True] * 2


@pytest.mark.parametrize("where", ["inline", "actor", "off"])
def test_the_warm_up_is_not_held_and_inline_waits_for_rows_of_the_frozen_encoder(where):
    method = build_method(a_recipe(where=where, hold_until_full=True)).train()
    given = [some_positives(step) if method.needs_positives(step) else None for step in range(8)]
    updates = [method(a_batch(step), given[step]).update for step in range(8)]
    # three steps of warm-up; 10 slots of 4 rows are full after them, and full of frozen rows three steps later
    held = 3 if where == "inline" else 0
    assert updates == [True] * 3 + [False] * held + [True] * (5 - held)


def test_the_warm_up_of_one_stream_is_not_held():
    method = build_method(one_stream("actor", warmup_steps=2, hold_until_full=True)).train()
    assert [method(a_batch(step)).update for step in range(5)] == [True, True, False, True, True]


def test_nothing_is_held_unless_asked_and_info_nce_can_be():
    free, held = (build_method(a_recipe("infonce", hold_until_full=hold)).train() for hold in (False, True))
    assert [free(a_batch(step)).update for step in range(5)] == [True] * 5
    assert [held(a_batch(step)).update for step in range(5)] == [False] * 3 + [True] * 2


def test_while_the_optimizer_waits_the_twin_and_the_queue_go_on():
    method = build_method(one_stream(warmup_steps=0, hold_until_full=True)).train()
    with torch.no_grad():
        for parameter in method.encoder("rgb").parameters():
            parameter.add_(0.1)
    before = [p.clone() for p in method.stream("rgb").key.parameters()]
    assert not method(a_batch(0)).update
    after = list(method.stream("rgb").key.parameters())
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert method.queue.written.sum() == ROWS


@pytest.mark.parametrize("name", ["cpr", "infonce"])
def test_a_resumed_run_mines_and_updates_at_once(name):
    recipe = a_recipe(name, "inline", warmup_steps=0, hold_until_full=True, cascade=True, second_from="a run")
    before = build_method(recipe).train()
    for step in range(3):
        before(a_batch(step))
    after = build_method(recipe, seed=5).train()
    after.load_state_dict(before.state_dict())
    output = after(a_batch(3))
    assert output.update
    assert output.metrics["mining/mined_mean"] == 2


def test_with_mining_off_the_positives_are_the_own_key_and_the_siblings():
    method = build_method(a_recipe(where="off", self_positive="keep")).train()
    run(method, range(5), adam(method))
    before, batch = copy.deepcopy(method), a_batch(5)
    siblings = before.queue.group[None] == batch.group[:, None]
    assert siblings.any()
    output = method(batch, some_positives(5))
    assert output.metrics["mining/mined_mean"] == 0
    assert output.metrics["mining/positives_mean"] == pytest.approx(1 + siblings.sum().item() / ROWS)


def test_a_row_without_siblings_and_mined_is_plain_info_nce():
    recipe, queue = a_recipe("coclr", "inline"), RingQueue(("residual", "rgb"), QUEUE, DIM)
    ids = torch.zeros(QUEUE, dtype=torch.int64)  # one source that is not the rows': but nothing may be mined either
    queue.push({"residual": unit(QUEUE, DIM, seed=0), "rgb": unit(QUEUE, DIM, seed=1)}, ids, ids)
    queue.forget_minable()
    rows = Rows(unit(ROWS, DIM, seed=2), unit(ROWS, DIM, seed=3), unit(ROWS, DIM, seed=4))
    batch = replace(a_batch(0), instance=torch.arange(50, 54), group=torch.arange(50, 54))
    loss, metrics = MinedLoss(recipe, 0, "residual", "rgb")(rows, queue, batch, None)
    expected = info_nce(contrast(rows.query, rows.key, queue.rows("rgb"), 0.07))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["mining/fallback_rate"] == 1


# How many: k grows


@pytest.mark.parametrize(("epoch", "k"), [(0, 1), (19, 1), (20, 3), (39, 3), (40, 5), (400, 5)])
def test_k_of_an_epoch_is_that_of_the_last_pair_that_has_begun(epoch, k):
    assert topk_at(Mining(topk=7, progressive=((0, 1), (20, 3), (40, 5))), epoch) == k
    assert topk_at(Mining(topk=7), epoch) == 7


def test_growing_k_takes_the_best_first_and_the_log_says_how_many():
    grows, one, two = (
        build_method(a_recipe("coclr", "inline", mining, warmup_steps=0, second_from="a run", self_positive="keep"))
        for mining in ({"progressive": ((0, 1), (2, 2))}, {"topk": 1}, {"topk": 2})
    )
    for method in (grows, one, two):
        method.train()
        for step in range(3):
            method(a_batch(step))
    for epoch, other in ((0, one), (1, one), (2, two)):
        output = copy.deepcopy(grows)(a_batch(3, epoch=epoch))
        assert output.loss.item() == copy.deepcopy(other)(a_batch(3, epoch=epoch)).loss.item()
        assert output.metrics["mining/k"] == output.metrics["mining/mined_mean"] == (1 if epoch < 2 else 2)
    assert one(a_batch(3)).loss.item() != two(a_batch(3)).loss.item()


@pytest.mark.parametrize("recipe", [a_recipe(), one_stream("actor")], ids=["cpr", "infonce"])
def test_growing_k_cuts_what_the_bank_sent(recipe):
    mining = recipe.mining.model_copy(update={"progressive": ((0, 1), (5, 2))})
    grows, plain = (build_method(one).train() for one in (recipe.model_copy(update={"mining": mining}), recipe))
    run(plain, range(5), adam(plain))
    grows.load_state_dict(plain.state_dict())
    whole = some_positives(5)
    cut = Positives(whole.ids.copy(), whole.vectors.copy(), whole.mined_at)
    cut.ids[:, 1:], cut.vectors[:, 1:] = -1, 0
    for epoch, given in ((4, cut), (5, whole)):
        ours = copy.deepcopy(grows)(a_batch(5, epoch=epoch), whole)
        assert ours.loss.item() == pytest.approx(copy.deepcopy(plain)(a_batch(5), given).loss.item(), rel=1e-6)
        assert ours.metrics["mining/mined_mean"] == (given.ids >= 0).sum() / ROWS


# CPR on InfoNCE: one stream


def a_copy_of_one_stream(method, batch):
    """Query and key rows of the next step."""
    stream = copy.deepcopy(method).stream("rgb")
    stream.follow(method.options.momentum)
    with torch.no_grad():
        query = torch.nn.functional.normalize(stream.query(batch.clips["rgb"][:, 0]))
        key = torch.nn.functional.normalize(stream.key(batch.clips["rgb"][:, 1]))
    return query, key


@pytest.mark.parametrize(("rule", "share"), [("keep", 0.9), ("drop_p", 1.0), ("remove", 0.5)])
def test_one_stream_mines_in_its_queue_with_key_then_query_then_key(rule, share):
    method = build_method(one_stream(self_positive=rule, drop_p=share, queue=16)).train()
    run(method, range(6), adam(method))
    batch, before = a_batch(6), copy.deepcopy(method)
    query, key = a_copy_of_one_stream(method, batch)
    bank = before.queue.rows("rgb").numpy()
    forbidden = [np.flatnonzero((before.queue.group == g).numpy()) for g in batch.group]
    plan = CascadePlan(16, 3, 0.6, 2)
    assert plan.views == (0, 1, 0)
    queries = [key.numpy(), query.numpy()]
    stages, _ = mine_slowly(queries, [bank, bank], plan, Exclusions.from_lists(forbidden), np.ones(16, bool))
    mined = [set(row[-1]) for row in stages]
    output = method(batch)
    expected = slow_mil_nce(query, key, before.queue, batch, method.options, mined, dropped=share == 1.0)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.metrics["mining/mined_mean"] == 2
    torch.testing.assert_close(output.embeddings["rgb"], key)
    torch.testing.assert_close(output.embeddings["rgb.query"], query)


def test_one_stream_takes_positives_from_the_bank_and_sends_it_keys_and_queries():
    recipe = one_stream("actor", self_positive="keep")
    method = build_method(recipe).train()
    assert [method.needs_positives(step) for step in (0, 2, 3)] == [False, False, True]
    run(method, range(5), adam(method))
    batch, given, before = a_batch(5), some_positives(5), copy.deepcopy(method)
    query, key = a_copy_of_one_stream(method, batch)
    output = method(batch, given)
    expected = slow_mil_nce(query, key, before.queue, batch, method.options, [()] * ROWS, given)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    main, aux = bank_views_of(recipe)
    torch.testing.assert_close(output.embeddings[main], query)
    torch.testing.assert_close(output.embeddings[aux], key)  # the rows that a bank hands out
    assert set(output.embeddings) == {main, aux}


def test_before_its_warm_up_ends_one_stream_is_plain_info_nce():
    plain, mines = build_method(a_recipe("infonce")).train(), build_method(one_stream("actor")).train()
    for step in range(3):
        assert mines(a_batch(step)).loss.item() == plain(a_batch(step)).loss.item()
    assert [mines.period(step) for step in (2, 3)] == ["warmup", "main"]
    assert [plain.period(step) for step in (2, 3)] == ["main", "main"]
    assert not mines.unused_parameters


@pytest.mark.parametrize("cut", [2, 4, 7])
@pytest.mark.parametrize("where", ["actor", "inline"])
def test_a_restored_run_of_one_stream_continues_exactly(where, cut):
    straight, before = (build_method(one_stream(where)).train() for _ in range(2))
    expected = run(straight, range(9), adam(straight))
    optimizer = adam(before)
    losses = run(before, range(cut), optimizer)
    after = build_method(one_stream(where), seed=0).train()
    after.load_state_dict(before.state_dict())
    resumed = adam(after)
    resumed.load_state_dict(optimizer.state_dict())
    assert losses + run(after, range(cut, 9), resumed) == expected


def test_swapped_streams_give_swapped_numbers():
    ours = build_method(a_recipe(where="inline")).train()
    theirs = build_method(a_recipe(where="inline", view="residual", second_view="rgb")).train()
    for view, other in (("rgb", "residual"), ("residual", "rgb")):
        theirs.load_encoder(other, ours.encoder(view).state_dict())
    for step in range(8):
        batch = a_batch(step)
        swapped = replace(batch, clips={"rgb": batch.clips["residual"], "residual": batch.clips["rgb"]})
        assert ours(batch).loss.item() == pytest.approx(theirs(swapped).loss.item(), rel=1e-6)
    assert ours.queue.ready()


# Labels


def filled_queue(seed=0, size=40):
    queue = RingQueue(("residual", "rgb"), size, DIM)
    rng = np.random.default_rng(seed)
    group, label = (torch.from_numpy(rng.integers(low, high, size)) for low, high in ((0, 12), (-1, 3)))
    rows = {"residual": unit(size, DIM, seed=seed), "rgb": unit(size, DIM, seed=seed + 1)}
    queue.push(rows, torch.arange(size), group, label)
    return queue


def test_the_oracle_takes_the_best_of_the_main_view_in_the_rows_class_and_never_siblings():
    queue = filled_queue()
    rows = Rows(unit(5, DIM, seed=7), unit(5, DIM, seed=8), unit(5, DIM, seed=9))
    group, label = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, -1, 9])
    batch = replace(a_batch(0, rows=5), instance=torch.arange(100, 105), group=group, label=label)
    loss = MinedLoss(a_recipe(where="inline", mining={"strategy": "oracle", "topk": 3}, queue=40), 0, "residual", "rgb")
    assert loss.reads_labels
    siblings = queue.same_source(batch.instance, batch.group)
    mined = loss._mine_inline(rows, queue, batch, siblings, 3)
    for row in range(5):
        score = queue.rows("residual") @ rows.main[row]
        mates = [s for s in range(40) if queue.label[s] == label[row] >= 0 and queue.group[s] != group[row]]
        assert set(mined[row].nonzero().flatten().tolist()) == set(sorted(mates, key=lambda s: -score[s])[:3])
    assert mined.sum(1).tolist() == [3, 3, 3, 0, 0]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 0.99, 0.995, 1.0])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_own_source_is_never_mined_in_a_queue_at_any_ratio(stages, ratio):
    size = 64
    queue = RingQueue(("residual", "rgb"), size, DIM)
    group = torch.arange(size) // 6
    near = unit(11, DIM, seed=3)[group]  # the slots of a source lie together, so they would be mined first
    queue.push({"residual": near, "rgb": near}, torch.arange(size), group)
    wanted = torch.arange(10)
    siblings = queue.same_source(torch.full((10,), -1), wanted)
    queries = (unit(11, DIM, seed=3)[:10], unit(11, DIM, seed=3)[:10])
    plan = CascadePlan(size, stages, max(ratio, (5 / size) ** (1 / max(stages - 1, 1)) + 1e-6), 5)
    mined = mine_in_queue(queries, queue, ("residual", "rgb"), siblings, plan, "auto", 5)
    assert mined.sum(1).tolist() == [5] * 10
    assert not (mined & siblings).any()


# How much: weights by agreement


@pytest.mark.parametrize("rule", ["keep", "remove"])
@pytest.mark.parametrize("space", ["raw", "canonical"])
def test_with_weights_by_agreement_a_mined_slot_counts_by_its_weight_and_own_key_and_siblings_once(space, rule):
    mining = {"weights": "agreement", "space": space, "topk": 4, "strategy": "single"}
    recipe = a_recipe(where="inline", mining=mining, queue=40, self_positive=rule)
    loss, queue = MinedLoss(recipe, 0, "residual", "rgb", fitted_space(recipe.mining, DIM, 0)), filled_queue()
    rows = Rows(unit(5, DIM, seed=7), unit(5, DIM, seed=8), unit(5, DIM, seed=9))
    batch = replace(a_batch(0, rows=5), instance=torch.arange(100, 105), group=torch.arange(5))
    siblings = queue.same_source(batch.instance, batch.group)
    found, metrics = loss(rows, queue, batch, None)
    queries, views = (rows.main, rows.query), ("residual", "rgb")
    mined = mine_in_queue(queries, queue, views, siblings, loss.plan, "auto", 4, loss.space, 0)
    weights = agreement_weights(mined, queries, queue, views, loss.space, 0).double()
    assert ((weights - 1).abs() > 0.05).any()
    total = 0.0
    for row in range(5):
        keys = [rows.key[row], *queue.rows("rgb")]
        shares = [math.exp(float(rows.query[row].double() @ key.double()) / 0.07) for key in keys]
        good = sum(
            float(weights[row, slot]) * shares[1 + slot]
            for slot in range(40)
            if mined[row, slot] or siblings[row, slot]
        )
        own = shares[0] if rule == "keep" else 0.0
        total -= math.log((good + own) / (sum(shares) - shares[0] + own))
    assert found.item() == pytest.approx(total / 5, rel=1e-5)
    assert metrics["mining/mined_mean"] == 4


@pytest.mark.parametrize("name", ["coclr", "cpr", "infonce"])
def test_weights_by_agreement_read_no_label_and_change_what_is_learnt_once_positives_are_mined(name):
    options = {"cascade": True} if name == "infonce" else {}
    agreeing = a_recipe(name, "inline", {"weights": "agreement"}, **options)
    (with_labels, _), (without, _) = losses_with(agreeing, True), losses_with(agreeing, False)
    equal, _ = losses_with(a_recipe(name, "inline", {"weights": "equal"}, **options), False)
    left_out, _ = losses_with(a_recipe(name, "inline", **options), False)
    assert with_labels == without
    assert equal == left_out
    first = next(step for step in range(9) if without[step] != equal[step])
    assert 3 <= first < 8  # the warm-up has no mined positives to weigh


def test_weights_by_agreement_are_refused_where_positives_come_from_a_bank_or_a_memory():
    agreeing = {"weights": "agreement"}
    with pytest.raises(
        ValueError, match=r"weights=agreement weighs by both views' rows.*; type mining\.where=inline, or"
    ):
        a_recipe(where="actor", mining=agreeing)
    with pytest.raises(RecipeError, match=r"iic mines in memories; leave mining\.weights out"):
        build_method(a_recipe("iic", "inline", agreeing, cascade=True), instances=40)
    assert a_recipe(where="off", mining=agreeing).mining.weights == "agreement"  # a phase that mines nothing


LABEL_FREE = [
    ("infonce", {}, {}),
    ("infonce", {"cascade": True}, {}),
    ("coclr", {}, {}),
    *(("cpr", {}, {"strategy": strategy}) for strategy in ("cascade", "single", "sum", "minrank")),
]


def losses_with(recipe, labelled):
    """Losses of nine steps with true labels, or without."""
    method = build_method(recipe).train()
    losses = []
    for step in range(9):
        batch = classes(a_batch(step)) if labelled else a_batch(step)
        losses.append(method(batch, some_positives(step) if method.needs_positives(step) else None).loss.item())
    return losses, method


@pytest.mark.parametrize("where", ["inline", "actor"])
@pytest.mark.parametrize(("name", "options", "mining"), LABEL_FREE)
def test_methods_that_learn_without_labels_give_the_same_numbers_with_and_without(name, options, mining, where):
    recipe = a_recipe(name, where, mining, **options)
    (with_labels, method), (without, _) = losses_with(recipe, True), losses_with(recipe, False)
    assert with_labels == without
    assert (method.queue.label == -1).all()


@pytest.mark.parametrize(
    "recipe",
    [
        a_recipe("ubernce"),
        *(a_recipe(n, "inline", {"strategy": "oracle"}, cascade=n == "infonce") for n in ("infonce", "coclr", "cpr")),
    ],
    ids=["ubernce", "infonce-oracle", "coclr-oracle", "cpr-oracle"],
)
def test_upper_bounds_do_read_labels(recipe):
    assert losses_with(recipe, True)[0] != losses_with(recipe, False)[0]


# UberNCE


def test_uber_nce_is_the_mean_log_over_own_key_and_slots_of_the_class():
    method = build_method(a_recipe("ubernce")).train()
    optimizer = adam(method)
    for step in range(4):
        output = method(classes(a_batch(step)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    batch, queue = classes(a_batch(4)), copy.deepcopy(method.queue)
    query, key = a_copy_of_one_stream(method, batch)
    total, matched = 0.0, 0
    for b in range(ROWS):
        logits = np.array([float(query[b] @ key[b]), *(query[b] @ queue.rows("rgb").T).tolist()]) / 0.07
        alike = [int(batch.label[b]) == label >= 0 for label in queue.label.tolist()]
        matched += sum(alike)
        softmax = np.exp(logits) / np.exp(logits).sum()
        total -= np.log(softmax[[True, *alike]]).mean()
    assert matched > 3
    assert method(batch).loss.item() == pytest.approx(total / ROWS, rel=1e-4)
    assert queue.label[:4].tolist() != [-1] * 4


@pytest.mark.parametrize("exclude", [False, True])
def test_uber_nce_is_info_nce_when_no_label_matches(exclude):
    uber, plain = (build_method(a_recipe(name, exclude_siblings=exclude)).train() for name in ("ubernce", "infonce"))
    for step in range(5):
        unknown = a_batch(step)
        alone = replace(unknown, label=torch.arange(ROWS) + 100 * step)
        expected = plain(unknown).loss.item()
        assert copy.deepcopy(uber)(unknown).loss.item() == pytest.approx(expected, rel=1e-6)
        assert uber(alone).loss.item() == pytest.approx(expected, rel=1e-6)


def test_siblings_of_the_class_are_positives_even_where_siblings_are_excluded():
    method = build_method(a_recipe("ubernce", exclude_siblings=True)).train()
    same = replace(a_batch(0), group=torch.full((ROWS,), 7), label=torch.full((ROWS,), 1))
    method(same)
    output = method(replace(a_batch(1), group=same.group, label=same.label))
    assert output.loss > 1  # about log(1+K) where all columns are positive; 0 if they had left the softmax
