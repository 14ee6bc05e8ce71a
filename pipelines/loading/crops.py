"""Which part of the frame does evaluation look at? Fixed crops, no chance; rows of one window stay together.

| crops | rows of a window | what they show |
|---|---|---|
| `centre` | 1 | the centre square of the whole short side |
| `inner` | 1 | the centre square of a share of the short side, usually 7/8 |
| `ten` | 10 | squares of that share: top left, top right, bottom left, bottom right, centre, then the same five flipped |

The share is `evaluation.crop`: 7/8 is IIC's (112 of 128) and that of CoCLR, CPR and ViCC on frames 256 high (224 of 256); of
UCF101 and HMDB51 they take 224 of the videos' own 240 rows, 14/15.

`ten` is CoCLR's ten-crop, resized to the clip's size. As there, the squares lie in the frame as it is packed: the corners of a
long frame are far apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.loading.augment import INNER, Looks, centre_looks, whole_pixels
from vidssl.errors import RecipeError

__all__ = ["Crops", "crop_looks", "crops_of_window"]

Crops = Literal["centre", "inner", "ten"]

_PLACES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])
"""(y, x) of the ten-crop's squares in units of the room that the frame leaves them."""


def crops_of_window(crops: str) -> int:
    """Rows of one window.

    Raises:
        RecipeError: an unknown word.
    """
    if crops not in get_args(Crops):
        raise RecipeError(f"crops='{crops}' is unknown; use one of {', '.join(get_args(Crops))}")
    return 10 if crops == "ten" else 1


def crop_looks(sides: NDArray[np.integer], crops: str, normalize: str = "imagenet", share: float = INNER) -> Looks:
    """The crops of each window.

    Args:
        sides: int [B, 2], height and width of each video.
        crops: See the table of this module.
        normalize: `imagenet` or `unit`.
        share: Side of the squares of `inner` and `ten`, in short sides of the frame; rounded to whole pixels.

    Returns:
        Looks of [B, 1] clips, or [B, 10].

    Raises:
        RecipeError: an unknown word.
    """
    looks = centre_looks(sides, crops_of_window(crops), normalize)
    if crops == "centre":
        return looks
    place = np.tile(_PLACES, (2, 1)) if crops == "ten" else _PLACES[4:]
    side = share * sides.min(axis=1).astype(float)[:, None, None]
    frame = sides[:, None].astype(float)
    start, end = whole_pixels(place, side, frame)
    return replace(
        looks,
        roi_start=start,
        roi_end=end,
        mirror=np.broadcast_to(np.arange(len(place)) >= 5, looks.mirror.shape).astype(np.int32),
    )
