"""On which videos may a setting be chosen? On groups taken out of the training videos, never on the test split.

The published code chose its best epoch on 30 % of the *test* split. Here whole groups (videos cut from one source) leave
the training videos: a held-out clip has no twin among those that train.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError

__all__ = ["Sides", "classification_sides", "hold_out"]

Mask = NDArray[np.bool_]


class Sides(NamedTuple):
    """Who teaches and who is asked.

    Attributes:
        train: bool [N], labelled videos that train.
        test: bool [N], labelled videos that are asked once.
        rule: How they were told apart, in words.
    """

    train: Mask
    test: Mask
    rule: str


def hold_out(label: NDArray[np.int64], group: NDArray[np.int64], share: float, seed: int) -> Mask:
    """Videos to hold out: about `share` of each class's groups, whole groups, drawn from `seed`.

    A class keeps at least one group to learn from; a class with a single group has none held out.

    Args:
        label: int64 [N], no -1.
        group: int64 [N].
        share: Of the groups of each class, 0 … 1.
        seed: Of the draw.

    Returns:
        bool [N].

    Raises:
        DataError: no group could be held out (every class lies in one group).
    """
    rng, held = np.random.default_rng([seed, 101]), np.zeros(len(label), bool)
    for one in np.unique(label):
        groups = np.unique(group[label == one])
        wanted = min(max(1, round(share * len(groups))), len(groups) - 1)
        done = len(np.unique(group[held & (label == one)]))  # a group of several classes may have gone already
        for candidate in rng.permutation(groups):
            after = held | (group == candidate)
            if done < wanted and not held[group == candidate].any() and _all_keep(label, after):
                held, done = after, done + 1
    if not held.any():
        raise DataError("no group of videos can be held out: every class has one group only, so nothing can be chosen")
    return held


def classification_sides(
    label: NDArray[np.int64], group: NDArray[np.int64], split: NDArray[np.str_], share: float, seed: int
) -> Sides:
    """Training and test videos of a classifier: the data's own splits where it has both, else whole groups.

    Raises:
        DataError: no labelled video on one side, or groups that cannot be divided.
    """
    known = label >= 0
    if (split == "train").any() and (split == "test").any():
        sides = Sides(known & (split == "train"), known & (split == "test"), "the data's train and test splits")
    else:
        rows = np.flatnonzero(known)
        if not len(rows):
            raise DataError("no video has a label, so nothing can be classified; pack folders with one class each")
        test = np.zeros(len(label), bool)
        test[rows[hold_out(label[rows], group[rows], share, seed + 1)]] = True
        rule = f"no train and test splits in the data: {share:.0%} of each class's groups are the test, drawn by seed"
        sides = Sides(known & ~test, test, rule)
    if not (sides.train.any() and sides.test.any()):
        raise DataError("a classifier needs labelled videos in both splits, train and test; pack the data with labels")
    return sides


def _all_keep(label: NDArray[np.int64], held: Mask) -> bool:
    return len(np.unique(label[~held])) == len(np.unique(label))
