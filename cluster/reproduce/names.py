"""Which published results can be made again? Each with its recipe, its data, and what of it its paper measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vidssl.errors import RecipeError
from vidssl.evaluation.tables import Measurement
from vidssl.headers import header_of
from vidssl.recipe import RECIPES
from vidssl.tables.lookup import did_you_mean

__all__ = ["REPRODUCTIONS", "Measured", "Reproduction", "Role", "reproduction"]

Role = Literal["first", "second", "both"]
"""Which stream of the recipe: `method.view`, `method.second_view`, or both put together."""

_PROBE: Final = (
    "finetune.backbone_lr=0",
    "finetune.epochs=100",
    "finetune.optimizer=sgd",
    "finetune.lr=0.1",
    "finetune.weight_decay=0.001",
    "finetune.milestones=[0.6,0.8]",
)
"""CoCLR's linear probe on clips (P3)."""


@dataclass(frozen=True)
class Measured:
    """One kind of number.

    Attributes:
        task: retrieval | linear | finetune.
        role: Of which stream.
        what: How the paper's rows begin that it stands beside (`PaperRow.what`).
        words: Of `vidssl finetune`, beside the recipe's.
        clips: The linear probe is trained on clips; otherwise on saved features.
        initial: Of the first phase, before the streams have met.
    """

    task: Measurement
    role: Role = "first"
    what: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    clips: bool = False
    initial: bool = False


@dataclass(frozen=True)
class Reproduction:
    """A published result.

    Attributes:
        name: What is typed.
        paper: As in `vidssl.evaluation.tables`.
        recipe: What is trained.
        trains: Data of the pre-training: ucf101 | k400.
        measured: In the order of the table.
        words: Of the recipe; twins alone have any.
        packed: Words of its packs, where the recipe's header names none.
        twin: It makes its own videos, and stands beside no paper.
    """

    name: str
    paper: str
    recipe: str
    trains: Literal["ucf101", "k400"]
    measured: tuple[Measured, ...]
    words: tuple[str, ...] = ()
    packed: str = ""
    twin: bool = False

    @property
    def pack(self) -> str:
        """Words of `vidssl pack` for its data, as the recipe's header states them."""
        return self.packed or header_of(RECIPES / f"{self.recipe}.yaml").pack


def _coclr(trains: Literal["ucf101", "k400"]) -> tuple[Measured, ...]:
    own = ("CoCLR",)
    first = tuple(Measured("retrieval", role, ("InfoNCE",), initial=True) for role in ("first", "second"))
    streams: tuple[Role, ...] = ("first",) if trains == "ucf101" else ("first", "second", "both")
    return (
        *(first if trains == "ucf101" else ()),
        Measured("retrieval", "first", own),
        Measured("retrieval", "second", own),
        *(Measured("linear", role, own, _PROBE, clips=True) for role in streams),
        *(Measured("finetune", role, own) for role in streams),
    )


_CPR: Final = (
    Measured("retrieval", "first", ("CPR",)),
    Measured("retrieval", "second"),
    Measured("linear"),
    Measured("finetune", "first", ("CPR",)),
)
_STREAMS: Final[tuple[Role, ...]] = ("first", "second", "both")
_CROSS: Final = ("cross-stream",)
_VICC: Final = (
    *(Measured("retrieval", role, _CROSS) for role in _STREAMS),
    Measured("linear"),
    *(Measured("finetune", role, _CROSS) for role in _STREAMS),
)
_REPEAT: Final = ("IIC repeat", "IIC, released weights")
_IIC: Final = (
    *(Measured("retrieval", role, _REPEAT) for role in _STREAMS),
    Measured("linear"),
    Measured("finetune", "second", ("IIC repeat",), ("clips.residual_scale=none",)),
)

_SMALL: Final = (
    "evaluation.windows=2",
    "evaluation.probe_epochs=20",
    "finetune.epochs=3",
    "finetune.backbone_lr=1",
    "finetune.batch=16",
    "finetune.choose=last",
    "finetune.dropout=0.2",
    "finetune.milestones=[0.8]",
    "trainer.checkpoint_every_steps=20",
    "trainer.workers=1",
    "trainer.batch=16",
)
_FLOW: Final = ("method.second_view=flow", "model.flow_channels=3")
_FLOW_PACK: Final = "flow=dis flow_encoding=parity"

_ALL: Final = (
    Reproduction("cpr-ucf101", "CPR", "cpr-ucf101-s3d", "ucf101", _CPR),
    Reproduction("coclr-ucf101", "CoCLR", "coclr-ucf101-s3d", "ucf101", _coclr("ucf101")),
    Reproduction("vicc-ucf101", "ViCC", "vicc-ucf101-s3d", "ucf101", _VICC),
    Reproduction("vicc-ucf101-r2plus1d", "ViCC", "vicc-ucf101-r2plus1d", "ucf101", _VICC),
    Reproduction("iic-ucf101", "IIC", "iic-ucf101-r3d", "ucf101", _IIC),
    Reproduction("iic-ucf101-c3d", "IIC", "iic-ucf101-c3d", "ucf101", _IIC),
    Reproduction("iic-ucf101-r2plus1d", "IIC", "iic-ucf101-r2plus1d", "ucf101", _IIC),
    Reproduction("iic-ucf101-r3d18", "IIC", "iic-ucf101-r3d18", "ucf101", _IIC),
    Reproduction("cpr-k400", "CPR", "cpr-k400-s3d", "k400", _CPR),
    Reproduction("coclr-k400", "CoCLR", "coclr-k400-s3d", "k400", _coclr("k400")),
    Reproduction(
        "cpr-tiny",
        "CPR",
        "cpr-cycles-tiny",
        "ucf101",
        _CPR,
        (
            *_FLOW,
            *_SMALL,
            "method.queue=96",
            "trainer.steps=40",
            "first-0:trainer.steps=60",
            "second-0:trainer.steps=60",
        ),
        _FLOW_PACK,
        twin=True,
    ),
    Reproduction(
        "vicc-tiny",
        "ViCC",
        "vicc-tiny",
        "ucf101",
        _VICC,
        (*_FLOW, *_SMALL, "trainer.steps=60", "first-0:trainer.steps=60", "second-0:trainer.steps=60"),
        _FLOW_PACK,
        twin=True,
    ),
    Reproduction(
        "iic-tiny",
        "IIC",
        "iic-tiny",
        "ucf101",
        _IIC,
        (*_SMALL, "trainer.steps=100", "method.iic.negatives=96"),
        twin=True,
    ),
)
REPRODUCTIONS: Final = {one.name: one for one in _ALL}
"""Name → reproduction. A new one is its line here, and the rows of its paper in `vidssl.evaluation.tables`."""


def reproduction(name: str) -> Reproduction:
    """The reproduction of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in REPRODUCTIONS:
        near = did_you_mean(name, REPRODUCTIONS)
        raise RecipeError(f"nothing to reproduce is called '{name}'; there are {', '.join(REPRODUCTIONS)}{near}")
    return REPRODUCTIONS[name]
