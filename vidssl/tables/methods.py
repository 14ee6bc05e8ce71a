"""Which pretext tasks are there? name → class, and what others have to know of it before it is loaded.

A new method is its file, a line here and its test: nothing else asks for a method by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

__all__ = ["METHODS", "MethodTraits", "Mines", "Streams"]

Streams = Literal["one", "two", "cross", "shared"]
"""one: the trained stream alone. two: a second one mines; it is trained in the warm-up, or given and frozen. cross: a
second, frozen one assigns prototypes; it must be given. shared: one network is trained on both views."""

Mines = Literal["never", "cascade", "always"]
"""Whether positives are mined: never, with `method.cascade=true` only, or always (where `mining.where` is not off)."""


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What is asked of a method by name.

    Attributes:
        place: `module:Class`, a `vidssl.methods.base.Method`.
        title: Its name as its paper writes it.
        says: What it is, in a few words.
        streams: What it learns with.
        streams_option: Key under `method.` whose value `cross` makes a method of one stream one of two; "": none.
        mines: When it trains with mined positives.
        mines_at: Values of `mining.where` that it can mine at.
        mines_in: What `mining.where=inline` mines in: the queue of keys, or memories of all videos that are trained on.
        one_stage: Its mining is plain top-k on the second view, whatever `mining.stages` says.
        positives: Where its positives come from when nothing is mined, as a sentence about it.
        second: What the second view does when nothing is mined; `{view}` is its name.
        reads_labels: Whether it learns from labels: an upper bound, no self-supervised result.
        prototypes: Whether it learns prototypes, whose health can be told.
    """

    place: str
    title: str
    says: str
    streams: Streams = "one"
    streams_option: str = ""
    mines: Mines = "never"
    mines_at: tuple[str, ...] = ("actor", "inline")
    mines_in: Literal["queue", "memories"] = "queue"
    one_stage: bool = False
    positives: str = ""
    second: str = ""
    reads_labels: bool = False
    prototypes: bool = False


METHODS: Final[Mapping[str, MethodTraits]] = MappingProxyType(
    {
        "infonce": MethodTraits(
            place="vidssl.methods.infonce:InfoNCE",
            title="InfoNCE",
            says="momentum contrast",
            mines="cascade",
            positives="knows only a video's own clips",
        ),
        "ubernce": MethodTraits(
            place="vidssl.methods.ubernce:UberNCE",
            title="UberNCE",
            says="labels: upper bound",
            positives="takes its positives from labels",
            reads_labels=True,
        ),
        "coclr": MethodTraits(
            place="vidssl.methods.coclr:CoCLR",
            title="CoCLR",
            says="top-k",
            streams="two",
            mines="always",
            one_stage=True,
        ),
        "cpr": MethodTraits(
            place="vidssl.methods.coclr:CoCLR", title="CPR", says="cascade", streams="two", mines="always"
        ),
        "vicc": MethodTraits(
            place="vidssl.methods.vicc:ViCC",
            title="ViCC",
            says="prototypes",
            streams_option="vicc.streams",
            positives="assigns clips to prototypes",
            second=", prototypes assigned with the help of the frozen {view} stream",
            prototypes=True,
        ),
        "iic": MethodTraits(
            place="vidssl.methods.iic:IIC",
            title="IIC",
            says="inter-intra contrast",
            streams="shared",
            mines="cascade",
            mines_at=("inline",),
            mines_in="memories",
            positives="draws its negatives from its memories",
            second=", contrasted with its {view} view",
        ),
    }
)
"""By the word that `method.name` takes."""
