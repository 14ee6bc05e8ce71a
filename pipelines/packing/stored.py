"""A packed video → its optical flow, for packs that were made without. Runs in the child process only."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import av

from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.patience import AGAIN, Patience
from pipelines.dataset.reader import PATIENCE_S, SampleError, ShardReader
from pipelines.packing.normalise import checked_and_flow
from pipelines.packing.timeline import plain_rate
from pipelines.packing.verdict import Outcome, Target, Verdict
from vidssl.errors import DataError

__all__ = ["flow_of_stored"]


def flow_of_stored(root: str, instance: int, name: str, target: Target, alive: Callable[[], None]) -> Outcome:
    """The flow of one packed video, made as it would have been made when the video was packed.

    Args:
        root: The packed folder.
        instance: Which video.
        name: What the verdict calls it.
        target: Form of the packed videos, with that of the flow.
        alive: Called after every frame.

    Returns:
        An outcome whose `mp4` is empty; "rejected" where the packed video is damaged.

    Raises:
        StorageError: the pack cannot be reached.
    """
    reader = _reader(root)
    samples = reader.manifest.samples
    frames, size = int(samples.frames[instance]), (int(samples.width[instance]), int(samples.height[instance]))
    try:
        video, _ = reader.read(instance)
        stored = video.tobytes()
        flow = checked_and_flow(stored, frames, size, _at_its_rate(target, stored), alive)
    except (SampleError, DataError) as error:
        return Outcome(Verdict(name, "rejected", str(error)))
    return Outcome(Verdict(name, "packed", ""), b"", frames, *size, flow=flow)


def _at_its_rate(target: Target, mp4: bytes) -> Target:
    """The target at the rate that the packed video has, where each keeps that of its source."""
    if not target.own_rate:
        return target
    with av.open(io.BytesIO(mp4), "r") as container:
        rate = container.streams.video[0].average_rate
    # Fraction, for PyAV 19 gives a type of its own, which cannot be rounded.
    return target if rate is None else replace(target, fps=plain_rate(Fraction(rate)))


@lru_cache(maxsize=1)
def _reader(root: str) -> ShardReader:
    return ShardReader(load_manifest(root, verify="nothing"), Patience(PATIENCE_S, advice=AGAIN))
