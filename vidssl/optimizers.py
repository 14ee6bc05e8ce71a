"""Which optimizer does a recipe name?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vidssl.sections import Optim

__all__ = ["build_optimizer"]


def build_optimizer(optim: Optim, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over `parameters`."""
    if optim.name == "adam":
        return torch.optim.Adam(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(parameters, lr=optim.lr, momentum=0.9, weight_decay=optim.weight_decay)
