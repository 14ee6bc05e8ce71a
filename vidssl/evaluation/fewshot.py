"""How far do n labelled videos per class go? The nearest class mean, drawn several times.

Features are centred by the mean of all training videos (no labels in that) and made unit; a class is the mean of its n drawn
videos, a test video takes the class of the nearest mean by cosine. There is nothing to choose, so nothing can be tuned on
the test. The published papers report no few-shot number.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError
from vidssl.evaluation.knn import accuracy
from vidssl.evaluation.retrieval import describe, unit_rows

__all__ = ["DRAWS", "FewShot", "few_shot", "mean_interval"]

DRAWS: Final = 10
_STUDENT: Final = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # 97.5 % of Student's t, 1 … 9 degrees


class FewShot(NamedTuple):
    """Accuracy over the draws.

    Attributes:
        draws: Accuracy of each draw.
        mean: Their mean.
        interval: 95 % interval of the mean over draws of the labelled videos.
        short: Classes with fewer than n training videos (all of theirs were taken).
    """

    draws: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    short: int


def few_shot(
    train: NDArray[np.floating],
    train_label: NDArray[np.int64],
    test: NDArray[np.floating],
    test_label: NDArray[np.int64],
    *,
    shots: int,
    seed: int = 0,
    draws: int = DRAWS,
) -> FewShot:
    """Accuracy on `test` with `shots` labelled training videos per class.

    Args:
        train: [N, F] features.
        train_label: int64 [N].
        test: [M, F].
        test_label: int64 [M].
        shots: n.
        seed: Of the draws; draw i is the same for every feature it is asked for, so that features can be compared.
        draws: How many.

    Raises:
        DataError: no labelled training video.
    """
    present = np.unique(train_label[train_label >= 0])
    if not len(present):
        raise DataError("no training video has a label, so there are no shots to draw")
    q, g = describe(test, train, "p1_strict")
    results = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, shots, draw])
        mean = np.stack([g[_drawn(rng, np.flatnonzero(train_label == one), shots)].mean(0) for one in present])
        score = np.full((len(q), int(max(present.max(), test_label.max())) + 1), -np.inf)
        score[:, present] = q @ unit_rows(mean).T
        results.append(accuracy(score, test_label))
    short = sum(int((train_label == one).sum()) < shots for one in present)
    return FewShot(tuple(results), float(np.mean(results)), mean_interval(results), short)


def mean_interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of a mean by Student's t, cut to 0 … 1; the single value twice where there is one."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, mean
    half = (_STUDENT[n - 2] if n - 2 < len(_STUDENT) else 1.96) * float(np.std(values, ddof=1)) / n**0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def _drawn(rng: np.random.Generator, rows: NDArray[np.int64], shots: int) -> NDArray[np.int64]:
    return rng.permutation(rows)[:shots]
