"""What does the encoder see of optical flow? The views `flow`, `u` and `v` of a clip, and packs that have none, refused.

| pack | `model.flow_channels=2` | `model.flow_channels=3` | values |
|---|---|---|---|
| `companded` | (u, v) | (0, v, u) | pixels per frame at the size of the stored flow |
| `parity` | (u, v) of the picture | (128, v, u), the published flow picture | normalised as RGB's channels blue and green (`augment.normalize`) |

`u` and `v` are one of them as a grey picture in three channels (IIC).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.dataset.flow import FlowForm
from pipelines.dataset.manifest import Manifest
from pipelines.loading.feed import OF_FLOW
from vidssl.errors import DataError
from vidssl.recipe import Clips
from vidssl.views import make_views

__all__ = ["refuse_without_flow", "views_of"]


def refuse_without_flow(manifest: Manifest, views: Sequence[str]) -> None:
    """Refuse data without optical flow where a view is made of it.

    Raises:
        DataError: with the words that add flow to this very pack.
    """
    wanted = [view for view in views if view in OF_FLOW]
    if wanted and manifest.flow is None:
        source = (manifest.source.get("format", "folder"), manifest.source.get("path", "VIDEOS"), str(manifest.root))
        words = " ".join(map(shlex.quote, source))
        raise DataError(
            f"{manifest.root} holds no optical flow, which the view '{wanted[0]}' is made of; type vidssl pack {words} add=flow, "
            "or type method.second_view=residual (or method.view=rgb), which need none"
        )


def views_of(
    clips: Mapping[str, Tensor], views: Sequence[str], form: Clips, flow: FlowForm | None, channels: int
) -> dict[str, Tensor]:
    """Every asked view of the decoded streams, in the asked order.

    Args:
        clips: stream → [..., C, T, H, W]: RGB has 3 channels, companded flow (u, v), parity flow (128, v, u).
        views: Names out of `vidssl.views.VIEWS`.
        form: Reads how a residual is made.
        flow: What the flow of the pack is.
        channels: Of the view `flow`: 2 or 3.
    """
    given, pair = clips.get("flow"), None
    if given is not None and flow is not None:
        pair = given.narrow(-4, 1, 2).flip(-4) if flow.parity else given
    made = make_views(clips.get("rgb"), views, boundary=form.residual_boundary, scale=form.residual_scale, flow=pair)
    if "flow" in made and channels == 3 and given is not None and flow is not None:
        made["flow"] = given if flow.parity else _in_order_of_the_picture(given)
    return made


def _in_order_of_the_picture(flow: Tensor) -> Tensor:
    u, v = flow.split(1, dim=-4)
    return torch.cat([torch.zeros_like(u), v, u], dim=-4)
