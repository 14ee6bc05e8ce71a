"""vidssl: self-supervised video learning (CPR, ViCC, IIC); the learning mathematics, without Ray or DALI.

`vidssl.load_encoder(FOLDER)` gives a trained encoder to other code; it is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidssl.saved.pretrained import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    # torch is imported with the first encoder, not with the package
    if name == "load_encoder":
        from vidssl.saved.pretrained import load_encoder

        return load_encoder
    raise AttributeError(f"module 'vidssl' has no attribute '{name}'")
