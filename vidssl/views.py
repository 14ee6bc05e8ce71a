"""Which stream does the encoder see? Views made from the RGB clip on the device: `rgb` itself and `residual`.

The residual r_t = x_t − x_{t−1} shows what moved and costs no storage. IIC's code defines it in three ways, named here:
`boundary` says what stands at t = 0, where there is no previous frame, `scale` says what happens to the sign.

| boundary | frame 0 | frames |
|---|---|---|
| `wrap`   | x_0 − x_{T−1}, IIC's `torch.roll`: a cut from the last frame to the first | T |
| `drop`   | left out | T − 1 |
| `repeat` | r_1 once more: neither a cut nor a blank frame (default) | T |

| scale | values |
|---|---|
| `none` | r: zero is "nothing moved" (default; IIC's fine-tuning and IICv2) |
| `half_shift` | (r + 1) / 2: IIC's pre-training, meant for pixels in [0, 1] |

The difference is taken of the *normalised* clip, so the mean cancels and each channel is 1/std as large as in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vidssl.errors import RecipeError

__all__ = ["BOUNDARIES", "SCALES", "VIEWS", "Boundary", "Scale", "channels_of", "make_views", "residual"]

Boundary = Literal["wrap", "drop", "repeat"]
Scale = Literal["none", "half_shift"]

VIEWS = ("rgb", "residual", "flow", "u", "v")
BOUNDARIES: tuple[Boundary, ...] = ("wrap", "drop", "repeat")
SCALES: tuple[Scale, ...] = ("none", "half_shift")


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
    rgb: Tensor, views: Sequence[str], *, boundary: Boundary = "repeat", scale: Scale = "none"
) -> dict[str, Tensor]:
    """Every asked view of one RGB clip, in the asked order.

    Args:
        rgb: [..., C, T, H, W], normalised. `rgb` itself is returned as it is, not copied.
        views: Names out of `VIEWS`.
        boundary: See `residual`.
        scale: See `residual`.

    Raises:
        RecipeError: a view that cannot be made from RGB.
    """
    made: dict[str, Tensor] = {}
    for view in views:
        if view not in ("rgb", "residual"):
            raise RecipeError(f"view '{view}' cannot be made from RGB frames; use rgb or residual")
        made[view] = rgb if view == "rgb" else residual(rgb, boundary, scale)
    return made
