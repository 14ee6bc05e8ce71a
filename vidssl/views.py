"""Which stream does the encoder see, and what is a clip's own negative? Views of one clip, made on the device.

`rgb` is the clip itself. The residual r_t = x_t − x_{t−1} shows what moved and costs no storage. IIC's code defines it in
three ways, named here: `boundary` says what stands at t = 0, where there is no previous frame, `scale` what happens to the sign.

| boundary | frame 0 | frames |
|---|---|---|
| `wrap`   | x_0 − x_{T−1}, IIC's `torch.roll`: a cut from the last frame to the first | T |
| `drop`   | left out | T − 1 |
| `repeat` | r_1 once more: neither a cut nor a blank frame (default) | T |

| scale | values |
|---|---|
| `none` | r: zero is "nothing moved" (default; IIC's fine-tuning and IICv2) |
| `half_shift` | (r + 1) / 2: IIC's pre-training, meant for pixels in [0, 1] |

The difference is taken of the clip as it comes. With `augment.normalize=unit` (pixels in 0..1), `half_shift` and `wrap`
give exactly IIC's pre-training view. With `imagenet` the mean cancels and channel c is 1/std_c as large (about 4.4
times), as in IICv2; `half_shift` then leaves 0..1.

`flow`, `u` and `v` need a flow clip beside the frames; `u` and `v` are one component as a grey picture in three channels.

IIC's intra-negatives are the clip with its motion (or its upright pose) destroyed; see `intra_negative`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from vidssl.errors import DataError, RecipeError
from vidssl.transfer import sent

__all__ = [
    "BOUNDARIES",
    "INTRA",
    "SCALES",
    "VIEWS",
    "Boundary",
    "Intra",
    "Scale",
    "channels_of",
    "intra_negative",
    "make_views",
    "residual",
]

Boundary = Literal["wrap", "drop", "repeat"]
Scale = Literal["none", "half_shift"]
Intra = Literal["repeat", "shuffle", "rot", "rot90"]

VIEWS = ("rgb", "residual", "flow", "u", "v")
BOUNDARIES: tuple[Boundary, ...] = ("wrap", "drop", "repeat")
SCALES: tuple[Scale, ...] = ("none", "half_shift")
INTRA: tuple[Intra, ...] = ("repeat", "shuffle", "rot", "rot90")
CHUNKS = 4
"""Parts of equal length that `shuffle` cuts a clip into."""


def residual(rgb: Tensor, boundary: Boundary = "repeat", scale: Scale = "none") -> Tensor:
    """Frame differences x_t − x_{t−1}.

    Args:
        rgb: [..., C, T, H, W], normalised; T ≥ 2.
        boundary: What stands at t = 0; see the table of this module.
        scale: Whether the differences are moved into the range of pixels.

    Returns:
        [..., C, T, H, W], or T − 1 frames with `drop`.

    Raises:
        RecipeError: unknown boundary or scale, or a clip of a single frame.
    """
    if boundary not in BOUNDARIES:
        raise RecipeError(f"residual boundary '{boundary}' is unknown; use one of {', '.join(BOUNDARIES)}")
    if scale not in SCALES:
        raise RecipeError(f"residual scale '{scale}' is unknown; use one of {', '.join(SCALES)}")
    if rgb.shape[-3] < 2:
        raise RecipeError(f"a residual needs two frames, the clip has {rgb.shape[-3]}; set clips.frames=2 or more")
    steps = rgb[..., 1:, :, :] - rgb[..., :-1, :, :]
    if boundary == "repeat":
        steps = torch.cat([steps[..., :1, :, :], steps], dim=-3)
    elif boundary == "wrap":
        steps = torch.cat([rgb[..., :1, :, :] - rgb[..., -1:, :, :], steps], dim=-3)
    return (steps + 1) / 2 if scale == "half_shift" else steps


def channels_of(view: str, flow_channels: int = 2) -> int:
    """Channels of the clips of a view: `flow` as the recipe says, all others 3 (`u` and `v` are grey pictures).

    Raises:
        RecipeError: unknown view.
    """
    if view not in VIEWS:
        raise RecipeError(f"view '{view}' is unknown; use one of {', '.join(VIEWS)}")
    return flow_channels if view == "flow" else 3


def make_views(
    rgb: Tensor | None,
    views: Sequence[str],
    *,
    boundary: Boundary = "repeat",
    scale: Scale = "none",
    flow: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every asked view of one clip, in the asked order.

    Args:
        rgb: [..., C, T, H, W], normalised. `rgb` itself is returned as it is, not copied. None where flow alone is asked for.
        views: Names out of `VIEWS`.
        boundary: See `residual`.
        scale: See `residual`.
        flow: [..., 2, T, H, W], u (to the right) and v (down) of the same frames, crop and flip, in the range of values
            that the encoder shall see; None where the data has none. The view `flow` is this tensor, not a copy.

    Raises:
        RecipeError: unknown view.
        DataError: a flow view of data without flow, or u and v of a flow clip that has not two channels.
    """
    made: dict[str, Tensor] = {}
    for view in views:
        channels_of(view)  # refuses an unknown one
        if view not in ("rgb", "residual"):
            made[view] = _flow_view(view, flow)
        elif rgb is None:
            raise DataError(f"view '{view}' is made of RGB frames, and none were given")
        else:
            made[view] = rgb if view == "rgb" else residual(rgb, boundary, scale)
    return made


def _flow_view(view: str, flow: Tensor | None) -> Tensor:
    if flow is None:
        raise DataError(
            f"this data has no optical flow, which view '{view}' is made from; type method.second_view=residual "
            "(and method.view=rgb)"
        )
    if view == "flow":
        return flow
    if flow.shape[-4] != 2:
        raise DataError(
            f"view '{view}' is one of two flow channels, the flow clip has {flow.shape[-4]}; type model.flow_channels=2"
        )
    component = 0 if view == "u" else 1
    grey = flow.narrow(-4, component, 1)
    return torch.cat([grey, grey, grey], dim=-4)


def intra_negative(
    clips: Tensor, kind: Intra, *, seed: int, step: int, instance: NDArray[np.int64] | Sequence[int]
) -> Tensor:
    """Each clip as its own negative: the same pictures, but not the same video any more.

    | kind | what it does |
    |---|---|
    | `repeat` | one random frame in all T places: no motion (IIC) |
    | `shuffle` | four chunks of T/4 frames, of which two random ones swap places: broken motion (IIC) |
    | `rot` | every frame turned by the same 90, 180 or 270 degrees, each as likely (IICv2) |
    | `rot90` | every frame turned by 90 degrees against the clock (IICv2) |

    Where T is no multiple of four, the first T mod 4 chunks of `shuffle` are a frame longer. What is drawn depends on
    (seed, step, instance) alone: any number of ranks draws the same, and a resumed run draws it again.

    Args:
        clips: [B, C, T, H, W]; `shuffle` needs T ≥ 4, rot and rot90 H = W.
        kind: See the table.
        seed: Of the run.
        step: Global step.
        instance: The video of each row, [B].

    Returns:
        [B, C, T, H, W], a new tensor without a common storage.

    Raises:
        RecipeError: unknown kind, too few frames to shuffle, or a clip that is not square to turn.
    """
    _check_intra(clips, kind)
    drawn = [np.random.default_rng((seed, step, int(video), 0x1A7A)) for video in instance]
    if kind in ("rot", "rot90"):
        return torch.stack([_turned(clip, kind, rng) for clip, rng in zip(clips, drawn, strict=True)])
    rows, channels, frames = clips.shape[:3]
    places = np.arange(rows * channels).reshape(rows, channels, 1) * frames
    places = places + np.array([_frames(frames, kind, rng) for rng in drawn])[:, None]
    chosen = sent(torch.from_numpy(places.reshape(-1)), clips.device)  # one message for all clips
    return clips.reshape(-1, *clips.shape[3:])[chosen].reshape(clips.shape)


def _check_intra(clips: Tensor, kind: str) -> None:
    frames, height, width = clips.shape[-3:]
    if kind not in INTRA:
        raise RecipeError(f"intra-negative '{kind}' is unknown; use one of {', '.join(INTRA)}")
    if kind == "shuffle" and frames < CHUNKS:
        raise RecipeError(
            f"method.iic.intra=shuffle swaps quarters of a clip, which has {frames} frames; type clips.frames={CHUNKS} or more"
        )
    if kind in ("rot", "rot90") and height != width:
        raise RecipeError(
            f"method.iic.intra={kind} needs square clips, these are {height}×{width}; type method.iic.intra=shuffle"
        )


def _frames(count: int, kind: str, rng: Generator) -> list[int]:
    """Source frame of each place of a repeated or shuffled clip."""
    if kind == "repeat":
        return [int(rng.integers(count))] * count
    chunks = np.array_split(np.arange(count), CHUNKS)
    one, other = rng.choice(CHUNKS, size=2, replace=False).tolist()
    chunks[one], chunks[other] = chunks[other], chunks[one]
    return np.concatenate(chunks).tolist()


def _turned(clip: Tensor, kind: str, rng: Generator) -> Tensor:
    quarters = 1 if kind == "rot90" else int(rng.integers(1, 4))
    return torch.rot90(clip, quarters, dims=(2, 3))
