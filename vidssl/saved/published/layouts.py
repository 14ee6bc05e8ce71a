"""Which of our names is each name of a published file? One translation for CoCLR, CPR, ViCC and IIC.

| file | encoder | head | beside it |
|---|---|---|---|
| coclr, cpr | `encoder_q.0.*` | `encoder_q.2`, `encoder_q.4`: 1×1×1 convolutions | `encoder_k`, `sampler`, queues |
| vicc | the same | the same | `prototypes.weight`, `second` |
| iic | bare: `conv1.*` … | none | `linear`, of a fine-tuned file |

S3D files hold every layer twice (as `Conv_2b` and as `block2.1`, one tensor under two names); the `block` names are
kept, which is also the copy that the published code reads last.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vidssl.errors import CheckpointError, RecipeError

__all__ = ["SOURCES", "Translation", "from_coclr", "from_iic", "from_vicc", "recognise", "to_coclr", "translate"]

SOURCES = ("coclr", "cpr", "vicc", "iic")
"""Papers whose files are read; cpr writes CoCLR's layout."""

_HEAD = {"2": "head.0", "4": "head.2"}
_ALIAS = re.compile(r"^(Conv_|Mixed_|maxpool|MaxPool)")
_PROTOTYPES = "prototypes.weight"
_IIC_STEMS = ("conv1.temporal_spatial_conv.weight", "conv1.spatial_conv.weight", "conv3a.weight")
_CLASSIFIER = "linear."


@dataclass(frozen=True)
class Translation:
    """A published state dict in our names.

    Attributes:
        artifact: `Encoder` state dict, and `extra.prototypes.weight` of ViCC.
        ignored: Keys of the file that belong to something else.
        doubles: Keys of the file that name a layer a second time.
    """

    artifact: dict[str, Tensor]
    ignored: tuple[str, ...]
    doubles: tuple[str, ...]


def recognise(state: Mapping[str, Tensor]) -> str:
    """`coclr` (also CPR's files, which have its layout), `vicc` or `iic`.

    Raises:
        CheckpointError: none of them, with what the file has.
    """
    keys = {key.removeprefix("module.") for key in state}
    if any(key.startswith("encoder_q.") for key in keys):
        return "vicc" if _PROTOTYPES in keys else "coclr"
    if any(stem in keys for stem in _IIC_STEMS):
        return "iic"
    raise CheckpointError(
        f"this file is of no known layout: it has {_beginnings(state)}; coclr and cpr have encoder_q, "
        "vicc has encoder_q and prototypes, iic has a bare r3d, r21d or c3d (conv1, bn1 …)"
    )


def translate(source: str, state: Mapping[str, Tensor], encoder: str = "encoder_q") -> Translation:
    """A published state dict in our names; nothing is lost silently.

    Args:
        source: One of `SOURCES`.
        state: The published names, with or without the `module.` of DistributedDataParallel.
        encoder: coclr, cpr, vicc: `encoder_q` (what is evaluated), `encoder_k` (its momentum twin), `sampler` (CoCLR's
            frozen second stream) or `second` (ViCC's).

    Raises:
        CheckpointError: the file has no such encoder at all.
        RecipeError: unknown source.
    """
    if source not in SOURCES:
        near = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f"; did you mean '--from {near[0]}'?" if near else ""
        raise RecipeError(f"--from {source} is unknown; use one of {', '.join(SOURCES)}{hint}")
    artifact: dict[str, Tensor] = {}
    ignored, doubles = [], []
    for key, value in state.items():
        name = key.removeprefix("module.")
        if source == "iic":
            ours = None if name.startswith(_CLASSIFIER) else f"backbone.{name}"
        else:
            ours = _in_our_words(name, encoder, prototypes=source == "vicc" and encoder == "encoder_q")
        if ours is None:
            ignored.append(key)
        elif ours == "":
            doubles.append(key)
        else:
            is_head = ours.startswith("head.") and value.ndim == 5
            artifact[ours] = value.flatten(1) if is_head else value
    _demand_encoder(source, state, artifact, encoder)
    return Translation(artifact, tuple(ignored), tuple(doubles))


def from_coclr(state: Mapping[str, Tensor], encoder: str = "encoder_q") -> dict[str, Tensor]:
    """An `Encoder` state dict out of a CoCLR or CPR `state_dict`; see `translate`."""
    return translate("coclr", state, encoder).artifact


def from_vicc(state: Mapping[str, Tensor], encoder: str = "encoder_q") -> dict[str, Tensor]:
    """An artifact out of a ViCC `state_dict`: an `Encoder` state dict and `extra.prototypes.weight`; see `translate`."""
    return translate("vicc", state, encoder).artifact


def from_iic(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Encoder` state dict without head out of IIC's `model`; see `translate`."""
    return translate("iic", state).artifact


def to_coclr(state: Mapping[str, Tensor], encoder: str = "encoder_q") -> dict[str, Tensor]:
    """The published names for an `Encoder` state dict (`block` names only; the published code wants `strict=False`)."""
    index = {ours: theirs for theirs, ours in _HEAD.items()}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            out[f"{encoder}.0.{rest}"] = value
        elif part == "extra":  # ViCC's prototypes
            out[rest] = value
        else:
            layer, _, name = rest.partition(".")
            shaped = value[:, :, None, None, None] if name == "weight" else value
            out[f"{encoder}.{index[f'{part}.{layer}']}.{name}"] = shaped
    return out


def _in_our_words(name: str, encoder: str, prototypes: bool) -> str | None:
    """Our name; "" for the second name of a layer, None for what belongs to something else.

    A layer that our encoder has no place for keeps its published name, so that the strict check finds it.
    """
    if name == _PROTOTYPES and prototypes:
        return f"extra.{_PROTOTYPES}"
    if not name.startswith(f"{encoder}."):
        return None
    index, _, rest = name.removeprefix(f"{encoder}.").partition(".")
    if index == "0":
        return "" if _ALIAS.match(rest) else f"backbone.{rest}"
    return f"{_HEAD[index]}.{rest}" if index in _HEAD else name


def _demand_encoder(source: str, state: Mapping[str, Tensor], artifact: Mapping[str, Tensor], encoder: str) -> None:
    if source == "iic":
        if not any(key.startswith("backbone.conv1.") for key in artifact):
            raise CheckpointError(f"no key begins with 'conv1.'; this file has {_beginnings(state)}")
    elif not any(key.startswith("backbone.") for key in artifact):
        raise CheckpointError(f"no key begins with '{encoder}.'; this file has {_beginnings(state)}")


def _beginnings(state: Mapping[str, Tensor]) -> str:
    first = sorted({key.removeprefix("module.").split(".")[0] for key in state})
    return ", ".join(first[:6] + ["…"] * (len(first) > 6)) or "no keys"
