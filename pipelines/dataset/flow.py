"""How is optical flow stored as a video? The form of a pack's flow, and the codes that stand for pixels per frame in luma.

Flow frame i is the motion from stored frame i to i + 1 (the last one is repeated, so both streams have equally many): u to
the right, v down, in pixels per frame at the size of the flow. Both lie side by side in luma, [u | v], chroma is empty.

| encoding | code c of a flow f, cut at ±20 | what it is for |
|---|---|---|
| `companded` | c = 107 · sign(f) · sqrt(abs(f) / 20) | steps of .002 px near 0, of .37 px at 20: less than half of the error that equal steps have in as many bytes |
| `parity` | d = round((f + 20) · 255 / 40) − 128; c = d up to ±86 (13.5 px), beyond it half a step for each | the 8 bits of CoCLR's, CPR's and ViCC's flow pictures |

Luma is 128 + c: within the 16 … 235 that every decoder gives back, and with the one value for no motion that codecs
predict where they know nothing, so that no motion comes back as exactly that. (CoCLR's codes know no 0: theirs is +.078 px.)

DALI's decoders make RGB: they give grey levels round(255 / 219 · (luma − 16)) instead of luma; there is a table for either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOUND", "FlowForm", "Reading", "flow_of", "luma_of", "picture_of"]

BOUND = 20.0
"""Pixels per frame at which flow is cut."""
CENTRE, REACH, KNEE = 128, 107, 86

Reading = Literal["luma", "grey"]
"""What a decoder gives: the luma plane itself, or grey levels made of it."""

_QUANTISER = {
    "companded": "luma = 128 + round(107 sign(f) sqrt(|f| / 20)), |f| cut at 20",
    "parity": "q = round((f + 20) 255 / 40), f cut at -20 and 20; d = q - 128; luma = 128 + d where |d| <= 86, else"
    " 128 + sign(d) round(86 + (|d| - 86) / 2)",
}
_MIRROR = {"companded": "u negated", "parity": "u kept"}
_ALGORITHM = {
    "dis": "OpenCV DIS, preset medium with patch stride 5, 8 descent steps, 2 refinements",
    "tvl1": "OpenCV DualTVL1, default settings",
}


@dataclass(frozen=True)
class FlowForm:
    """What the flow of a pack is.

    Attributes:
        algorithm: `dis` or `tvl1`.
        encoding: `companded` or `parity`.
        size: Short side, pixels; also the unit: flow is in pixels per frame at this size.
        crf: Quality of the flow's video.
    """

    algorithm: Literal["dis", "tvl1"]
    encoding: Literal["companded", "parity"]
    size: int
    crf: int

    @property
    def parity(self) -> bool:
        """Whether it is handled as the published code does: a picture that is mirrored and coloured like any other."""
        return self.encoding == "parity"

    def facts(self) -> dict[str, int | float | str]:
        """Everything there is to know of it, in words: what the JSON of every sample says."""
        return {
            **asdict(self),
            "made_by": _ALGORITHM[self.algorithm],
            "of": "grey levels of the stored frames i and i + 1; the last frame's is the one before it",
            "unit": f"pixels per frame, short side {self.size}",
            "bound": BOUND,
            "quantiser": _QUANTISER[self.encoding],
            "channels": "u (right) in the left half of luma, v (down) in the right half",
            "mirror": _MIRROR[self.encoding],
        }


def luma_of(flow: NDArray[np.floating], encoding: str) -> NDArray[np.uint8]:
    """Codes of flow, any shape.

    Args:
        flow: Pixels per frame.
        encoding: `companded` or `parity`.
    """
    if encoding == "parity":
        steps = np.rint((np.clip(flow, -BOUND, BOUND) + BOUND) * (255 / (2 * BOUND))) - 128
        code = np.clip(steps, -KNEE, KNEE) + (steps - np.clip(steps, -KNEE, KNEE)) / 2
    else:
        code = np.copysign(np.sqrt(np.minimum(np.abs(flow), BOUND) * (REACH**2 / BOUND)), flow)
    return (CENTRE + np.rint(code)).astype(np.uint8)


def flow_of(encoding: str, reading: Reading = "luma") -> NDArray[np.float32]:
    """Pixels per frame of each of the 256 values that a decoder may give, float32 [256]."""
    if encoding == "parity":
        return (picture_of(reading).astype(np.float64) * (2 * BOUND / 255) - BOUND).astype(np.float32)
    code = _codes(reading) / REACH
    return (BOUND * code * np.abs(code)).astype(np.float32)


def picture_of(reading: Reading = "luma") -> NDArray[np.uint8]:
    """The 8 bits of a published flow picture, of each of the 256 values that a decoder may give; for `parity`."""
    code = _codes(reading)
    steps = code + (code - np.clip(code, -KNEE, KNEE))
    return np.clip(CENTRE + steps, 0, 255).astype(np.uint8)


def _codes(reading: Reading) -> NDArray[np.float64]:
    values = np.arange(256.0)
    luma = values if reading == "luma" else np.rint(16 + values * (219 / 255))
    return np.clip(luma - CENTRE, -REACH, REACH)
