"""What kinds of values can a recipe hold? Names out of the tables, and numbers that are finite and in a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from vidssl.tables.backbones import BACKBONES
from vidssl.tables.methods import METHODS
from vidssl.tables.strategies import STRATEGIES

__all__ = [
    "BackboneName",
    "Candidates",
    "Count",
    "Decay",
    "Epoch",
    "MethodName",
    "Place",
    "Rate",
    "Ratio",
    "Section",
    "Share",
    "Steps",
    "StrategyName",
    "View",
]

View = Literal["rgb", "residual", "flow", "u", "v"]
"""A view, what a clip shows: RGB frames, their differences, optical flow (both components, or one as a grey picture)."""

if TYPE_CHECKING:
    BackboneName = MethodName = StrategyName = str
else:  # the names of the tables, so that an unknown one is refused here and the help lists them
    BackboneName = Literal[tuple(BACKBONES)]
    MethodName = Literal[tuple(METHODS)]
    StrategyName = Literal[tuple(STRATEGIES)]

Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1e6)]
Decay = Annotated[float, Field(ge=0.0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Epoch = Annotated[int, Field(ge=0, le=1_000_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Candidates = Annotated[int, Field(ge=1, le=1_000_000_000)]
Place = Annotated[str, Field(min_length=1, max_length=4096)]
"""A folder, a file, or the name of a run."""


class Section(BaseModel):
    """A part of a recipe: frozen, every unknown key an error, every number finite and in its range."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: object, info: ValidationInfo) -> object:
        """A bare `true` would become 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        among = given if isinstance(given, list | tuple) else [given]
        if _is_number(kind) and any(isinstance(one, bool) for one in among):
            raise ValueError("input should be a number; true and false are none")
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _readable(cls, given: object) -> object:
        """What cannot be printed or written as text names no file and no run."""
        if isinstance(given, str) and not given.isprintable():
            raise ValueError("input holds characters that are no text (a line break, a control or half a character)")
        if isinstance(given, str) and "${" in given:
            raise ValueError("input holds ${, which a recipe reads as the value of another key")
        return given


def _is_number(kind: object) -> bool:
    return kind in (int, float) or any(_is_number(part) for part in get_args(kind))
