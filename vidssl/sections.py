"""What can a recipe say? Its sections: frozen, every unknown key an error, every key with a sentence of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from vidssl.downstream import Evaluation, Finetune
from vidssl.fields import (
    BackboneName,
    Count,
    Place,
    Ratio,
    Section,
    Share,
    Steps,
    View,
)
from vidssl.pretext import Iic, Mining, Pretext, Vicc
from vidssl.tables.backbones import BACKBONES

__all__ = [
    "SAME_NUMBERS",
    "Augment",
    "Clips",
    "Evaluation",
    "Finetune",
    "Iic",
    "Loader",
    "Mining",
    "Model",
    "Optim",
    "Phase",
    "Place",
    "Pretext",
    "Section",
    "Source",
    "Trainer",
    "Vicc",
    "View",
]


SAME_NUMBERS: dict[str, Any] = {
    "name": True,
    "evaluation": True,
    "finetune": True,
    "loader": {"read", "reads", "cache", "cache_gb"},
    "trainer": {
        "storage",
        "copy_to",
        "log_every_steps",
        "keep",
        "keep_epochs",
        "max_failures",
        "hang_s",
        "min_workers",
        "in_process",
        "wait_for_nodes",
    },
}
"""What changes no number of a training: keys that a run may go on with other values of."""


class Clips(Section):
    """Which frames a clip holds and how large it is."""

    frames: int = Field(default=16, ge=1, le=1024, description="T, frames of one clip")
    stride: int = Field(default=1, ge=1, le=1024, description="source frames from one clip frame to the next")
    size: int = Field(default=112, ge=1, le=4096, description="height and width of a clip in pixels")
    pack_size: int | None = Field(
        default=None,
        ge=128,
        le=1024,
        description="short side in pixels that the packed videos should have; a smaller pack is said; null: what crops of clips.size take",
    )
    per_video: int = Field(default=2, ge=1, le=64, description="clips drawn from a video in one step")
    residual_boundary: Literal["wrap", "drop", "repeat"] = Field(
        default="repeat", description="first frame of a residual clip: wrap (IIC) | drop | repeat the second"
    )
    residual_scale: Literal["none", "half_shift"] = Field(
        default="none", description="none (differences) | half_shift ((d+1)/2, IIC's pre-training)"
    )


class Augment(Section):
    """Random changes of a clip: one draw per clip, constant over time."""

    preset: Literal["none", "light", "paper", "crop", "simclr", "supervised"] = Field(
        default="light",
        description="none | light (crop, flip, brightness, contrast) | paper (CoCLR's) | crop (IIC's: a random 7/8 square, nothing else) | simclr (IICv2's: crop's square, paper's colours and blur in every clip) | supervised (CoCLR's fine-tuning: paper's crops, colour in 30 % of the clips, no grey, no blur, one flip for a whole step)",
    )
    normalize: Literal["imagenet", "unit"] = Field(
        default="imagenet", description="imagenet (its mean and deviation) | unit (pixels in 0..1, IIC)"
    )
    flip: bool = Field(default=True, description="horizontal flips; off where left and right are different classes")
    min_area: Ratio = Field(default=0.5, description="smallest share of the frame that a random crop covers")


class Loader(Section):
    """How bytes become clips."""

    decode: Literal["auto", "nvdec", "dali-cpu", "py", "mixed"] = Field(
        default="auto",
        description="auto picks by codec and device | mixed: of every training batch a part by DALI's decoder and a part by PyAV on loader.threads, in the share that keeps both busy (not repeatable to the bit)",
    )
    threads: int = Field(default=1, ge=1, le=1024, description="decode threads of one rank")
    prefetch: int = Field(default=2, ge=1, le=1024, description="batches ready ahead of the step")
    bad_rate: float = Field(
        default=0.01, ge=0, le=1, description="share of the videos tried so far that may be bad before the run stops"
    )
    bad_floor: int = Field(
        default=20, ge=0, le=1_000_000_000, description="bad videos that are allowed whatever their share"
    )
    patience: float = Field(
        default=240.0,
        ge=0,
        le=86_400,
        description="seconds to wait for a disk, store or shard that cannot be reached, before the run stops",
    )
    read: Literal["whole", "windows"] = Field(
        default="whole",
        description="whole: every byte of a sample is checked when it is read | windows: of its video only the fragments "
        "that hold the clips",
    )
    reads: int = Field(default=16, ge=1, le=256, description="questions of one rank to a store at once")
    cache: Place | None = Field(
        default=None,
        description="folder of each node that keeps what was read, for all its workers; null: nothing is kept",
    )
    cache_gb: float = Field(
        default=20.0,
        gt=0,
        le=1_000_000,
        description="gigabytes that the cache may take; what was read longest ago goes",
    )


class Model(Section):
    """The encoder."""

    backbone: BackboneName = Field(default="tiny", description=" | ".join(BACKBONES))
    dim: int = Field(default=128, ge=1, le=65_536, description="D, width of the embedding")
    head: Literal["mlp", "none"] = Field(
        default="mlp", description="mlp (two layers to D) | none (the pooled backbone itself, IIC; dim is its width)"
    )
    width: int = Field(
        default=16,
        ge=2,
        le=4096,
        description="channels of the first stage of `tiny`; other backbones have their published width",
    )
    flow_channels: Literal[2, 3] = Field(
        default=2, description="channels of the flow view; 3 as in the published flow checkpoints"
    )
    channels_last: bool = Field(default=False, description="memory format channels_last_3d (faster on GPUs)")
    checkpointing: bool = Field(
        default=False, description="activations computed again in the backward pass: less memory"
    )
    compile: bool = Field(
        default=False, description="encoders are compiled (torch.compile): minutes at the start, faster steps on a GPU"
    )
    sync_bn: bool = Field(
        default=False, description="batch norms take the statistics of all workers' batches; nothing is shuffled then"
    )


class Optim(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "sgd", "larc"] = Field(
        default="adam", description="adam | sgd (momentum 0.9) | larc (sgd with layer-wise rates, ViCC)"
    )
    lr: float = Field(default=1e-3, gt=0, le=1e30, description="peak learning rate")
    weight_decay: float = Field(default=1e-5, ge=0, le=1e6, description="L2 penalty of every weight")
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="cosine", description="constant | cosine | step (times gamma at each milestone)"
    )
    min_lr: float = Field(default=0.0, ge=0, le=1e30, description="where the cosine ends")
    gamma: float = Field(default=0.1, gt=0, lt=1, description="factor of a milestone")
    milestones: tuple[Share, ...] = Field(
        max_length=1000, default=(0.8,), description="shares of the run at which `step` acts"
    )
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000, description="linear growth of the rate from zero")
    clip: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="longest gradient (norm over all weights); a longer one is shortened; null: none",
    )


class Trainer(Section):
    """Workers, length, checkpoints."""

    workers: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Ray Train workers, one device each; [MIN,MAX]: as many of them as there is room for, see `min_workers`; "
        "0: one, see `in_process`",
    )
    in_process: bool = Field(
        default=False,
        description="one worker in the process that was started, bank included, without Ray: no cluster, no restarts, ready at once",
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="fewest workers that go on when nodes leave: the videos of a step stay, each of the fewer takes more of "
        "them; null: all of `workers`",
    )
    wait_for_nodes: float | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="seconds to wait for nodes that are not there (yet) or are taken; null: half an hour for what was lost, a "
        "minute for what others hold, and what the cluster never had is refused at once",
    )
    batch: int = Field(default=16, ge=1, le=1_000_000, description="B, videos of one worker in one step")
    accumulate: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="parts in which a worker does its batch, one after the other, before the weights change: less memory",
    )
    epochs: int = Field(default=10, ge=1, le=1_000_000, description="passes over the training split; `steps` overrides")
    steps: Steps | None = Field(default=None, description="optimizer steps of the whole run")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where every worker can have a GPU"
    )
    cpus_per_worker: int = Field(default=1, ge=1, le=10_000, description="cores (and torch threads) of one worker")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="autocast of the encoder; losses stay fp32; on a CPU the backbone does too"
    )
    log_every_steps: int = Field(
        default=10, ge=1, le=1_000_000_000, description="steps from one live line and log row to the next"
    )
    checkpoint_every_steps: int = Field(
        default=100,
        ge=1,
        le=1_000_000_000,
        description="steps from one checkpoint to the next; the last step always has one",
    )
    keep: int = Field(default=2, ge=1, le=1_000_000, description="checkpoints and bank snapshots kept")
    keep_epochs: tuple[Count, ...] = Field(
        max_length=1000,
        default=(),
        description="epochs whose last checkpoint stays for good; RUN@EPOCH names it as a start of other runs",
    )
    deterministic: bool = Field(
        default=False, description="same numbers again: ordered pushes, mined from a fixed step"
    )
    max_failures: int = Field(
        default=2, ge=0, le=1_000_000, description="restarts of the worker group from the last checkpoint"
    )
    hang_s: float = Field(
        default=150.0,
        ge=1,
        le=86_400,
        description="seconds without an end of a step until every rank writes where it stands",
    )
    storage: Place = Field(default="runs", description="folder (shared by all nodes) that holds the run")
    copy_to: Place | None = Field(
        default=None,
        description="s3:// or gs:// address below which a copy of the run is kept while it goes on; where `storage` holds no "
        "such run it is fetched from there first; null: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _fewest_and_most(cls, given: object) -> object:
        """`workers=[4,16]`: 16 of them, and no fewer than 4; `workers=0`: one, in the process that was started."""
        if not isinstance(given, Mapping):
            return given
        pair = given.get("workers")
        if pair == 0 and not isinstance(pair, bool):
            return {**given, "workers": 1, "in_process": True}
        if not isinstance(pair, list | tuple):
            return given
        if len(pair) != 2:
            raise ValueError(f"trainer.workers is a list of {len(pair)}; type trainer.workers=[MIN,MAX], e.g. [4,16]")
        return {**given, "min_workers": pair[0], "workers": pair[1]}

    @model_validator(mode="after")
    def _not_more_than_all(self) -> Trainer:
        if self.in_process and self.workers > 1:
            raise ValueError(
                f"trainer.in_process=true is one worker, and trainer.workers={self.workers}; type trainer.workers=0, or "
                "trainer.in_process=false"
            )
        if (self.min_workers or 1) > self.workers:
            raise ValueError(
                f"trainer.min_workers={self.min_workers} is more than trainer.workers={self.workers}; "
                "type trainer.workers=[MIN,MAX]"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_equal_size(self) -> Trainer:
        if self.batch % self.accumulate:
            raise ValueError(
                f"trainer.accumulate={self.accumulate} does not divide trainer.batch={self.batch}; parts have equally many "
                "videos: type a trainer.batch that is a multiple of it"
            )
        return self


class Source(NamedTuple):
    """Where a stream of a phase comes from.

    Attributes:
        phase: An earlier one.
        epoch: After which of its passes; None: its end.
    """

    phase: str
    epoch: int | None


class Phase(Section):
    """One training of a recipe with several: the words it changes and where its encoders come from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the phase and of its folder")
    start: str | None = Field(
        default=None, description="earlier phase whose trained stream this one starts from; PHASE@EPOCH: as it was then"
    )
    second: str | None = Field(
        default=None,
        description="earlier phase whose trained stream is the frozen second one; PHASE@EPOCH: as it was then",
    )
    words: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the recipe and their values here")

    @property
    def sources(self) -> dict[str, Source]:
        """Role (`start`, `second`) → where that stream comes from; roles without one are left out."""
        given = {role: word for role, word in (("start", self.start), ("second", self.second)) if word is not None}
        parts = {role: word.partition("@") for role, word in given.items()}
        return {role: Source(name, int(epoch) if at else None) for role, (name, at, epoch) in parts.items()}

    @field_validator("start", "second")
    @classmethod
    def _phase_and_epoch(cls, word: str | None) -> str | None:
        if word is not None and not re.fullmatch(r"[a-z0-9][a-z0-9-]*(@[1-9][0-9]{0,6})?", word):
            raise ValueError("no PHASE and no PHASE@EPOCH, as in first-0@300")
        return word
