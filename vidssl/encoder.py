"""What turns a clip into an embedding? Backbone, pooling, a two-layer head; and its slow twin that makes the keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vidssl.backbones import build_backbone
from vidssl.errors import CheckpointError, RecipeError
from vidssl.sections import Model
from vidssl.views import channels_of

__all__ = ["Encoder", "build_encoder", "check_fit", "follow", "momentum_twin", "unit_rows"]


class Encoder(nn.Module):
    """Backbone → mean over T, H, W → linear F→F, ReLU, linear F→D (the head of CoCLR and CPR; no batch norm in it).

    The published heads are 1×1×1 convolutions on the pooled map, which is the same arithmetic; `vidssl.saved.published`
    renames `encoder_q.0.*` to `backbone.*`, `encoder_q.2.*` to `head.0.*` and `encoder_q.4.*` to `head.2.*`.

    Args:
        backbone: [B, C, T, H, W] → [B, F, t, h, w], with an attribute `features` = F.
        dim: D, width of the embedding.
        head: `mlp`, or `none`: the pooled backbone is the embedding (IIC's first version); then dim must be F.

    Raises:
        RecipeError: no head, and another dim than the backbone's width.
    """

    def __init__(self, backbone: nn.Module, dim: int, head: str = "mlp") -> None:
        super().__init__()
        width = cast(int, backbone.features)
        self.backbone = backbone
        if head == "none":
            if dim != width:
                raise RecipeError(f"model.head=none gives {width} columns, not model.dim={dim}; type model.dim={width}")
            self.head = nn.Sequential()
        else:
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.width = width
        self.dim = dim

    def features(self, clips: Tensor) -> Tensor:
        """What the evaluation reads: pooled backbone output [B, F] of `clips` [B, C, T, H, W]."""
        return self.backbone(clips).mean(dim=(2, 3, 4))

    def forward(self, clips: Tensor) -> Tensor:
        """Embeddings [B, D] of `clips` [B, C, T, H, W], not normalised."""
        return self.head(self.features(clips))


def build_encoder(model: Model, view: str = "rgb") -> Encoder:
    """The encoder of a recipe for clips of `view`, with fresh weights from torch's current generator.

    Raises:
        RecipeError: unknown backbone or view; no head and another dim than the backbone's width.
    """
    return Encoder(build_backbone(model, channels_of(view, model.flow_channels)), model.dim, model.head)


def check_fit(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of another network, in one sentence.

    Raises:
        CheckpointError: keys or shapes that are not those of `encoder`.
    """
    own = encoder.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or other:
        first = (other + unknown + missing)[0]
        raise CheckpointError(
            f"these weights are of another encoder: {len(missing)} layers of ours are missing in them, {len(unknown)} are "
            f"unknown, {len(other)} have another shape (first: {first}); set model.backbone, model.dim, model.width and "
            "model.head to what they were trained with"
        )


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [..., D] of length one, in float32 at least (autocast may have made them half precision)."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)


def momentum_twin(encoder: Encoder) -> Encoder:
    """A copy of `encoder` that takes no gradient."""
    twin = copy.deepcopy(encoder)
    twin.requires_grad_(False)
    return twin


@torch.no_grad()
def follow(twin: Encoder, encoder: Encoder, momentum: float) -> None:
    """One step of the momentum update: twin ← m·twin + (1−m)·encoder (MoCo, equation 2).

    Parameters only: the twin's batch-norm statistics are its own, as in the published code.
    """
    blend = get_ema_multi_avg_fn(momentum)
    blend(list(twin.parameters()), list(encoder.parameters()), 0)
