"""Methods: a slow oracle of the step, phases, exact continuation, and that labels are never read."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.vidssl.methods.method_parts import DIM, ROWS, a_batch, a_recipe, adam, run, slow_mil_nce, some_positives
from vidssl.batch import Positives
from vidssl.errors import CheckpointError, RecipeError
from vidssl.methods import bank_views_of, build_method, mining_of
from vidssl.recipe import Recipe


def slow_main_loss(method, batch, given, dropped):
    """Loss, keys and second rows of a main step of two streams, from a copy of the method before the step."""
    trained, second = method.stream("rgb"), method.stream("residual")
    trained.follow(method.options.momentum)
    with torch.no_grad():
        unit = torch.nn.functional.normalize
        q = unit(trained.query(batch.clips["rgb"][:, 0]))
        k = unit(trained.key(batch.clips["rgb"][:, 1]))
        kf = unit(second.query.eval()(batch.clips["residual"][:, 1]))
    nothing = [()] * batch.size
    return slow_mil_nce(q, k, method.queue, batch, method.options, nothing, given, dropped), k, kf


@pytest.mark.parametrize(("rule", "share"), [("keep", 0.9), ("drop_p", 1.0), ("drop_p", 0.0), ("remove", 0.5)])
def test_main_step_with_bank_positives_equals_the_slow_oracle(rule, share):
    method = build_method(a_recipe(self_positive=rule, drop_p=share)).train()
    optimizer = adam(method)
    run(method, range(5), optimizer)  # the queue is full, two slots were written twice
    batch, given = a_batch(5), some_positives(5)
    given.ids[2, 0] = next(i for i in method.queue.instance.tolist() if i not in given.ids[2])  # in queue and bank
    given.ids[3, 0] = next(i for i in method.queue.instance.tolist()[::-1] if i not in given.ids[3])
    expected, key, second = slow_main_loss(copy.deepcopy(method), batch, given, share == 1.0)
    output = method(batch, given)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(output.embeddings["rgb"], key)
    torch.testing.assert_close(output.embeddings["residual"], second)
    assert output.metrics["mining/fallback_rate"] == 0.25
    assert output.metrics["mining/mined_mean"] == 1.25


def test_a_row_without_mined_positives_is_info_nce_with_its_siblings_rule():
    method = build_method(a_recipe(self_positive="keep")).train()
    run(method, range(5), adam(method))
    batch, none = a_batch(5), Positives.none(ROWS, 2, DIM)
    other = copy.deepcopy(method)
    assert method(batch, none).loss.item() == other(batch, None).loss.item()


def test_info_nce_ignores_slots_never_written_and_siblings_where_asked():
    method = build_method(a_recipe("infonce")).train()
    assert method(a_batch(0)).loss.item() == pytest.approx(0.0, abs=1e-6)  # only the own key is there
    first, second = a_batch(0), a_batch(1)
    second = replace(second, group=first.group, instance=first.instance + 100)
    keeps, excludes = (build_method(a_recipe("infonce", exclude_siblings=e)).train() for e in (False, True))
    for method in (keeps, excludes):
        method(replace(first, group=torch.full((ROWS,), 7)))
    alike = replace(second, group=torch.full((ROWS,), 7))
    assert excludes(alike).loss.item() == pytest.approx(0.0, abs=1e-6)
    assert keeps(alike).loss > 0.1


def test_the_twin_moves_before_it_makes_the_keys():
    method = build_method(a_recipe("infonce", momentum=0.0)).train()
    with torch.no_grad():
        for parameter in method.encoder("rgb").parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch, now = a_batch(0), copy.deepcopy(method.encoder("rgb"))
    key = torch.nn.functional.normalize(now(batch.clips["rgb"][:, 1])).detach()
    torch.testing.assert_close(method(batch).embeddings["rgb"], key)


def test_warm_up_trains_both_streams_then_the_second_is_frozen_for_good():
    method = build_method(a_recipe()).train()
    optimizer = adam(method)
    fixed = {name: p.clone() for name, p in method.named_parameters()}

    def moved(view):
        prefix = f"streams.{view}.query"
        return any(not torch.equal(p, fixed[name]) for name, p in method.named_parameters() if name.startswith(prefix))

    run(method, range(3), optimizer)
    assert moved("rgb")
    assert moved("residual")
    assert not method.frozen
    fixed = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    run(method, range(3, 6), optimizer)
    assert method.frozen
    assert moved("rgb")
    assert not moved("residual")
    frozen = {k: v for k, v in method.state_dict().items() if k.startswith("streams.residual.query")}
    assert all(torch.equal(value, fixed[key]) for key, value in frozen.items())  # batch-norm statistics too
    method.train()
    output = method(a_batch(6), some_positives(6))
    rows = method.encoder("residual").eval()(a_batch(6).clips["residual"][:, 1])
    torch.testing.assert_close(output.embeddings["residual"], torch.nn.functional.normalize(rows).detach())


def test_warm_up_loss_is_the_sum_of_two_lone_info_nce_runs():
    both = build_method(a_recipe()).train()
    lone = {view: build_method(a_recipe("infonce", view=view)).train() for view in ("rgb", "residual")}
    for view, method in lone.items():
        method.load_encoder(view, both.encoder(view).state_dict())
    for step in range(3):
        parts = {view: method(a_batch(step)) for view, method in lone.items()}
        output = both(a_batch(step))
        assert output.loss.item() == pytest.approx(sum(part.loss.item() for part in parts.values()), rel=1e-5)
        assert output.metrics["loss/residual"] == pytest.approx(parts["residual"].loss.item(), rel=1e-5)
        torch.testing.assert_close(output.embeddings["rgb"], parts["rgb"].embeddings["rgb"])


def test_inline_mining_starts_when_every_slot_was_written_by_the_frozen_encoder():
    method = build_method(a_recipe(where="inline")).train()
    optimizer, mined = adam(method), []
    for step in range(9):
        output = method(a_batch(step))
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        mined.append(float(output.metrics.get("mining/mined_mean", -1)))
    # frozen at step 3; 10 slots of 4 rows need three pushes (steps 3, 4, 5)
    assert mined == [-1, -1, -1, 0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("name", ["infonce", "cpr"])
def test_the_queue_takes_keys_with_the_ids_they_came_from(name):
    method = build_method(a_recipe(name)).train()
    output = method(a_batch(0))
    queue, batch = method.queue, a_batch(0)
    assert torch.equal(queue.instance[:ROWS], batch.instance)
    assert torch.equal(queue.group[:ROWS], batch.group)
    assert torch.equal(queue.rows("rgb")[:ROWS], output.embeddings["rgb"])


@pytest.mark.parametrize("where", ["actor", "inline"])
@pytest.mark.parametrize("cut", [2, 3, 5, 8])
def test_a_run_restored_from_its_state_dict_continues_exactly(where, cut):
    straight = build_method(a_recipe(where=where)).train()
    expected = run(straight, range(10), adam(straight))
    before = build_method(a_recipe(where=where)).train()
    optimizer = adam(before)
    losses = run(before, range(cut), optimizer)
    after = build_method(a_recipe(where=where), seed=0).train()
    for parameter in after.parameters():
        parameter.data.zero_()
    after.load_state_dict(before.state_dict())
    resumed = adam(after)
    resumed.load_state_dict(optimizer.state_dict())
    assert losses + run(after, range(cut, 10), resumed) == expected
    for key, value in straight.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key


def test_evaluation_mode_changes_no_state():
    method = build_method(a_recipe(where="inline", warmup_steps=2)).train()
    run(method, range(4), adam(method))
    method.eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method(a_batch(1))
    method(a_batch(9))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_weights_depend_on_the_seed_alone_and_the_global_generator_stays():
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build_method(a_recipe()), build_method(a_recipe()), build_method(a_recipe(), seed=9)
    assert torch.equal(torch.rand(3), following)
    keys = [k for k in first.state_dict() if k.endswith("weight") and "head" in k]
    assert all(torch.equal(first.state_dict()[k], again.state_dict()[k]) for k in keys)
    assert not any(torch.equal(first.state_dict()[k], other.state_dict()[k]) for k in keys)


def test_second_view_from_a_trained_encoder_needs_no_warm_up():
    donor = build_method(a_recipe("infonce", view="residual"))
    method = build_method(a_recipe(warmup_steps=0, second_from="a run")).train()
    method.load_second(donor.encoder("residual").state_dict())
    assert method.period(0) == "main"
    assert not method.unused_parameters
    assert not any(p.requires_grad for p in method.stream("residual").parameters())
    method(a_batch(0), some_positives(0)).loss.backward()
    for ours, theirs in zip(
        method.encoder("residual").parameters(), donor.encoder("residual").parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.grad is None


def test_weights_of_another_encoder_are_refused():
    wide = build_method(Recipe.model_validate({"model": {"dim": DIM, "width": 3}, "method": {"name": "infonce"}}))
    with pytest.raises(CheckpointError, match=r"these weights are of another encoder: .* have another shape"):
        build_method(a_recipe()).load_second(wide.encoder("rgb").state_dict())


def test_a_random_second_encoder_is_warned_of(caplog):
    build_method(a_recipe(warmup_steps=0))
    assert "the second view 'residual' has random weights: give method.second_from" in caplog.text


def test_what_the_loop_may_ask():
    method, plain = build_method(a_recipe(warmup_steps=3)), build_method(a_recipe("infonce"))
    assert [method.period(step) for step in (0, 2, 3)] == ["warmup", "warmup", "main"]
    assert [method.needs_positives(step) for step in (2, 3)] == [False, True]
    assert (method.trained_view, method.main_view, method.aux_view) == ("rgb", "residual", "rgb")
    assert bank_views_of(a_recipe()) == ("residual", "rgb")
    assert method.unused_parameters
    assert not plain.unused_parameters
    assert not plain.needs_positives(9)
    for where in ("inline", "off"):
        assert not build_method(a_recipe(where=where)).needs_positives(9)


def test_coclr_mines_in_one_stage_whatever_the_cascade_says():
    assert mining_of(a_recipe("coclr")).stages == 1
    assert mining_of(a_recipe("coclr", "inline", {"strategy": "oracle"})).strategy == "oracle"
    assert mining_of(a_recipe("coclr", "inline", {"strategy": "sum"})).strategy == "cascade"
    assert mining_of(a_recipe("cpr")).stages == 3
    assert build_method(a_recipe("coclr", where="inline")).mined.plan.views == (0,)
    assert build_method(a_recipe("cpr", where="inline")).mined.plan.views == (0, 1, 0)


def test_a_cascade_that_the_queue_is_too_small_for_is_refused_before_anything_starts():
    with pytest.raises(RecipeError, match=r"leave 1 of 3 slots for the last stage, fewer than mining\.topk=2"):
        build_method(a_recipe(where="inline", queue=3))


def test_half_precision_encoders_leave_loss_and_rows_in_float32():
    method = build_method(a_recipe()).train()
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(5):
            output = method(a_batch(step), some_positives(step))
            output.loss.backward()
            assert output.loss.dtype == torch.float32
            assert output.loss.isfinite()
            assert {rows.dtype for rows in output.embeddings.values()} == {torch.float32}
