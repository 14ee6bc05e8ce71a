"""Where do random numbers come from? From an address, never from a stream that somebody else may have read.

A number depends on (seed, epoch, instance, purpose) and its place in the array alone. So it is the same for any number of
workers, threads or batches ahead, and after any resume.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

__all__ = ["Purpose", "permutation", "uniforms"]


class Purpose(IntEnum):
    """What numbers are for; different purposes share no numbers."""

    ORDER = 1
    WINDOW = 2
    LOOK = 3
    STEP_FLIP = 4


def uniforms(
    seed: int,
    epoch: int | NDArray[np.int64],
    instance: NDArray[np.int64],
    shape: tuple[int, ...],
    purpose: Purpose,
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of each instance.

    Args:
        seed: Seed of the run, ≥ 0.
        epoch: Pass over the data, from 0, of all or of each: int64 [B].
        instance: int64 [B].
        shape: Numbers of one instance. A larger first axis leaves the numbers before it as they are.
        purpose: What they are for.

    Returns:
        float64 [B, *shape].
    """
    epochs = np.broadcast_to(epoch, len(instance)).tolist()
    keys = {one: SeedSequence([seed, one, purpose]).generate_state(2, np.uint64) for one in set(epochs)}
    numbers = np.empty((len(instance), *shape))
    for row, (of, one) in enumerate(zip(epochs, instance.tolist(), strict=True)):
        # Philox counts in the first word of its counter: another second word is another stream.
        numbers[row] = Generator(Philox(key=keys[of], counter=[0, one, 0, 0])).random(shape)
    return numbers


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of n things in an epoch, int64 [n]."""
    key = SeedSequence([seed, epoch, Purpose.ORDER]).generate_state(2, np.uint64)
    return Generator(Philox(key=key)).permutation(n).astype(np.int64)
