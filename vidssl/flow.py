"""How is optical flow stored as a picture, and what does a mirror do to it? The codec of CoCLR's flow, and one flip rule.

A flow clip holds two channels in pixels per frame: u to the right, v down. CoCLR clips them to ±20 and stores 8 bits:

    q = round((f + 20) · 255 / 40), half to even        f = q · 40 / 255 − 20

One level is 0.157 px, so a value inside ±20 comes back within 0.079 px. No motion is 127.5, which rounds to 128: it
comes back as +0.078 px. Weights that were trained on flow are tied to this encoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BOUND", "STILL", "decode", "encode", "flip", "to_picture"]

BOUND = 20.0
"""Pixels per frame at which flow is clipped."""
STILL = 128
"""Code of no motion, and the value of the unused third channel in CoCLR's flow pictures."""


def encode(flow: Tensor) -> Tensor:
    """8-bit codes of flow in pixels per frame, any shape; uint8."""
    clipped = flow.clamp(-BOUND, BOUND)
    return ((clipped + BOUND) * 255 / (2 * BOUND)).round().to(torch.uint8)  # torch rounds half to even


def decode(codes: Tensor) -> Tensor:
    """Flow in pixels per frame of 8-bit codes, any shape; float32."""
    return codes.float() * (2 * BOUND) / 255 - BOUND


def flip(flow: Tensor, negates_u: bool = True) -> Tensor:
    """A flow clip seen in a mirror: columns reversed and, since right has become left, u negated.

    Args:
        flow: [..., 2, T, H, W] in pixels per frame.
        negates_u: False: columns only, as the published CoCLR, CPR and ViCC runs did.
    """
    mirrored = flow.flip(-1)
    if not negates_u:
        return mirrored
    u, v = mirrored.split(1, dim=-4)
    return torch.cat([-u, v], dim=-4)


def to_picture(flow: Tensor, channels: int = 2) -> Tensor:
    """A flow clip as the published networks see it before their mean and deviation are taken: codes / 255.

    Args:
        flow: [..., 2, T, H, W] in pixels per frame.
        channels: 2: (u, v). 3: (no motion, v, u), the order in which the published flow pictures were read.

    Returns:
        [..., channels, T, H, W], float32 in [0, 1].
    """
    codes = encode(flow)
    if channels == 3:
        u, v = codes.split(1, dim=-4)
        codes = torch.cat([torch.full_like(u, STILL), v, u], dim=-4)
    return codes.float() / 255
