"""Which `key=value` words belong to one verb alone, and which of a recipe's keys may still be set when a run is trained?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeVar

from pydantic import Field, ValidationError

from cluster.evaluators import EVALUATORS, USUAL
from vidssl.errors import RecipeError
from vidssl.fields import Rate
from vidssl.sections import Section

__all__ = [
    "OF_AN_IMPORT",
    "OF_A_FINETUNING",
    "OF_A_TRAINED",
    "SOURCES",
    "EmbedWords",
    "EvaluateWords",
    "ExportWords",
    "FinetuneWords",
    "ImportWords",
    "ReportWords",
    "ReproduceWords",
    "own_words",
]

Own = TypeVar("Own", bound=Section)

OF_A_TRAINED: Final = ("evaluation.", "finetune.", "loader.", "trainer.device=", "data=")
"""Beginnings of the recipe's keys that change how a trained network is looked at, and not what was trained."""

OF_A_FINETUNING: Final = ("augment.", "clips.", "trainer.precision=", "seed=")
"""Those that a new supervised training of its encoder can take besides."""

OF_AN_IMPORT: Final = ("clips.", "method.name=", "method.view=", "method.second_view=", "augment.normalize=")
"""Those that say how a published file was trained, where it was not as published."""

SOURCES: Final = ("coclr", "cpr", "vicc", "iic")
"""Whose code may have written a file that is imported."""


class EmbedWords(Section):
    """Own words of `vidssl embed`."""

    out: str | None = Field(default=None, description="the zarr store to write; null: RUN/embeddings.zarr")
    view: str | None = Field(
        default=None, description="a stream that there is an encoder of, or all; null: the trained one"
    )


class EvaluateWords(Section):
    """Own words of `vidssl evaluate`."""

    what: str = Field(
        default=USUAL,
        description=f"some of {','.join(EVALUATORS)} with commas between, or all",
    )
    view: str | None = Field(
        default=None,
        description="a stream that there is an encoder of, or joint for two together; null: the trained one",
    )
    baseline: Literal["untrained", "off"] = Field(
        default="untrained", description="untrained (the same network before training is measured too) | off"
    )


class FinetuneWords(Section):
    """Own words of `vidssl finetune`."""

    view: str | None = Field(default=None, description="a stream that there is an encoder of; null: the trained one")
    init: Literal["pretrained", "scratch"] = Field(
        default="pretrained", description="pretrained | scratch (the control)"
    )
    average: Literal["probability", "logit"] | None = Field(
        default=None,
        description="how a video's rows become one answer: probability | logit; null: logit with evaluation.protocol=p2",
    )
    fuse: str | None = Field(default=None, description="eval/NAME.npz of the other stream, whose answers are added")


class ReportWords(Section):
    """Own words of `vidssl report`."""

    data: str | None = Field(
        default=None, description="of a run: the packed folder, where it has moved; null: the run's"
    )
    out: str | None = Field(default=None, description="of a packed folder: the page to write; null: PACKED/report.html")


class ReproduceWords(Section):
    """Own words of `vidssl reproduce`."""

    videos: str | None = Field(
        default=None, description="folder of the videos that are pre-trained on: UCF101, or Kinetics-400 with …-k400"
    )
    splits: str | None = Field(
        default=None,
        description="folder of the official lists, or of their folders; null: they lie in or beside the videos",
    )
    ucf101: str | None = Field(default=None, description="with …-k400: folder of UCF101's videos")
    hmdb51: str | None = Field(default=None, description="folder of HMDB51's videos; null: its rows are left out")
    fold: Literal["all", "1", "2", "3"] = Field(
        default="all", description="official splits that are evaluated; all: each, and their mean"
    )
    flow: Literal["dis", "tvl1"] | None = Field(
        default=None, description="how optical flow is made; null: as the recipe states (tvl1 takes days of all cores)"
    )
    clips_s: Rate | None = Field(
        default=None, description="clips per second of the training, for the hours of the plan; null: assumed, and said"
    )


class ImportWords(Section):
    """Own words of `vidssl import`."""

    encoder: Literal["encoder_q", "encoder_k", "sampler", "second"] = Field(
        default="encoder_q", description="which network of the file"
    )


class ExportWords(Section):
    """Own words of `vidssl export`."""

    view: str | None = Field(default=None, description="the stream to take; null: the trained one")


def own_words(model: type[Own], words: Sequence[str]) -> tuple[Own, list[str]]:
    """A verb's own words, and the words that are left for the recipe.

    Raises:
        RecipeError: a value that is not allowed.
    """
    given: dict[str, str | None] = {}
    rest: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key in model.model_fields:
            given[key] = None if value == "null" else value
        else:
            rest.append(word)
    try:
        return model.model_validate(given), rest
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        choices = str(first.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ")
        hint = f"type {key}= one of {choices}" if choices else f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise RecipeError(f"{key}={given[key]} is unknown; {hint}") from error
