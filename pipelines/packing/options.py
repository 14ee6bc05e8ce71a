"""How is a data set packed? The `key=value` words of `vidssl pack`, typed and validated."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.dataset.flow import FlowForm
from pipelines.packing.part import Cut, parse_cut
from pipelines.packing.timeline import plain_rate
from pipelines.packing.verdict import Limits, Target
from vidssl.errors import RecipeError

__all__ = ["PackOptions", "pack_options"]

_CRF = {"h264": 23, "vp9": 34}  # about the same quality and bytes at 128 pixels
_FLOW_CRF = {("h264", "companded"): 29, ("vp9", "companded"): 32, ("h264", "parity"): 14, ("vp9", "parity"): 12}
_OF_FLOW = ("flow_size", "flow_encoding", "flow_crf")
_OF_CUTS = ("cut_min", "cut_threshold")


class PackOptions(BaseModel):
    """Everything that can be chosen about a pack; frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    codec: Literal["h264", "vp9"] = Field(default="h264", description="vp9 is decoded by DALI on a CPU too")
    fps: Annotated[float, Field(ge=1, le=120)] | Literal["source"] = Field(
        default=25.0, description="constant frame rate, resampled by timestamps; source: each video keeps its own"
    )
    size: Annotated[int, Field(ge=128, le=1024, multiple_of=2)] = Field(default=128, description="short side, pixels")
    crf: Annotated[int, Field(ge=0, le=63)] | None = Field(
        default=None, description="quality; h264 23, vp9 34; lower is better"
    )
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = Field(
        default="veryfast", description="of x264: slower is smaller"
    )
    gop: Annotated[int, Field(ge=1, le=256)] = Field(default=16, description="frames per closed GOP and fragment")
    min_frames: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=8, description="shorter videos are rejected")
    min_side: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=16, description="videos with a smaller side, pixels, are rejected"
    )
    max_aspect: Annotated[float, Field(ge=1, le=16)] = Field(
        default=4, description="longer frames are cropped to this ratio"
    )
    keep_partial: bool = Field(
        default=False, description="pack the frames before a decoding error instead of rejecting"
    )
    max_minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=600, description="longer videos are rejected"
    )
    timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=30, description="seconds without a new frame that count as hung"
    )
    max_seconds: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        default=3600, description="seconds of work after which a video is given up and rejected"
    )
    memory_mb: Annotated[int, Field(ge=1024, le=1_000_000)] = Field(
        default=8192,
        description="megabytes of address space of a decoding process; a video that wants more is rejected",
    )
    splits: str | None = Field(
        default=None, description="folder of the official lists (ucf101, hmdb51, kinetics, ssv2)"
    )
    fold: Literal[1, 2, 3, "all"] = Field(
        default=1,
        description="which official split; all: split 1, and OUT/fold2, OUT/fold3 beside it without a second copy",
    )
    group: str | None = Field(
        default=None, description="regular expression; its first group, in the path, names the source"
    )
    label_key: str | None = Field(
        default=None, description="where a sample has its label (webdataset): cls, txt or json.KEY; none: cls"
    )
    group_key: str | None = Field(
        default=None, description="where a sample names its source (webdataset): cls, txt or json.KEY"
    )
    test_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0, description="share of each class, by group, for test"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="of the order in the shards and of test_share"
    )
    shard_mb: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        default=256, description="size of a shard, megabytes; its flow comes on top"
    )
    flow: Literal["none", "dis", "tvl1"] = Field(
        default="none",
        description="optical flow as a second stream (pip install 'vidssl[flow]'): none | dis (fast) | tvl1 (the papers'; some hundred times as slow)",
    )
    flow_size: Annotated[int, Field(ge=128, le=1024, multiple_of=2)] | None = Field(
        default=None, description="short side of the flow, pixels, at most size; none: size"
    )
    flow_encoding: Literal["companded", "parity"] = Field(
        default="companded",
        description="companded (numbers, finer near zero) | parity (8-bit pictures, for published flow checkpoints)",
    )
    flow_crf: Annotated[int, Field(ge=0, le=63)] | None = Field(
        default=None, description="quality of the flow; h264 29 (parity 14), vp9 32 (parity 12)"
    )
    cut: str = Field(
        default="none",
        description="clips of long sources: none | 10s (any seconds) | scenes (where FFmpeg's scdet sees the scene change)",
    )
    cut_min: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        default=None, description="seconds; a shorter clip is rejected; none: 1, or half of a shorter cut"
    )
    cut_threshold: Annotated[float, Field(gt=0, le=100)] = Field(
        default=6, description="score of scdet from which the scene has changed; higher finds fewer scenes"
    )
    duplicates: Literal["keep", "siblings", "drop"] = Field(
        default="keep",
        description="copies of a video, re-encoded, scaled, cropped a little, shortened or mirrored: keep (not looked for) | siblings "
        "(one group, never each other's positive or negative) | drop (one of them is packed)",
    )
    add: Literal["nothing", "flow"] = Field(
        default="nothing", description="flow: make the flow of the pack that OUT holds; its RGB stays as it is"
    )
    fresh: bool = Field(default=False, description="throw away what OUT holds if it was packed from something else")
    stage: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="folder where a pack for a store is made before it is uploaded, and stays; none: one in the user's cache, removed afterwards",
    )

    @field_validator("fps", mode="before")
    @classmethod
    def _rate_from_word(cls, value: object) -> object:
        if isinstance(value, str) and value != "source":
            try:
                return float(value)
            except ValueError:
                raise ValueError("input should be a number, or source for each video's own") from None
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("fold", mode="before")
    @classmethod
    def _fold_from_word(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("cut")
    @classmethod
    def _says_where(cls, value: str) -> str:
        if value != "none":
            parse_cut(value)
        return value

    @field_validator("group")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        try:
            if value is not None and not re.compile(value).groups:
                raise ValueError(r"the expression has no (...) to take the group from, e.g. group='_(g\d+)_'")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    @field_validator("label_key", "group_key")
    @classmethod
    def _names_a_member(cls, value: str | None) -> str | None:
        if value is not None and value not in ("cls", "txt") and not re.fullmatch(r"json(\.[^.]+)+", value):
            raise ValueError("input should be cls, txt or json.KEY, e.g. json.label")
        return value

    @model_validator(mode="after")
    def _one_way_to_group(self) -> PackOptions:
        if self.group and self.group_key:
            raise ValueError(
                f"group={self.group} and group_key={self.group_key} both name the source; type one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _adding_makes(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("add") == "flow":
            return {"flow": "dis"} | given
        return given

    @model_validator(mode="after")
    def _crf_of_x264(self) -> PackOptions:
        for name in ("crf", "flow_crf"):
            if self.codec == "h264" and (value := getattr(self, name)) is not None and value > 51:
                raise ValueError(f"{name}={value}: h264 takes 0 to 51")
        return self

    @model_validator(mode="after")
    def _flow_goes_together(self) -> PackOptions:
        default = type(self).model_fields
        said = [name for name in _OF_FLOW if getattr(self, name) != default[name].default]
        if self.flow == "none" and said:
            raise ValueError(
                f"{said[0]}={getattr(self, said[0])} is about flow, and flow=none makes none; type flow=dis"
            )
        if self.fresh and self.add == "flow":
            raise ValueError("fresh=true throws away the pack that add=flow adds to; leave one of them out")
        if self.flow == "none" and self.add == "flow":
            raise ValueError("add=flow makes flow, and flow=none makes none; type flow=dis or flow=tvl1")
        if self.flow_size is not None and self.flow_size > self.size:
            raise ValueError(
                f"flow_size={self.flow_size} is larger than size={self.size}, and flow is made of the stored frames; "
                f"type flow_size={self.size} or less"
            )
        return self

    @model_validator(mode="after")
    def _cut_goes_together(self) -> PackOptions:
        if self.cut == "none" and self.cut_min is not None:
            raise ValueError(
                f"cut_min={self.cut_min:g} is about clips, and cut=none makes none; type cut=10s or cut=scenes"
            )
        if self.cut != "scenes" and self.cut_threshold != type(self).model_fields["cut_threshold"].default:
            raise ValueError(
                f"cut_threshold={self.cut_threshold:g} is about scenes, and cut={self.cut} looks for none; type cut=scenes"
            )
        if self.cut_min is not None and (every := parse_cut(self.cut)) is not None and self.cut_min > every:
            raise ValueError(
                f"cut_min={self.cut_min:g} rejects every clip of cut={self.cut}; type cut_min={every:g} or less"
            )
        return self

    def cutting(self) -> Cut | None:
        """How sources are cut; None: they are not."""
        if self.cut == "none":
            return None
        every = parse_cut(self.cut)
        usual = 1.0 if every is None else min(1.0, every / 2)
        return Cut(every, usual if self.cut_min is None else self.cut_min, self.cut_threshold)

    def target(self) -> Target:
        """The form of one packed video."""
        same = ("size", "codec", "preset", "gop", "min_frames", "min_side", "max_aspect", "keep_partial", "max_minutes")
        return Target(
            fps=plain_rate(25 if self.fps == "source" else self.fps),
            own_rate=self.fps == "source",
            crf=_CRF[self.codec] if self.crf is None else self.crf,
            flow=self.flow_form(),
            prints=self.duplicates != "keep",
            **{name: getattr(self, name) for name in same},
        )

    def flow_form(self) -> FlowForm | None:
        """What the flow is made as; None: none is made."""
        if self.flow == "none":
            return None
        crf = _FLOW_CRF[self.codec, self.flow_encoding] if self.flow_crf is None else self.flow_crf
        return FlowForm(self.flow, self.flow_encoding, self.flow_size or self.size, crf)

    def limits(self) -> Limits:
        """What one video may take."""
        return Limits(self.timeout, self.max_seconds, self.memory_mb)

    def identity(self) -> str:
        """What decides the packed bytes, as JSON (neither `fresh`, `stage` nor the limits of a machine do).

        Of flow, cuts and duplicates nothing is said where there are none: such a pack is the same as one that was made before
        there were any.
        """
        silent = {"flow", *_OF_FLOW} if self.flow == "none" else set()
        silent |= {"cut", *_OF_CUTS} if self.cut == "none" else set()
        silent |= {"duplicates"} if self.duplicates == "keep" else set()
        return json.dumps(
            self.model_dump(mode="json", exclude={"fresh", "add", "stage", *vars(Limits()), *silent}), sort_keys=True
        )


def pack_options(words: Sequence[str]) -> PackOptions:
    """Options from `key=value` words.

    Raises:
        RecipeError: no `key=value`, an unknown key (with the nearest known one) or a value that is not allowed.
    """
    given = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise RecipeError(f"'{word}' is no option; type key=value, e.g. size=160")
        if key not in PackOptions.model_fields:
            near = difflib.get_close_matches(key, PackOptions.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(PackOptions.model_fields)}"
            raise RecipeError(f"unknown option '{key}'; {hint}")
        given[key] = value
    try:
        return PackOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        where = f"{first['loc'][0]}={first['input']}: " if first["loc"] else ""
        raise RecipeError(f"{where}{message[0].lower() + message[1:]}") from error
