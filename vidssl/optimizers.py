"""Which optimizer does a recipe name? Adam, SGD with momentum, and LARC: SGD with a rate of its own for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vidssl.sections import Optim

__all__ = ["LARC", "build_optimizer", "clip_gradients"]

# Torch's own optimizers are built on these; an S3D has 200 layers, and a call for each would cost more than the sums.
_norms = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
_times = torch._foreach_mul  # pyright: ignore[reportPrivateImportUsage]
_times_ = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage]
_plus_ = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]


def build_optimizer(optim: Optim, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over `parameters`; the caller sets the rate of each step in `param_groups`.

    On a GPU torch's fused kernels: one launch for all layers.
    """
    weights = list(parameters)
    fused = True if weights and all(weight.is_cuda for weight in weights) else None
    if optim.name == "adam":
        return torch.optim.Adam(weights, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    if optim.name == "larc":
        return LARC(weights, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(weights, lr=optim.lr, momentum=0.9, weight_decay=optim.weight_decay, fused=fused)


def clip_gradients(optimizer: torch.optim.Optimizer, longest: float) -> None:
    """Shorten the gradient over all weights to `longest`, without waiting for the device.

    After the backward pass, where DistributedDataParallel has made it the same on every rank.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, longest, error_if_nonfinite=False)


class LARC(torch.optim.Optimizer):
    """Layer-wise adaptive rates around SGD with momentum (You et al. 2017), as SwAV and ViCC use it: no clipping.

    For each parameter w with gradient g (‖·‖ over the whole tensor, λ weight decay, μ momentum):
    u = trust · ‖w‖ / (‖g‖ + λ‖w‖ + eps) · (g + λw);  v ← μv + u;  w ← w − lr·v.
    Weight decay is part of what is scaled, not added after it. Where ‖w‖ or ‖g‖ is zero, u = g: no rate can be told
    from them, and there is no decay either. A parameter whose gradient is None is left alone, its momentum too.

    Args:
        parameters: As for any torch optimizer.
        lr: Rate.
        momentum: μ.
        weight_decay: λ.
        trust: Share of its own length that a layer moves at rate 1.
        eps: Keeps the quotient finite.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moving:
                self._move(moving, group)
        return loss

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """All layers of a group in a few calls, without waiting for the device."""
        weights: list[Tensor] = [parameter.detach() for parameter in parameters]
        updates = _scaled(weights, [_gradient(parameter) for parameter in parameters], group)
        speeds = [self._speed(parameter) for parameter in parameters]
        _times_(speeds, group["momentum"])
        _plus_(speeds, updates)
        _plus_(weights, speeds, alpha=-group["lr"])

    def _speed(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:  # zeros: the first update enters whole, as in SGD
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None  # only such parameters move
    return parameter.grad


def _scaled(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The updates u of `LARC`, one for each layer, in new tensors."""
    length, slope = (torch.stack(_norms(tensors)) for tensors in (weights, gradients))
    told = (length > 0) & (slope > 0)
    rate = group["trust"] * length / (slope + group["weight_decay"] * length + group["eps"])
    rate = torch.where(told, rate, torch.ones_like(rate))
    decay = torch.where(told, rate * group["weight_decay"], torch.zeros_like(rate))
    updates = list(_times(gradients, list(rate.unbind())))
    _plus_(updates, _times(weights, list(decay.unbind())))
    return updates
