"""Which frames form each clip? Random starts for training, evenly spread ones for evaluation.

A clip of T frames at a stride of s source frames spans (T − 1)·s + 1 of them. A video shorter than that starts at its
first frame and its last frame is repeated (CoCLR repeats the *first* frame in front instead, and drops videos shorter
than half a span). Starts are uniform over every possible one, the last included (CoCLR never draws that one).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.chance import Purpose, uniforms

__all__ = ["drawn_starts", "span_of", "spread_starts"]


def span_of(frames: int, stride: int) -> int:
    """Source frames from the first to the last frame of a clip."""
    return (frames - 1) * stride + 1


def drawn_starts(
    video_frames: NDArray[np.integer], span: int, clips: int, *, seed: int, epoch: int, instance: NDArray[np.int64]
) -> NDArray[np.int64]:
    """First frames of each video's clips, drawn independently.

    Args:
        video_frames: int [B], length of each video.
        span: Source frames of a clip.
        clips: Clips of one video.
        seed: Seed of the run.
        epoch: Pass over the data.
        instance: int64 [B].

    Returns:
        int64 [B, clips] in 0 … max(frames − span, 0).
    """
    places = np.maximum(video_frames.astype(np.int64) - span + 1, 1)[:, None]
    return np.floor(uniforms(seed, epoch, instance, (clips,), Purpose.WINDOW) * places).astype(np.int64)


def spread_starts(video_frames: int, frames: int, stride: int, windows: int) -> NDArray[np.int64]:
    """First frames of one video's evaluation windows.

    CoCLR's retrieval takes a window every T·s/2 − 1 frames and drops the tail (64 frames: 3 windows of 32). Those are the
    windows here too as long as there are at most `windows` of them; otherwise `windows` starts are spread evenly from the
    first to the last possible one. A single window stands in the centre.

    Args:
        video_frames: Length of the video.
        frames: T.
        stride: s.
        windows: The most windows to make.

    Returns:
        int64 [W], 1 ≤ W ≤ windows, ascending.
    """
    room = max(video_frames - span_of(frames, stride), 0)
    step = max(frames * stride // 2 - 1, 1)
    count = room // step + 1
    if min(count, windows) == 1:
        return np.array([room // 2], np.int64)
    if count <= windows:
        return np.arange(count, dtype=np.int64) * step
    return np.round(np.linspace(0, room, windows)).astype(np.int64)
