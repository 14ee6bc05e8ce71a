"""How far does one linear layer get on frozen features? The linear probe (P3 of CoCLR, CPR, ViCC), on saved features.

Feature made unit → batch norm with scale and shift → linear layer (weights from N(0, 0.01), bias 0); SGD with momentum 0.9,
the rate divided by ten at 60 % and 80 % of the epochs. Rate and decay are chosen on held-out training groups, then the
layer is trained again on all of the training videos and the test is asked once, with the weights of the last epoch.

Published: rate 0.1, decay 1e-3, 100 epochs on clips with the backbone frozen and ten crops at the test; or on saved features
rate 1.0, decay 1e-3, 1024 rows at once, where the best *test* accuracy of every fifth epoch was kept. Here a video is
one row (the mean of its windows), so random crops do not enlarge the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.errors import DataError
from vidssl.evaluation.heldout import hold_out
from vidssl.evaluation.knn import accuracy
from vidssl.evaluation.retrieval import unit_rows

__all__ = ["Probed", "Setting", "batch_of", "linear_probe", "train_probe"]


class Setting(NamedTuple):
    """A rate, a decay, and the accuracy on the held-out groups that they reached."""

    lr: float
    weight_decay: float
    held_out_accuracy: float


class Probed(NamedTuple):
    """What a probe said.

    Attributes:
        probability: float64 [M, C] of the test videos.
        chosen: The setting used.
        tried: All settings.
        held_out: Videos held out while choosing.
        train_accuracy: On the videos it was trained on, for the gap.
        layer: What was trained; takes unit rows [B, F], gives logits [B, C].
    """

    probability: NDArray[np.float64]
    chosen: Setting
    tried: tuple[Setting, ...]
    held_out: int
    train_accuracy: float
    layer: nn.Sequential


def linear_probe(
    train: NDArray[np.floating],
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    test: NDArray[np.floating],
    *,
    classes: int,
    rates: Sequence[float],
    decays: Sequence[float],
    epochs: int,
    held_out: float,
    seed: int = 0,
) -> Probed:
    """Choose a setting on held-out groups of the training videos, train again on all of them, ask the test once.

    Args:
        train: [N, F] features.
        label: int64 [N], no -1.
        group: int64 [N].
        test: [M, F]; its labels are not asked for: nothing can be chosen on them.
        classes: C.
        rates: Learning rates to try.
        decays: Weight decays to try.
        epochs: Passes over the training videos.
        held_out: Share of the groups that are held out while choosing.
        seed: Of weights, order and held-out groups.

    Returns:
        The test videos' probabilities and how the setting was chosen. Ties go to the first setting tried.

    Raises:
        DataError: fewer than two training videos, or no group that can be held out while there is a choice.
    """
    settings = [(lr, decay) for lr in rates for decay in decays]
    if len(settings) == 1:
        held, tried = np.zeros(len(label), bool), [Setting(*settings[0], float("nan"))]
    else:
        held = hold_out(label, group, held_out, seed)
        tried = []
        for lr, decay in settings:
            probe = train_probe(
                train[~held], label[~held], classes=classes, lr=lr, weight_decay=decay, epochs=epochs, seed=seed
            )
            tried.append(Setting(lr, decay, accuracy(_ask(probe, train[held]), label[held])))
    chosen = max(tried, key=lambda one: one.held_out_accuracy) if len(tried) > 1 else tried[0]
    probe = train_probe(
        train, label, classes=classes, lr=chosen.lr, weight_decay=chosen.weight_decay, epochs=epochs, seed=seed
    )
    return Probed(_ask(probe, test), chosen, tuple(tried), int(held.sum()), accuracy(_ask(probe, train), label), probe)


def train_probe(
    rows: NDArray[np.floating],
    label: NDArray[np.int64],
    *,
    classes: int,
    lr: float,
    weight_decay: float,
    epochs: int,
    seed: int,
) -> nn.Sequential:
    """A trained batch norm and linear layer, in evaluation mode; takes unit rows [B, F].

    Raises:
        DataError: fewer than two rows: batch norm has no variance to learn.
    """
    if len(rows) < 2:
        raise DataError(f"a linear probe needs at least 2 training videos, {len(rows)} are given")
    x, y = _unit(rows), torch.from_numpy(np.asarray(label, np.int64))
    generator = torch.Generator().manual_seed(seed)
    linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, x.shape[1], classes))  # leaves the global generator alone
    with torch.no_grad():
        linear.weight.normal_(0.0, 0.01, generator=generator)
        linear.bias.zero_()
    probe = nn.Sequential(nn.BatchNorm1d(x.shape[1]), linear).train()
    optimizer = torch.optim.SGD(probe.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    marks = (int(0.6 * epochs), int(0.8 * epochs))
    size = batch_of(len(x))
    for epoch in range(epochs):
        for some in optimizer.param_groups:
            some["lr"] = lr * 0.1 ** sum(0 < mark <= epoch for mark in marks)
        for part in torch.randperm(len(x), generator=generator).split(size):
            if len(part) > 1:  # batch norm has no variance of one row
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(probe(x[part]), y[part]).backward()
                optimizer.step()
    return probe.eval()


def batch_of(rows: int) -> int:
    """Rows in one step: an eighth of the training set, 32 … 1024 (published on saved features: 1024 of 9537)."""
    return min(1024, max(32, rows // 8))


@torch.no_grad()
def _ask(probe: nn.Sequential, rows: NDArray[np.floating]) -> NDArray[np.float64]:
    return torch.softmax(probe(_unit(rows)).double(), dim=1).numpy()


def _unit(rows: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(unit_rows(rows).astype(np.float32))
