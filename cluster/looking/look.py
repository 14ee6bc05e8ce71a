"""One look at some videos: their windows, cut as the protocol says, shown to readers; the same in any process."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vidssl.evaluation.encode import Described, describe_videos

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from pipelines.loader import LoaderSpec
    from pipelines.loading.crops import Crops
    from pipelines.loading.windows import Rule

__all__ = ["Look"]


@dataclass(frozen=True, eq=False)
class Look:
    """What is shown to whom; it can be sent to another machine that sees the data.

    Attributes:
        manifest: The data.
        spec: Kind of batches.
        windows: Most windows of a video.
        rule: Which windows.
        crops: Which part of the frame.
        share: Of the short side, that `inner` and `ten` cut.
        readers: What looks, each in evaluation mode.
    """

    manifest: Manifest
    spec: LoaderSpec
    windows: int
    rule: Rule
    crops: Crops
    share: float
    readers: tuple[nn.Module, ...]

    def at(self, rows: NDArray[np.int64], device: torch.device) -> Described:
        """What the readers say of some videos, each window decoded once; no rows where none could be read.

        Args:
            rows: int64 [N], the videos.
            device: Where clips and readers go.

        Raises:
            VidsslError: the data cannot be read.
        """
        from pipelines.loader import EvalLoader

        windows = {"windows": self.windows, "rule": self.rule, "crops": self.crops, "share": self.share}
        loader = EvalLoader(self.manifest, self.spec, instances=rows, device=device, **windows)
        with contextlib.closing(loader):
            readers = [reader.to(device) for reader in self.readers]
            return describe_videos(loader, readers, rows, none_allowed=True)

    def digest(self, rows: NDArray[np.int64], device: str) -> str:
        """16 digits of everything that decides what comes out, so that what was found before can be known again."""
        spec = self.spec
        told = (self.manifest.hash, spec.clips, spec.augment.normalize, spec.views, spec.batch, spec.flow_channels)
        known = hashlib.sha256(
            repr((*told, spec.loader.decode, self.windows, self.rule, self.crops, self.share, device)).encode()
            + rows.tobytes()
        )
        for reader in self.readers:
            plain = {key: value for key, value in vars(reader).items() if isinstance(value, str)}
            known.update(repr((type(reader).__name__, plain)).encode())
            for name, value in reader.state_dict().items():
                known.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return known.hexdigest()[:16]
