"""Which encoder is in a file that the papers' authors published? CoCLR's and CPR's checkpoints, read and written.

Their `state_dict` names the query encoder `encoder_q`: `.0.` is the backbone, `.2.` and `.4.` are the head's 1×1×1
convolutions. S3D files hold every layer twice (as `Conv_2b` and as `block2.1`, one tensor under two names); the `block`
names are kept, which is also the copy that the published code reads last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from vidssl.encoder import Encoder
from vidssl.errors import CheckpointError

__all__ = ["Imported", "from_coclr", "import_encoder", "read_published", "to_coclr"]

_HEAD = {"2": "head.0", "4": "head.2"}
_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)
"""What `torch.load` raises on files of another kind: the unpickler runs into whatever stands there."""
_ALIAS = re.compile(r"^(Conv_|Mixed_|maxpool|MaxPool)")


@dataclass(frozen=True)
class Imported:
    """What an import found.

    Attributes:
        loaded: Names of our encoder that were filled; all of them, or the import would have failed.
        ignored: Keys of the file that belong to something else (queue, key encoder, optimizer).
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file `{"state_dict": …}` (also `{"model": …}` or bare), without any `module.` prefix.

    The file is read with `weights_only=True`: it cannot run code.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that needs code to be read.
    """
    try:
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is no checkpoint that can be read safely: {str(error).splitlines()[0]}"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {str(key).removeprefix("module."): value for key, value in tree.items() if isinstance(value, Tensor)}


def from_coclr(state: Mapping[str, Tensor], encoder: str = "encoder_q") -> dict[str, Tensor]:
    """An `Encoder` state dict out of a CoCLR or CPR `state_dict`.

    Args:
        state: The published names.
        encoder: `encoder_q` (what is evaluated) or `encoder_k` (its momentum twin).

    Raises:
        CheckpointError: no key of that encoder at all.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if not name.startswith(f"{encoder}."):
            continue
        index, _, rest = name.removeprefix(f"{encoder}.").partition(".")
        if index == "0" and not _ALIAS.match(rest):
            found[f"backbone.{rest}"] = value
        elif index in _HEAD:
            found[f"{_HEAD[index]}.{rest}"] = value.flatten(1) if value.ndim == 5 else value
    if not found:
        near = sorted({key.split(".")[0] for key in state})[:6]
        raise CheckpointError(f"no key begins with '{encoder}.'; this file has {', '.join(near) or 'no keys'}")
    return found


def to_coclr(state: Mapping[str, Tensor], encoder: str = "encoder_q") -> dict[str, Tensor]:
    """The published names for an `Encoder` state dict (`block` names only; the published code wants `strict=False`)."""
    index = {ours: theirs for theirs, ours in _HEAD.items()}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            out[f"{encoder}.0.{rest}"] = value
            continue
        layer, _, name = rest.partition(".")
        shaped = value[:, :, None, None, None] if name == "weight" else value
        out[f"{encoder}.{index[f'{part}.{layer}']}.{name}"] = shaped
    return out


def import_encoder(target: Encoder, state: Mapping[str, Tensor], encoder: str = "encoder_q") -> Imported:
    """Fill `target` with a published encoder; all of it or nothing.

    Raises:
        CheckpointError: another architecture (S3D against S3D-G, another width), missing or unknown layers.
    """
    found, own = from_coclr(state, encoder), target.state_dict()
    missing, unknown = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    shapes = [key for key in own.keys() & found.keys() if own[key].shape != found[key].shape]
    if missing or unknown or shapes:
        first = (missing + unknown + sorted(shapes))[0]
        raise CheckpointError(
            f"this checkpoint is of another encoder: {len(missing)} layers are missing in it, {len(unknown)} are unknown, "
            f"{len(shapes)} have another shape (first: {first}); set model.backbone and model.dim to what it was trained with"
        )
    target.load_state_dict(found)
    used = f"{encoder}."
    ignored = (key for key in state if not key.removeprefix("module.").startswith(used))
    return Imported(loaded=tuple(found), ignored=tuple(ignored))
