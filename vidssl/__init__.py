"""vidssl: self-supervised video learning (CPR, ViCC, IIC); the learning mathematics, without Ray or DALI."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
