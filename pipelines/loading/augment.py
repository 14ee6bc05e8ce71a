"""How is a clip changed? Every number is drawn here, one draw per clip, constant over time; the graph only applies them.

| preset | crop | flip | colour | blur |
|---|---|---|---|---|
| `none` | centre square of the whole short side | – | – | – |
| `light` | area U(min_area, 1), aspect U(3/4, 4/3) | 1/2 | brightness and contrast U(.6, 1.4) | – |
| `paper` | area U(.2, 1), aspect U(3/4, 4/3), sides swapped 1/2 | 1/2 | ColorJitter(.4, .4, .4, .1) w.p. .8, grey .2 | sigma U(.1, 2) w.p. .5 |
| `crop` | square of 7/8 of the short side, anywhere in the frame | 1/2 | – | – |
| `simclr` | as `crop` | 1/2 | as `paper`, in every clip | as `paper`, in every clip |
| `supervised` | as `paper` | 1/2, one draw for all clips of a step | ColorJitter(.4, .4, .4, .1) w.p. .3, never grey | – |

`paper` is CoCLR's pre-training scheme (CPR and ViCC use it too): colour and blur only in `base` clips. Half of the videos
are TwoClip: each clip is base with p = .3. The other half are OneClip: one of the two clips is used for both, one copy
base, the other not. `min_area` is a setting of `light` alone. OneClip is a rule for pairs: with `clips.per_video` 1 (or more
than 2) each clip is base with p = .3.

`supervised` is how CoCLR, CPR and ViCC fine-tune and train a linear layer on clips (`finetune.augment=supervised`). Its flip
belongs to the step: all ranks draw the same one.

`crop` is IIC's: Resize(128, 171), then RandomCrop(112). A frame of 4:3 gives the same squares here (112 of 128 rows; 112 of
171 columns are .873 of the height). IIC squeezes any other frame to 4:3 first; here nothing is squeezed: the square stays a
square of the frame as it is packed, and a longer frame has more places for it. IIC flips nothing: `augment.flip=false`.

A crop is a rectangle of whole pixels, each place in the frame equally likely, as in the papers' code.

`augment.normalize` says what colours become: `imagenet` (minus mean, over deviation) or `unit` (0 … 1, IIC).

On purpose not as published: brightness, contrast, saturation and hue are applied in this order (there: random) as one
affine map of RGB, clamped once at its end (there: after each), hue turns in the YIQ plane (there: HSV), contrast pivots on
the mean luma of the clip (there: of each frame, which makes it flicker), grey is luma (there: a channel picked anew in
every frame), crops are bilinear without antialiasing (there: bicubic).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.loading.chance import Purpose, uniforms
from vidssl.recipe import Augment

__all__ = ["INNER", "LUMA", "MEAN", "STD", "Looks", "centre_looks", "drawn_looks", "whole_pixels"]

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255  # ImageNet's, in grey levels
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
_SCALES = {"imagenet": (MEAN, STD), "unit": (np.zeros(3, np.float32), np.full(3, 255, np.float32))}
LUMA = np.array([0.299, 0.587, 0.114])
INNER = 7 / 8
"""Side of the papers' crops in units of the frame's short side: 112 of 128 (IIC), 224 of 256 (CoCLR)."""

TRIES = 10
_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_TO_RGB = np.linalg.inv(_TO_YIQ)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Looks:
    """What is done to each clip; the leading axes are [B, n_clips].

    Attributes:
        roi_start: float32 [B, n, 2], (y, x) of the crop's first corner in units of the frame's sides. Shares of the
            frame, not pixels: a crop outside the frame that really came makes DALI's resize corrupt the heap.
        roi_end: float32 [B, n, 2], (y, x) of the opposite corner.
        mirror: int32 [B, n], 1: flipped from left to right.
        mean: float32 [B, n, 3], subtracted from the grey levels.
        std: float32 [B, n, 3], divided by after that.
        matrix: float32 [B, n, 3, 3], RGB → RGB.
        lift: float32 [B, n], share of the clip's mean luma added to each channel after `matrix`.
        coloured: bool [B, n], whether `matrix` and `lift` apply.
        sigma: float32 [B, n], of the Gaussian blur in pixels of the resized clip; 0: none.
        alone: int64 [B], the clip that stands for both (OneClip), -1 where each clip is its own.
    """

    roi_start: Floats
    roi_end: Floats
    mirror: NDArray[np.int32]
    mean: Floats
    std: Floats
    matrix: Floats
    lift: Floats
    coloured: NDArray[np.bool_]
    sigma: Floats
    alone: NDArray[np.int64]

    def taken(self, rows: NDArray[np.int64]) -> Looks:
        """The looks of some rows, in that order."""
        return Looks(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})


def centre_looks(sides: NDArray[np.integer], clips: int, normalize: str = "imagenet") -> Looks:
    """No change but the centre crop.

    Args:
        sides: int [B, 2], height and width of each video.
        clips: Clips of one video.
        normalize: `imagenet` or `unit`.
    """
    rows, (mean, std) = len(sides), _SCALES[normalize]
    short = sides.min(axis=1, keepdims=True)
    start, end = whole_pixels(np.full(2, 0.5), short, sides)
    return Looks(
        roi_start=np.repeat(start[:, None], clips, axis=1),
        roi_end=np.repeat(end[:, None], clips, axis=1),
        mirror=np.zeros((rows, clips), np.int32),
        mean=np.broadcast_to(mean, (rows, clips, 3)),
        std=np.broadcast_to(std, (rows, clips, 3)),
        matrix=np.broadcast_to(np.eye(3, dtype=np.float32), (rows, clips, 3, 3)),
        lift=np.zeros((rows, clips), np.float32),
        coloured=np.zeros((rows, clips), np.bool_),
        sigma=np.zeros((rows, clips), np.float32),
        alone=np.full(rows, -1, np.int64),
    )


def whole_pixels(
    place: NDArray[np.floating], size: NDArray[np.number], frame: NDArray[np.number], drawn: bool = False
) -> tuple[Floats, Floats]:
    """Rectangles of whole pixels, as in the papers' code, in shares of the frame.

    Args:
        place: [..., 2], (y, x) of the first corner in units of the room that the frame leaves: 0 … 1.
        size: [..., 2] or [..., 1], height and width in pixels, rounded here.
        frame: [..., 2], height and width of the frame.
        drawn: `place` is uniform in [0, 1), and every place is to be equally likely, the last one included.

    Returns:
        `roi_start` and `roi_end` of `Looks`.
    """
    side = np.clip(np.rint(size), 1, frame)
    first = np.floor(place * (frame - side + 1)) if drawn else np.rint(place * (frame - side))
    return (first / frame).astype(np.float32), ((first + side) / frame).astype(np.float32)


def drawn_looks(
    augment: Augment,
    sides: NDArray[np.integer],
    clips: int,
    *,
    seed: int,
    epoch: int | NDArray[np.int64],
    instance: NDArray[np.int64],
    step: int = 0,
) -> Looks:
    """What happens to each clip of a batch, by address.

    Args:
        augment: Preset, flips, smallest crop, scale of the colours.
        sides: int [B, 2], height and width of each video.
        clips: Clips of one video.
        seed: Seed of the run.
        epoch: Pass over the data, of all or of each: int64 [B].
        instance: int64 [B].
        step: Number of the batch; only `supervised` looks at it.
    """
    looks, preset = centre_looks(sides, clips, augment.normalize), augment.preset
    if preset == "none":
        return looks
    draw = _Draws(uniforms(seed, epoch, instance, (clips, _Draws.COLUMNS), Purpose.LOOK))
    flip = _flip_of_step(seed, step) if preset == "supervised" else draw.flip
    mirror = np.broadcast_to((flip < 0.5) & augment.flip, draw.flip.shape).astype(np.int32)
    if preset in ("crop", "simclr"):
        start, end = _squares(draw, sides)
    else:
        published = preset in ("paper", "supervised")
        start, end = _crops(draw, sides, 0.2 if published else augment.min_area, published)
    looks = replace(looks, roi_start=start, roi_end=end, mirror=mirror)
    if preset == "paper":
        return _as_published(looks, draw)
    if preset == "simclr":
        return _changed(looks, draw, np.ones(mirror.shape, bool))
    if preset == "supervised":
        return _coloured(looks, draw, draw.jitter < 0.3, np.zeros(mirror.shape, bool))
    return _lit(looks, draw) if preset == "light" else looks


class _Draws:
    """Names for the columns of uniform numbers [B, n, COLUMNS]."""

    COLUMNS = 3 * TRIES + 14

    def __init__(self, numbers: NDArray[np.float64]) -> None:
        self.area, self.aspect, self.swap = np.split(numbers[..., : 3 * TRIES], 3, axis=-1)
        rest = np.moveaxis(numbers[..., 3 * TRIES :], -1, 0)
        self.y, self.x, self.flip, self.base, self.jitter, self.grey, self.blur, self.sigma = rest[:8]
        self.brightness, self.contrast, self.saturation, self.hue = rest[8:12]
        self.one_clip, self.which = rest[12], rest[13]


def _squares(draw: _Draws, sides: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Squares of 7/8 of the short side, uniformly anywhere in the frame."""
    side = INNER * sides.min(axis=1).astype(float)[:, None, None]
    return whole_pixels(np.stack([draw.y, draw.x], -1), side, sides[:, None], drawn=True)


def _crops(draw: _Draws, sides: NDArray[np.integer], min_area: float, swapped: bool) -> tuple[Floats, Floats]:
    """First drawn rectangle of ten that fits; if none does, the centre square."""
    height, width = sides[:, 0, None].astype(float), sides[:, 1, None].astype(float)
    area = (min_area + (1 - min_area) * draw.area) * (height * width)[..., None]
    aspect = 3 / 4 + (4 / 3 - 3 / 4) * draw.aspect
    wide, high = np.sqrt(area * aspect), np.sqrt(area / aspect)
    if swapped:
        wide, high = np.where(draw.swap < 0.5, high, wide), np.where(draw.swap < 0.5, wide, high)
    fits = (wide <= width[..., None]) & (high <= height[..., None])
    tried = fits.argmax(axis=-1)[..., None]
    some, short = fits.any(axis=-1), np.minimum(height, width)
    wide = np.where(some, np.take_along_axis(wide, tried, -1)[..., 0], short)
    high = np.where(some, np.take_along_axis(high, tried, -1)[..., 0], short)
    place = np.stack([np.where(some, draw.y, 0.5), np.where(some, draw.x, 0.5)], -1)
    return whole_pixels(place, np.stack([high, wide], -1), sides[:, None], drawn=True)


def _lit(looks: Looks, draw: _Draws) -> Looks:
    """Brightness and contrast about mid-grey, folded into mean and std: they cost nothing."""
    bright, contrast = 0.6 + 0.8 * draw.brightness[..., None], 0.6 + 0.8 * draw.contrast[..., None]
    mean, std = (looks.mean - 128 * (1 - contrast)) / (bright * contrast), looks.std / (bright * contrast)
    return replace(looks, mean=mean.astype(np.float32), std=std.astype(np.float32))


def _as_published(looks: Looks, draw: _Draws) -> Looks:
    rows, clips = looks.mirror.shape
    base, alone = draw.base < 0.3, np.full(rows, -1, np.int64)
    if clips == 2:
        one = draw.one_clip[:, 0] < 0.5
        alone = np.where(one, (draw.which[:, 0] < 0.5).astype(np.int64), -1)
        changed = (draw.which[:, 1] < 0.5).astype(np.int64)
        base = np.where(one[:, None], changed[:, None] == np.arange(2), base)
    return replace(_changed(looks, draw, base), alone=alone)


def _changed(looks: Looks, draw: _Draws, base: NDArray[np.bool_]) -> Looks:
    """Colour and blur of the clips that are `base`."""
    jitter, grey = base & (draw.jitter < 0.8), base & (draw.grey < 0.2)
    blurred = base & (draw.blur < 0.5)
    sigma = np.where(blurred, 0.1 + 1.9 * draw.sigma, 0.0).astype(np.float32)
    return replace(_coloured(looks, draw, jitter, grey), sigma=sigma)


def _coloured(looks: Looks, draw: _Draws, jitter: NDArray[np.bool_], grey: NDArray[np.bool_]) -> Looks:
    matrix, lift = _colour_map(draw, jitter, grey)
    return replace(looks, matrix=matrix, lift=lift, coloured=jitter | grey)


def _flip_of_step(seed: int, step: int) -> NDArray[np.float64]:
    """One uniform number [1, 1] for all clips of a step, whichever rank makes them."""
    return uniforms(seed, step, np.zeros(1, np.int64), (1,), Purpose.STEP_FLIP)


def _colour_map(draw: _Draws, jitter: NDArray[np.bool_], grey: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """RGB' = matrix · RGB + lift · mean luma: brightness, contrast, saturation, hue, grey in this order."""
    bright, contrast, saturation = (
        np.where(jitter, 0.6 + 0.8 * number, 1.0) for number in (draw.brightness, draw.contrast, draw.saturation)
    )
    turn = np.where(jitter, 2 * np.pi * (0.2 * draw.hue - 0.1), 0.0)
    to_grey = np.tile(LUMA, (3, 1))
    saturate = saturation[..., None, None] * np.eye(3) + (1 - saturation)[..., None, None] * to_grey
    matrix = _hue(turn) @ saturate * (bright * contrast)[..., None, None]
    # Grey stays grey under saturation and hue, so the pivot of the contrast passes through both unchanged.
    lift = bright * (1 - contrast)
    matrix = np.where(grey[..., None, None], to_grey @ matrix, matrix)
    return matrix.astype(np.float32), lift.astype(np.float32)


def _hue(turn: NDArray[np.float64]) -> NDArray[np.float64]:
    cos, sin, zero, one = np.cos(turn), np.sin(turn), np.zeros_like(turn), np.ones_like(turn)
    rotation = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(*turn.shape, 3, 3)
    return _TO_RGB @ rotation @ _TO_YIQ
