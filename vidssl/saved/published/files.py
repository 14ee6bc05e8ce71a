"""What tensors are in a checkpoint file? Read without running any of its code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidssl.errors import CheckpointError
from vidssl.saved.tensors import UNREADABLE, foreign_code

__all__ = ["read_published"]


class _LeftOut:
    """Stands where a file has options of a run or a numpy number: it takes whatever the file says and keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_BESIDES = (
    "argparse.Namespace",  # IIC's `opt`, the command line of the run
    "numpy.dtype",
    "numpy.core.multiarray.scalar",  # a best accuracy that numpy computed
    "numpy._core.multiarray.scalar",
)
"""Names that published files refer to beside their tensors. None is looked up: `_LeftOut` answers for all of them, so
the file cannot reach argparse or numpy, and what it says about them is thrown away."""


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file `{"state_dict": …}` (also `{"model": …}` or bare), without any `module.` prefix.

    The file is read with `weights_only=True`: it cannot run code. Epoch, optimizer, options and queues beside the
    weights are read over.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that needs code to be read.
    """
    tree = _load(Path(path).expanduser())
    for name in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {str(key).removeprefix("module."): value for key, value in tree.items() if isinstance(value, Tensor)}


def _load(path: Path) -> Any:
    try:
        with (
            torch.serialization.safe_globals([(_LeftOut, name) for name in _BESIDES]),
            warnings.catch_warnings(action="ignore"),  # torch's words for who writes pickles
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except UNREADABLE as error:
        code = foreign_code(error)
        if code is None:
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f"{path} is no checkpoint that can be read safely: it asks for the code of {code}, and only tensors, "
            "numbers and options are read; where you trust it, save its weights alone: torch.save({'state_dict': …}, FILE)"
        ) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    said = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    if said.startswith("Weights only load failed"):  # goes on with advice to switch the check off
        said = "it is no file of torch.save"
    return CheckpointError(f"{path} is no checkpoint that can be read safely: {said}")
