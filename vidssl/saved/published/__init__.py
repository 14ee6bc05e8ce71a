"""Which encoder is in a file that the papers' authors published? CoCLR's, CPR's, ViCC's and IIC's checkpoints.

`import_published` does all of it: read without running code, recognise the paper, read the architecture off the shapes,
check that every layer found its place. The parts are here as well, for a file that needs another hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidssl.saved.published.files import read_published
from vidssl.saved.published.fit import KeyReport, compare
from vidssl.saved.published.layouts import SOURCES, from_coclr, from_iic, from_vicc, recognise, to_coclr, translate
from vidssl.saved.published.shapes import encoder_in, outline
from vidssl.sections import Model

__all__ = [
    "SOURCES",
    "KeyReport",
    "Published",
    "from_coclr",
    "from_iic",
    "from_vicc",
    "import_published",
    "read_published",
    "recognise",
    "to_coclr",
]


@dataclass(frozen=True)
class Published:
    """A published file, understood.

    Attributes:
        source: coclr, cpr, vicc or iic.
        model: Recipe section that builds its encoder; `flow_channels` is the number of channels of its clips.
        artifact: Whole `Encoder` state dict, and `extra.prototypes.weight` of ViCC.
        report: What became of every key of the file.
    """

    source: str
    model: Model
    artifact: dict[str, Tensor]
    report: KeyReport


def import_published(path: str | Path, source: str | None = None, encoder: str = "encoder_q") -> Published:
    """Read a published checkpoint file; all of it or nothing.

    Args:
        path: The authors' file.
        source: coclr, cpr, vicc or iic; None: recognised by its names.
        encoder: Which encoder of a coclr, cpr or vicc file, see `vidssl.saved.published.layouts.translate`.

    Raises:
        CheckpointError: not readable without running code, of no known layout, or with layers missing, unknown or of
            another shape.
        RecipeError: unknown source.
    """
    state = read_published(path)
    named = recognise(state) if source is None else source
    translation = translate(named, state, encoder)
    found = encoder_in(translation.artifact)
    own = outline(found)
    report = compare(translation, own)
    artifact = {key: translation.artifact[key] for key in report.loaded}
    artifact |= {key: torch.zeros(own[key].shape, dtype=own[key].dtype) for key in report.missing}  # counters
    return Published(named, found.model, artifact, report)
