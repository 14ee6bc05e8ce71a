"""Fine-tuning: what learns, at which rate, what is chosen, and that a stopped training goes on exactly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from vidssl.batch import ClipBatch
from vidssl.encoder import build_encoder
from vidssl.errors import CheckpointError, DataError, RecipeError, VidsslError
from vidssl.evaluation.class_scores import ClassScores, fuse, load_scores, save_scores, score_videos
from vidssl.evaluation.finetune import Classifier, Epoch, FineTuner, plateaus, rate_of
from vidssl.sections import Finetune, Model

CLASSES = 3


def encoder(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_encoder(Model(width=2, dim=4))


def clips_of(label, seed):
    """Noise; the class is which colour channel is brighter."""
    made = 0.5 * torch.randn(len(label), 1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    made[torch.arange(len(label)), 0, label] += 1.0
    return made


def batch_of(step, rows=6, instance=None):
    label = (torch.arange(rows) + step) % CLASSES
    instance = torch.arange(rows) if instance is None else instance
    empty = torch.zeros(rows, 1, dtype=torch.int64)
    return ClipBatch({"rgb": clips_of(label, step)}, instance, instance, label, 0, step, empty)


def batches(first=0):
    step = first
    while True:
        yield batch_of(step)
        step += 1


def tuner_of(steps=4, **options):
    chosen = Finetune(**({"epochs": 3, "batch": 6, "lr": 0.01, "dropout": 0.5} | options))
    return FineTuner(Classifier(encoder(), CLASSES, chosen, seed=3), chosen, "rgb", steps, seed=5)


def held():
    return [batch_of(1000), batch_of(1001, instance=torch.arange(6, 12))]


def run(tuner, first=0, held_out=held):
    return [epoch for epoch in tuner.train(batches(first), held_out) if epoch is not None]


def same(one, other):
    return all(torch.equal(rows, other[key]) for key, rows in one.items())


def test_a_frozen_backbone_keeps_every_weight_and_statistic_while_the_classifier_learns():
    tuner = tuner_of(backbone_lr=0, optimizer="sgd", lr=0.1)
    before = copy.deepcopy(tuner.model.state_dict())
    run(tuner)
    after = tuner.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"output.weight", "output.bias", "norm.weight", "norm.running_mean"} <= moved
    assert not any(key.startswith("backbone.") for key in moved)


def test_fine_tuning_moves_the_backbone_too_even_one_that_came_frozen():
    frozen = encoder().requires_grad_(False)
    options = Finetune(epochs=1, batch=6)
    tuner = FineTuner(Classifier(frozen, CLASSES, options, 0), options, "rgb", 2, seed=0)
    before = copy.deepcopy(tuner.model.backbone.state_dict())
    run(tuner)
    after = tuner.model.backbone.state_dict()
    assert not any(torch.equal(before[key], after[key]) for key in before if key.endswith("0.weight"))


def test_the_linear_probe_is_unit_length_then_batch_norm_then_linear():
    model = Classifier(encoder(), CLASSES, Finetune(backbone_lr=0), seed=0)
    clips = batch_of(0).clips["rgb"][:, 0]
    got = model.train()(clips, torch.Generator()).detach().numpy()
    with torch.no_grad():
        rows = encoder().eval().features(clips).numpy().astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    wanted = rows @ model.output.weight.detach().numpy().T
    assert np.allclose(got, wanted, atol=1e-5)


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    model = Classifier(encoder(), CLASSES, Finetune(dropout=0.5), seed=0)
    model.output.weight.data.fill_(1.0)
    model.backbone.eval()
    clips = batch_of(0).clips["rgb"][:, 0]
    plain = model.eval()(clips)
    assert torch.equal(plain, model(clips, torch.Generator()))
    model.training = True  # the classifier alone: the backbone's batch norms stay as they are
    drawn = torch.stack([model(clips, torch.Generator().manual_seed(i)) for i in range(800)])
    assert drawn.std(0).min() > 0
    assert torch.allclose(drawn.mean(0), plain, rtol=0.1)


def test_rates_fall_by_ten_at_each_milestone_and_the_backbone_has_its_share():
    tuner = tuner_of(steps=5, epochs=2, milestones=(0.5, 0.8), backbone_lr=0.25, lr=0.01)
    seen = []
    for _ in tuner.train(batches(), None):
        seen.append([group["lr"] for group in tuner._optimizer.param_groups])
    wanted = [0.01] * 5 + [0.001] * 3 + [0.0001] * 2
    assert np.allclose([row[0] for row in seen], wanted)
    assert np.allclose([row[1] for row in seen], 0.25 * np.array(wanted))
    assert [rate_of(Finetune(), step, 500) for step in (399, 400, 450)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_loss_that_stands_still_is_seen_when_torch_sees_it(patience):
    rng = np.random.default_rng(patience)
    losses = np.concatenate([np.exp(-np.arange(12) / 4), rng.uniform(0.02, 0.2, 30), 0.02 - 1e-7 * np.arange(9)])
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience, min_lr=0, eps=0)
    for epoch, loss in enumerate(losses):
        judge.step(loss)
        assert 0.1 ** plateaus(losses[: epoch + 1].tolist(), patience) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateaus(losses.tolist(), patience) > 2


def test_rates_fall_where_the_held_out_loss_stands_still_also_after_a_stop():
    tuner = tuner_of(schedule="plateau", patience=1, epochs=6, steps=2, lr=0.01, backbone_lr=0.5)
    tuner.history = [Epoch(n, 1.0, 0.5, 0.5, loss) for n, loss in enumerate((0.5, 0.6, 0.7), 1)]
    other = tuner_of(schedule="plateau", patience=1, epochs=6, steps=2, lr=0.01, backbone_lr=0.5)
    other.load_state_dict(tuner.state_dict())
    next(iter(other.train(batches(), held)))
    assert [group["lr"] for group in other._optimizer.param_groups] == pytest.approx([0.001, 0.0005])


def test_a_plateau_of_videos_that_nobody_holds_out_is_refused():
    with pytest.raises(ValueError, match=r"finetune\.choose=last holds none out; type finetune\.choose=held_out, or"):
        Finetune(schedule="plateau", choose="last")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("done", [1, 4, 6, 11])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(optimizer, done, tmp_path):
    straight = tuner_of(optimizer=optimizer)
    run(straight)
    first = tuner_of(optimizer=optimizer)
    going = first.train(batches(), held)
    for _ in range(done):
        next(going)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = tuner_of(optimizer=optimizer)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.rand(7)  # the global generator is nobody's business
    run(second, done)
    assert second.done == straight.done == 12
    assert second.history == straight.history
    assert second.best == straight.best
    assert same(second.model.state_dict(), straight.model.state_dict())
    assert same(second.chosen_state(), straight.chosen_state())


def test_the_chosen_epoch_is_the_best_on_the_held_out_videos_and_keeps_its_weights():
    tuner, states = tuner_of(epochs=8, steps=2, lr=0.02), []
    for epoch in tuner.train(batches(), held):
        if epoch is not None:
            states.append(copy.deepcopy(tuner.model.state_dict()))
    merits = [(epoch.held_out_accuracy, -epoch.held_out_loss) for epoch in tuner.history]
    best = max(range(8), key=merits.__getitem__)
    assert merits.count(merits[best]) == 1
    assert tuner.best == best + 1
    assert same(tuner.chosen_state(), states[best])
    model = Classifier(encoder(), CLASSES, tuner.options, seed=0)
    model.load_state_dict(tuner.chosen_state())
    again = score_videos(model, held(), "rgb")
    assert (again.accuracy, again.loss) == pytest.approx((merits[best][0], -merits[best][1]))


def test_without_held_out_videos_the_last_epoch_is_the_choice():
    tuner = tuner_of()
    epochs = run(tuner, held_out=None)
    assert tuner.best is None
    assert epochs[-1].held_out_accuracy is None
    assert same(tuner.chosen_state(), tuner.model.state_dict())


@pytest.mark.parametrize(("share", "loss", "accuracy"), [(0.5, 0.7, 0.8), (0.0, 0.9, 0.5)])
def test_separable_classes_are_learnt_and_less_so_on_a_random_frozen_backbone(share, loss, accuracy):
    tuner = tuner_of(epochs=12, steps=10, lr=0.02, backbone_lr=share, dropout=0.3)
    epochs = run(tuner)
    assert epochs[-1].loss < loss * np.log(CLASSES)
    assert epochs[-1].held_out_accuracy > accuracy


def test_a_loss_that_is_no_number_stops_the_training_in_words():
    tuner = tuner_of(steps=1)
    tuner.model.output.weight.data.fill_(float("nan"))
    with pytest.raises(VidsslError, match=r"the loss is not a number in epoch 1; lower finetune\.lr"):
        run(tuner)


def test_a_batch_of_one_is_refused_where_it_would_be_normalised():
    with pytest.raises(RecipeError, match=r"type finetune\.batch=2 or more"):
        tuner_of(batch=1, backbone_lr=0)


class Table(torch.nn.Module):
    """Logits are read off the clip's first pixels."""

    def forward(self, clips):
        return clips[:, 0, 0, 0, :CLASSES]


def windows(logits, instance, label, cut):
    """The rows of `logits` in batches of `cut`."""
    for at in range(0, len(logits), cut):
        part = slice(at, at + cut)
        clips = logits[part, None, None, None, None, :].float()
        ids = instance[part]
        yield ClipBatch({"rgb": clips}, ids, ids, label[part], 0, 0, torch.zeros(len(ids), 1))


@pytest.mark.parametrize("average", ["probability", "logit"])
def test_a_videos_answer_is_the_mean_over_all_its_rows_however_they_are_cut(average):
    logits = 4 * torch.randn(31, CLASSES, generator=torch.Generator().manual_seed(0))
    instance = torch.tensor([7] * 10 + [2] * 1 + [9] * 20)
    label = torch.tensor([0] * 10 + [1] + [2] * 20)
    wanted = []
    for video in (2, 7, 9):
        rows = logits[instance == video].double().numpy()
        soft = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        mean = np.exp(rows.mean(0)) / np.exp(rows.mean(0)).sum()
        wanted.append(soft.mean(0) if average == "probability" else mean)
    for cut in (1, 4, 31):
        scores = score_videos(Table(), windows(logits, instance, label, cut), "rgb", average)
        assert scores.instance.tolist() == [2, 7, 9]
        assert scores.label.tolist() == [1, 0, 2]
        assert scores.rows == 31
        assert np.allclose(scores.probability, wanted, atol=1e-6)
    assert scores.accuracy == np.mean(np.argmax(wanted, 1) == [1, 0, 2])


def test_no_video_and_an_unknown_average_are_refused():
    with pytest.raises(DataError, match="could be read"):
        score_videos(Table(), [], "rgb")
    with pytest.raises(RecipeError, match="type average= one of probability, logit"):
        score_videos(Table(), [], "rgb", "median")  # pyright: ignore[reportArgumentType]


def scores_of(instance, probability, label):
    return ClassScores(np.array(instance), np.array(label), np.array(probability, float), len(instance))


def test_two_streams_are_put_together_video_by_video(tmp_path):
    # video 4 only in the first, 9 only in the second; alone each is right once, together twice
    first = scores_of([1, 3, 4], [[0.9, 0.1], [0.6, 0.4], [1, 0]], [0, 1, 0])
    second = scores_of([1, 3, 9], [[0.4, 0.6], [0.1, 0.9], [0, 1]], [0, 1, 1])
    one, other = (save_scores(s, tmp_path / f"{n}.npz", "hash") for n, s in (("a", first), ("b", second)))
    assert fuse(one, other)._asdict() == {"first": 0.5, "second": 0.5, "both": 1.0, "videos": 2, "left_out": 2}
    back, data = load_scores(one)
    assert data == "hash"
    assert np.array_equal(back.probability, first.probability)


def test_scores_of_other_data_and_other_files_are_refused(tmp_path):
    table = scores_of([1], [[1, 0]], [0])
    one = save_scores(table, tmp_path / "a.npz", "x")
    other = save_scores(table, tmp_path / "b.npz", "y")
    with pytest.raises(DataError, match="give two streams of the same data"):
        fuse(one, other)
    (tmp_path / "c.npz").write_bytes(b"no archive")
    for path in (tmp_path / "c.npz", tmp_path / "none.npz"):
        with pytest.raises(CheckpointError, match="holds no class scores; make them with: vidssl finetune RUN"):
            load_scores(path)
