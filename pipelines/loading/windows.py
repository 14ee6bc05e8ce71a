"""Which frames form each clip? Random starts for training, evenly spread ones for evaluation.

A clip of T frames at a stride of s source frames spans (T − 1)·s + 1 of them. A video shorter than that starts at its
first frame and its last frame is repeated (CoCLR repeats the *first* frame in front instead, and drops videos shorter
than half a span). Starts are uniform over every possible one, the last included (CoCLR never draws that one).

| rule | windows of an evaluated video |
|---|---|
| `spread` | those of `p1`, but a single one stands in the centre |
| `p1` | CoCLR: one every T·s/2 − 1 frames from the first frame on, the tail dropped; a short video is padded in front |
| `p2` | IIC: 10 windows whose centres are spread evenly from T·s/2 to the length − T·s/2; short videos repeat windows |

At most `windows` of them (`p2`: always 10); what is more is thinned to `windows` starts, spread from the first to the last
possible one. No limit: `windows` is 0 or None.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loading.chance import Purpose, uniforms
from vidssl.errors import RecipeError

__all__ = [
    "Rule",
    "drawn_starts",
    "p1_starts",
    "p2_starts",
    "padded_in_front",
    "span_of",
    "spread_starts",
    "window_starts",
]

Rule = Literal["spread", "p1", "p2"]
P2_WINDOWS = 10


def span_of(frames: int, stride: int) -> int:
    """Source frames from the first to the last frame of a clip."""
    return (frames - 1) * stride + 1


def drawn_starts(
    video_frames: NDArray[np.integer],
    span: int,
    clips: int,
    *,
    seed: int,
    epoch: int | NDArray[np.int64],
    instance: NDArray[np.int64],
) -> NDArray[np.int64]:
    """First frames of each video's clips, drawn independently.

    Args:
        video_frames: int [B], length of each video.
        span: Source frames of a clip.
        clips: Clips of one video.
        seed: Seed of the run.
        epoch: Pass over the data, of all or of each: int64 [B].
        instance: int64 [B].

    Returns:
        int64 [B, clips] in 0 … max(frames − span, 0).
    """
    places = np.maximum(video_frames.astype(np.int64) - span + 1, 1)[:, None]
    return np.floor(uniforms(seed, epoch, instance, (clips,), Purpose.WINDOW) * places).astype(np.int64)


def window_starts(
    rule: str, video_frames: int, frames: int, stride: int, windows: int | None = None
) -> NDArray[np.int64]:
    """First frames of one video's evaluation windows by a rule of this module's table; see `spread_starts`.

    Raises:
        RecipeError: an unknown rule.
    """
    if rule not in get_args(Rule):
        raise RecipeError(f"the window rule '{rule}' is unknown; use one of {', '.join(get_args(Rule))}")
    if rule == "p2":
        return p2_starts(video_frames, frames, stride)
    return (p1_starts if rule == "p1" else spread_starts)(video_frames, frames, stride, windows)


def spread_starts(video_frames: int, frames: int, stride: int, windows: int | None) -> NDArray[np.int64]:
    """First frames of one video's evaluation windows, a single one in the centre.

    CoCLR's retrieval takes a window every T·s/2 − 1 frames and drops the tail (64 frames: 3 windows of 32). Those are the
    windows here too as long as there are at most `windows` of them; otherwise `windows` starts are spread evenly from the
    first to the last possible one.

    Args:
        video_frames: Length of the video.
        frames: T.
        stride: s.
        windows: The most windows to make; 0 or None: no limit.

    Returns:
        int64 [W], ascending.
    """
    starts = p1_starts(video_frames, frames, stride, windows)
    room = max(video_frames - span_of(frames, stride), 0)
    return np.array([room // 2], np.int64) if len(starts) == 1 else starts


def p1_starts(video_frames: int, frames: int, stride: int, windows: int | None = None) -> NDArray[np.int64]:
    """Windows of protocol P1, the first at the first frame; arguments and result as `spread_starts`."""
    room = max(video_frames - span_of(frames, stride), 0)
    step = max(frames * stride // 2 - 1, 1)
    count = room // step + 1
    if not windows or count <= windows:
        return np.arange(count, dtype=np.int64) * step
    return np.round(np.linspace(0, room, windows)).astype(np.int64)


def p2_starts(video_frames: int, frames: int, stride: int) -> NDArray[np.int64]:
    """Windows of protocol P2, int64 [10]: centres linspace(T·s/2, length − T·s/2), the start rounded down as published."""
    room = max(video_frames - frames * stride, 0)
    return np.floor(np.linspace(0, room, P2_WINDOWS)).astype(np.int64)


def padded_in_front(clips: Tensor, video_frames: NDArray[np.integer], stride: int) -> Tensor:
    """Move the repeated frames of clips from short videos to the front: the first frame is repeated, as CoCLR does.

    Args:
        clips: [B, n, C, T, H, W] that start at the first frame where the video is too short; then its last frame is
            repeated at the end.
        video_frames: int [B], length of each video.
        stride: s.

    Returns:
        The same shape; `clips` itself where every video is long enough.
    """
    frames = clips.shape[3]
    missing = np.maximum(frames - -(-video_frames.astype(np.int64) // stride), 0)
    if not missing.any():
        return clips
    order = torch.from_numpy(np.maximum(np.arange(frames) - missing[:, None], 0)).to(clips.device)
    return clips.gather(3, order[:, None, None, :, None, None].expand_as(clips))
