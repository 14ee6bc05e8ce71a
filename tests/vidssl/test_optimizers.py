"""LARC is the published formula, worked by hand; rates, frozen parameters and checkpoints are respected."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vidssl.optimizers import LARC, build_optimizer, clip_gradients
from vidssl.sections import Optim

TRUST, EPS, MOMENTUM = 1e-3, 1e-8, 0.9


def by_hand(weights, gradients, rates, decay):
    """Apex's LARC without clipping around SGD, step by step in float64."""
    weight, speed = np.asarray(weights, np.float64), None
    for gradient, rate in zip(gradients, rates, strict=True):
        update = np.asarray(gradient, np.float64)
        w, g = np.sqrt((weight**2).sum()), np.sqrt((update**2).sum())
        if w != 0 and g != 0:
            update = (update + decay * weight) * (TRUST * w / (g + w * decay + EPS))
        speed = update if speed is None else MOMENTUM * speed + update
        weight = weight - rate * speed
    return weight


def some(*shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def walk(optimizer, parameters, gradients, rates):
    for at, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, series in zip(parameters, gradients, strict=True):
            parameter.grad = None if series[at] is None else series[at].clone()
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_the_published_formula_layer_by_layer(decay):
    shapes, rates = [(4, 3), (5,), (2, 2, 3)], [0.6, 0.3, 0.1]
    parameters = [nn.Parameter(some(*shape, seed=at)) for at, shape in enumerate(shapes)]
    gradients = [
        [10.0**at * some(*shape, seed=10 * at + step + 50) for step in range(3)] for at, shape in enumerate(shapes)
    ]
    expected = [
        by_hand(p.detach().numpy(), [g.numpy() for g in series], rates, decay)
        for p, series in zip(parameters, gradients, strict=True)
    ]
    before = [p.detach().clone() for p in parameters]
    walk(LARC(parameters, lr=1.0, weight_decay=decay), parameters, gradients, rates)
    for parameter, start, end in zip(parameters, before, expected, strict=True):
        np.testing.assert_allclose(parameter.detach() - start, end - start.numpy(), rtol=1e-3, atol=1e-7)


def test_a_layer_moves_by_its_own_length_whatever_the_size_of_its_gradient():
    small, large = (nn.Parameter(some(6, seed=1)) for _ in range(2))
    gradient = some(6, seed=2)
    walk(LARC([small, large], lr=1.0), [small, large], [[1e-3 * gradient], [1e3 * gradient]], [1.0])
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)
    moved = (small.detach() - some(6, seed=1)).norm()
    torch.testing.assert_close(moved, TRUST * some(6, seed=1).norm(), rtol=1e-3, atol=0)


def test_zero_weights_and_zero_gradients_are_not_scaled():
    born, still = nn.Parameter(torch.zeros(3)), nn.Parameter(some(3, seed=4))
    gradient = some(3, seed=5)
    walk(LARC([born, still], lr=0.5, weight_decay=0.1), [born, still], [[gradient], [torch.zeros(3)]], [0.5])
    torch.testing.assert_close(born.detach(), -0.5 * gradient)
    assert torch.equal(still.detach(), some(3, seed=4))  # no decay either


def test_a_parameter_without_gradient_stays_and_keeps_its_momentum():
    parameter = nn.Parameter(some(3, seed=6))
    optimizer = LARC([parameter], lr=0.1, weight_decay=0.1)
    walk(optimizer, [parameter], [[some(3, seed=7)]], [0.1])
    place, speed = parameter.detach().clone(), optimizer.state[parameter]["momentum_buffer"].clone()
    walk(optimizer, [parameter], [[None, None]], [0.1, 0.1])
    assert torch.equal(parameter.detach(), place)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], speed)


@pytest.mark.parametrize("longest", [0.5, 100.0])
def test_a_gradient_that_is_too_long_is_shortened_as_a_whole_and_another_is_left(longest):
    weights = [nn.Parameter(some(4, 3, seed=1)), nn.Parameter(some(5, seed=2)), nn.Parameter(some(2, seed=3))]
    for weight, seed in zip(weights[:2], (4, 5), strict=True):
        weight.grad = some(*weight.shape, seed=seed)  # the third has none
    before = torch.cat([weight.grad.flatten() for weight in weights[:2]])
    clip_gradients(build_optimizer(Optim(), weights), longest)
    after = torch.cat([weight.grad.flatten() for weight in weights[:2]])
    assert weights[2].grad is None
    torch.testing.assert_close(after, before * min(1.0, longest / float(before.norm())), rtol=1e-5, atol=1e-7)


def test_gradients_are_left_as_they_were():
    parameter, gradient = nn.Parameter(some(3, seed=8)), some(3, seed=9)
    walk(LARC([parameter], lr=0.1, weight_decay=0.1), [parameter], [[gradient]], [0.1])
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["adam", "sgd", "larc"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name, tmp_path):
    optim = Optim(name=name, lr=0.1, weight_decay=1e-3)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = build_optimizer(optim, net.parameters())

    def steps(net, optimizer, which):
        for step in which:
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad(set_to_none=True)
            net(some(5, 4, seed=step)).square().mean().backward()
            optimizer.step()

    steps(net, optimizer, range(3))
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "at-3.pt")
    steps(net, optimizer, range(3, 6))
    other = copy.deepcopy(net)
    resumed = build_optimizer(optim, other.parameters())
    stored = torch.load(tmp_path / "at-3.pt", weights_only=True)
    other.load_state_dict(stored["net"])
    resumed.load_state_dict(stored["optimizer"])
    steps(other, resumed, range(3, 6))
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_recipe_names_the_optimizer_and_its_numbers():
    parameters = [nn.Parameter(torch.zeros(2))]
    made = {
        name: build_optimizer(Optim(name=name, lr=0.6, weight_decay=1e-6), parameters)
        for name in ("adam", "sgd", "larc")
    }
    assert isinstance(made["adam"], torch.optim.Adam)
    assert isinstance(made["sgd"], torch.optim.SGD)
    assert isinstance(made["larc"], LARC)
    for optimizer in made.values():
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.6, 1e-6)
    assert made["sgd"].param_groups[0]["momentum"] == made["larc"].param_groups[0]["momentum"] == 0.9
