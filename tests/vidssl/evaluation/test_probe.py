from __future__ import annotations

import numpy as np
import pytest
import torch

import vidssl.evaluation.probe as probe_module
from vidssl.errors import DataError
from vidssl.evaluation.knn import accuracy
from vidssl.evaluation.probe import batch_of, linear_probe, train_probe


def blobs(seed, n=90, classes=3, width=8, noise=0.7):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return (np.eye(classes, width)[label] + noise * rng.normal(size=(n, width))).astype(np.float32), label


def plain_probe(rows, label, classes, lr, decay, epochs, seed):
    """The same layer by hand: batch norm, linear layer, momentum, in numpy; the order of the rows from torch's generator."""
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n, f = x.shape
    generator = torch.Generator().manual_seed(seed)
    w = torch.empty(classes, f).normal_(0.0, 0.01, generator=generator).double().numpy()
    parameters = {"gamma": np.ones(f), "beta": np.zeros(f), "w": w, "b": np.zeros(classes)}
    speed = {name: np.zeros_like(value) for name, value in parameters.items()}
    mean, variance = np.zeros(f), np.ones(f)
    for epoch in range(epochs):
        rate = lr * 0.1 ** ((epoch >= int(0.6 * epochs)) + (epoch >= int(0.8 * epochs)))
        for part in torch.randperm(n, generator=generator).split(batch_of(n)):
            some, y = x[part.numpy()], label[part.numpy()]
            mu, var = some.mean(0), some.var(0)
            mean, variance = 0.9 * mean + 0.1 * mu, 0.9 * variance + 0.1 * some.var(0, ddof=1)
            normal = (some - mu) / np.sqrt(var + 1e-5)
            out = (parameters["gamma"] * normal + parameters["beta"]) @ parameters["w"].T + parameters["b"]
            p = np.exp(out - out.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(y)), y] -= 1
            p /= len(y)
            inner = p @ parameters["w"]
            gradient = {
                "w": p.T @ (parameters["gamma"] * normal + parameters["beta"]),
                "b": p.sum(0),
                "gamma": (inner * normal).sum(0),
                "beta": inner.sum(0),
            }
            for name in parameters:
                speed[name] = 0.9 * speed[name] + gradient[name] + decay * parameters[name]
                parameters[name] = parameters[name] - rate * speed[name]
    return parameters, mean, variance


def test_the_probe_equals_the_layer_by_hand():
    rows, label = blobs(0, n=70, width=5)
    probe = train_probe(rows, label, classes=3, lr=0.3, weight_decay=1e-3, epochs=10, seed=4)
    parameters, mean, variance = plain_probe(rows.astype(np.float64), label, 3, 0.3, 1e-3, 10, 4)
    norm, linear = probe
    np.testing.assert_allclose(linear.weight.detach().numpy(), parameters["w"], atol=1e-4)
    np.testing.assert_allclose(linear.bias.detach().numpy(), parameters["b"], atol=1e-4)
    np.testing.assert_allclose(norm.weight.detach().numpy(), parameters["gamma"], atol=1e-4)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-4)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, atol=1e-4)


def test_the_test_is_asked_once_with_the_setting_that_held_out_groups_chose(monkeypatch):
    (rows, label), (test, test_label) = blobs(1), blobs(2)
    group = np.arange(90) // 3 * 3 + label  # groups of one class
    asked = []
    real = probe_module._ask
    monkeypatch.setattr(probe_module, "_ask", lambda probe, some: (asked.append(some), real(probe, some))[1])
    found = linear_probe(
        rows, label, group, test, classes=3, rates=(1e-7, 0.3), decays=(1e-3,), epochs=30, held_out=0.2
    )
    assert sum(some is test for some in asked) == 1
    assert found.chosen.lr == 0.3
    assert [one.lr for one in found.tried] == [1e-7, 0.3]
    assert found.tried[1].held_out_accuracy > found.tried[0].held_out_accuracy
    assert 0 < found.held_out < 30
    assert accuracy(found.probability, test_label) > 0.6
    np.testing.assert_allclose(found.probability.sum(1), 1)


def test_the_chosen_setting_is_trained_again_on_all_training_videos(monkeypatch):
    rows, label = blobs(3)
    sizes = []
    real = probe_module.train_probe

    def watched(some, *rest, **options):
        sizes.append(len(some))
        return real(some, *rest, **options)

    monkeypatch.setattr(probe_module, "train_probe", watched)
    found = linear_probe(
        rows, label, np.arange(90), rows, classes=3, rates=(0.1, 0.3), decays=(1e-3,), epochs=2, held_out=0.2
    )
    assert sizes == [90 - found.held_out, 90 - found.held_out, 90]


def test_a_rate_that_diverges_is_never_chosen():
    rows, label = blobs(6)
    found = linear_probe(
        rows, label, np.arange(90), rows, classes=3, rates=(1e30, 0.3), decays=(1e-3,), epochs=5, held_out=0.2
    )
    assert found.chosen.lr == 0.3
    assert np.isfinite(found.probability).all()


def test_a_single_setting_needs_no_choice_and_no_groups():
    rows, label = blobs(4)
    found = linear_probe(
        rows, label, np.zeros(90, int), rows, classes=3, rates=(0.3,), decays=(1e-3,), epochs=5, held_out=0.2
    )
    assert found.held_out == 0
    assert np.isnan(found.chosen.held_out_accuracy)


def test_the_length_of_a_feature_does_not_matter_and_the_global_generator_is_left_alone():
    rows, label = blobs(5)
    options = {"classes": 3, "lr": 0.3, "weight_decay": 1e-3, "epochs": 3, "seed": 0}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = train_probe(rows, label, **options)
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    other = train_probe(rows * np.linspace(1, 50, 90)[:, None], label, **options)
    torch.testing.assert_close(one[1].weight, other[1].weight, atol=1e-4, rtol=1e-3)


def test_one_row_cannot_train_a_batch_norm():
    with pytest.raises(DataError, match="at least 2 training videos, 1 are given"):
        train_probe(np.ones((1, 4)), np.zeros(1, int), classes=2, lr=0.1, weight_decay=0, epochs=1, seed=0)
