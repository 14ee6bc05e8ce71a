"""What can a recipe say? Its sections: frozen, every unknown key an error, every key with a sentence of its own."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vidssl.tables.backbones import BACKBONES
from vidssl.tables.methods import METHODS, MethodTraits, Streams
from vidssl.tables.strategies import STRATEGIES, StrategyTraits

__all__ = [
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
    "Pretext",
    "Section",
    "Trainer",
    "Vicc",
    "View",
]

View = Literal["rgb", "residual", "flow", "u", "v"]
"""A stream: RGB frames, their differences, optical flow (both components, or one as a grey picture)."""

if TYPE_CHECKING:
    BackboneName = MethodName = StrategyName = str
else:  # the names of the tables, so that an unknown one is refused here and the help lists them
    BackboneName = Literal[tuple(BACKBONES)]
    MethodName = Literal[tuple(METHODS)]
    StrategyName = Literal[tuple(STRATEGIES)]

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A part of a recipe: frozen, and every unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Clips(Section):
    """Which frames a clip holds and how large it is."""

    frames: Positive = Field(default=16, description="T, frames of one clip")
    stride: Positive = Field(default=1, description="source frames from one clip frame to the next")
    size: Positive = Field(default=112, description="height and width of a clip in pixels")
    per_video: Positive = Field(default=2, description="clips drawn from a video in one step")
    residual_boundary: Literal["wrap", "drop", "repeat"] = Field(
        default="repeat", description="first frame of a residual clip: wrap (IIC) | drop | repeat the second"
    )
    residual_scale: Literal["none", "half_shift"] = Field(
        default="none", description="none (differences) | half_shift ((d+1)/2, IIC's pre-training)"
    )


class Augment(Section):
    """Random changes of a clip: one draw per clip, constant over time."""

    preset: Literal["none", "light", "paper", "crop"] = Field(
        default="light",
        description="none | light (crop, flip, brightness, contrast) | paper (CoCLR's) | crop (IIC's: a random 7/8 square, nothing else)",
    )
    normalize: Literal["imagenet", "unit"] = Field(
        default="imagenet", description="imagenet (its mean and deviation) | unit (pixels in 0..1, IIC)"
    )
    flip: bool = Field(default=True, description="horizontal flips; off where left and right are different classes")
    min_area: Ratio = Field(default=0.5, description="smallest share of the frame that a random crop covers")


class Loader(Section):
    """How bytes become clips."""

    decode: Literal["auto", "nvdec", "dali-cpu", "py"] = Field(
        default="auto", description="auto picks by codec and device"
    )
    threads: Positive = Field(default=1, description="decode threads of one rank")
    prefetch: Positive = Field(default=2, description="batches ready ahead of the step")
    bad_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.01, description="share of the videos tried so far that may be bad before the run stops"
    )
    bad_floor: NonNegative = Field(default=20, description="bad videos that are allowed whatever their share")
    patience: Annotated[float, Field(ge=0.0, le=86400.0)] = Field(
        default=240.0, description="seconds to wait for a disk or shard that cannot be reached, before the run stops"
    )


class Model(Section):
    """The encoder."""

    backbone: BackboneName = Field(default="tiny", description=" | ".join(BACKBONES))
    dim: Positive = Field(default=128, description="D, width of the embedding")
    head: Literal["mlp", "none"] = Field(
        default="mlp", description="mlp (two layers to D) | none (the pooled backbone itself, IIC; dim is its width)"
    )
    width: Annotated[int, Field(ge=2)] = Field(
        default=16, description="channels of the first stage of `tiny`; other backbones have their published width"
    )
    flow_channels: Literal[2, 3] = Field(
        default=2, description="channels of the flow stream; 3 as in the published flow checkpoints"
    )
    channels_last: bool = Field(default=False, description="memory format channels_last_3d (faster on GPUs)")
    checkpointing: bool = Field(
        default=False, description="activations computed again in the backward pass: less memory"
    )


class Vicc(Section):
    """Cross-stream prototypes (`method.name=vicc`)."""

    streams: Literal["single", "cross"] = Field(
        default="single", description="single (two clips of one stream) | cross (and the frozen second stream)"
    )
    prototypes: Positive = Field(default=300, description="P")
    epsilon: Annotated[float, Field(gt=0)] = Field(default=0.05, description="of Sinkhorn")
    iterations: Positive = Field(default=3, description="of Sinkhorn")
    queue: NonNegative = Field(default=1920, description="rows of all ranks that join the assignment; 0: none")
    queue_from_epoch: NonNegative = Field(default=150, description="epoch from which the queue is used")
    freeze_epochs: NonNegative = Field(default=100, description="epochs in which the prototypes do not move")
    second_view_grad: bool = Field(
        default=True, description="false: the second clip is encoded without gradient, as the published runs did"
    )


class Iic(Section):
    """Inter-intra contrast (`method.name=iic`)."""

    negatives: Positive = Field(default=1024, description="K, other videos drawn from the memories for each row")
    intra: Literal["none", "repeat", "shuffle", "rot", "rot90"] = Field(
        default="repeat", description="how a clip becomes its own negative"
    )
    intra_of: Literal["first", "second"] = Field(
        default="first", description="view it is made from: the first (IIC) or the second (IICv2)"
    )
    intra_negative: Literal["bank", "live", "live_stopped"] = Field(
        default="bank",
        description="bank (what the memory holds, as published) | live (this step's, with gradient) | live_stopped",
    )
    normalize: bool = Field(default=False, description="unit rows in the scores; false as published (IICv2: true)")
    loss: Literal["softmax", "nce"] = Field(default="softmax", description="softmax | nce (binary, constant Z)")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="of the memories' update")


class Pretext(Section):
    """The pretext task."""

    name: MethodName = Field(
        default="cpr", description=" | ".join(f"{name} ({traits.says})" for name, traits in METHODS.items())
    )
    view: View = Field(default="rgb", description="the stream that is trained")
    second_view: View = Field(
        default="residual",
        description="the other stream: it mines (coclr, cpr), assigns (vicc) or is the other view (iic)",
    )
    first_from: str | None = Field(
        default=None, description="run, export or published checkpoint that the trained stream starts from"
    )
    second_from: str | None = Field(
        default=None,
        description="run, export or published checkpoint with the second view's trained encoder; none: it is trained in the warm-up",
    )
    cascade: bool = Field(
        default=False, description="infonce, iic: CPR's mined positives on top (coclr and cpr always mine)"
    )
    hold_until_full: bool = Field(
        default=False, description="no optimizer step before the queue is full, as CoCLR and CPR are published"
    )
    warmup_steps: NonNegative = Field(
        default=0,
        description="coclr, cpr: steps of InfoNCE on both streams before mining starts and the second is frozen; with cascade: steps without it",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(default=0.07, description="of every softmax")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="of the key encoder")
    queue: Positive = Field(default=2048, description="K, keys kept as negatives; any size")
    self_positive: Literal["keep", "drop_p", "remove"] = Field(
        default="drop_p",
        description="own key as positive when there are others: keep | drop_p (CoCLR: a negative in drop_p of the steps) | remove (out of the softmax)",
    )
    drop_p: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="share of the steps in which drop_p applies"
    )
    exclude_siblings: bool = Field(default=False, description="infonce: clips of the same group are not negatives")
    shuffle_bn: bool = Field(
        default=True, description="keys are computed on rows shuffled over ranks (only with several ranks)"
    )
    vicc: Vicc = Vicc()
    iic: Iic = Iic()

    @property
    def traits(self) -> MethodTraits:
        """What is known of the method before it is loaded."""
        return METHODS[self.name]

    @property
    def streams(self) -> Streams:
        """What it learns with, its own option looked at."""
        option = self.traits.streams_option
        return "cross" if option and attrgetter(option)(self) == "cross" else self.traits.streams


class Mining(Section):
    """The cascade and where it runs."""

    where: Literal["actor", "inline", "off"] = Field(
        default="actor",
        description="actor (whole data set, asynchronous) | inline (queue of every rank, as published) | off",
    )
    strategy: StrategyName = Field(
        default="cascade", description=" | ".join(f"{name} ({traits.says})" for name, traits in STRATEGIES.items())
    )
    stages: Positive = Field(default=3, description="S")
    ratio: Ratio | None = Field(default=None, description="share kept by each stage; give this or pool")
    pool: Positive | None = Field(
        default=None, description="candidates that reach the last stage: ratio = (pool/N)^(1/(S-1))"
    )
    topk: Positive = Field(default=5, description="k positives per row")
    progressive: tuple[tuple[NonNegative, Positive], ...] = Field(
        default=(), description="pairs [epoch, k]: from that epoch on k positives (at most topk); empty: topk all along"
    )
    last_view: Literal["main", "alternate"] = Field(
        default="main", description="view of the last stage; main as published"
    )
    max_staleness_steps: Positive = Field(
        default=200, description="older positives are not used: the row falls back to its own instance"
    )
    lookahead: Positive = Field(default=2, description="steps that mining runs ahead of the order")
    backend: Literal["auto", "numpy", "torch", "faiss", "oracle"] = Field(
        default="auto", description="auto picks by N, k and device"
    )
    snapshot_every_steps: NonNegative = Field(
        default=0, description="extra bank snapshots beside those of checkpoints; 0: none"
    )

    @property
    def traits(self) -> StrategyTraits:
        """What is known of the strategy."""
        return STRATEGIES[self.strategy]

    @field_validator("where", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: object) -> object:
        return "off" if given is False else given  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _rising(self) -> Mining:
        epochs = [epoch for epoch, _ in self.progressive]
        if (
            epochs != sorted(set(epochs))
            or (epochs and epochs[0] != 0)
            or any(k > self.topk for _, k in self.progressive)
        ):
            raise ValueError(
                f"mining.progressive={[list(p) for p in self.progressive]} must start at epoch 0, rise, and ask for at most mining.topk={self.topk}; "
                "type e.g. mining.progressive=[[0,1],[20,3],[40,5]]"
            )
        return self

    @model_validator(mode="after")
    def _one_knob(self) -> Mining:
        if self.ratio is not None and self.pool is not None:
            raise ValueError("mining.ratio and mining.pool are two names of one choice: give one of them")
        return self


class Optim(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "sgd", "larc"] = Field(
        default="adam", description="adam | sgd (momentum 0.9) | larc (sgd with layer-wise rates, ViCC)"
    )
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-5, description="L2")
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="cosine", description="constant | cosine | step (times gamma at each milestone)"
    )
    min_lr: Annotated[float, Field(ge=0)] = Field(default=0.0, description="where the cosine ends")
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="factor of a milestone")
    milestones: tuple[float, ...] = Field(default=(0.8,), description="shares of the run at which `step` acts")
    warmup_steps: NonNegative = Field(default=0, description="linear growth of the rate from zero")


class Trainer(Section):
    """Workers, length, checkpoints."""

    workers: Positive = Field(default=1, description="Ray Train workers, one device each")
    batch: Positive = Field(default=16, description="B, videos of one worker in one step")
    epochs: Positive = Field(default=10, description="passes over the training split; `steps` overrides")
    steps: Positive | None = Field(default=None, description="optimizer steps of the whole run")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where every worker can have a GPU"
    )
    cpus_per_worker: Positive = Field(default=1, description="cores (and torch threads) of one worker")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="autocast of the encoder; losses stay fp32; on a CPU the backbone does too"
    )
    log_every_steps: Positive = Field(default=10, description="a live line and a log row")
    checkpoint_every_steps: Positive = Field(default=100, description="besides the last step")
    keep: Positive = Field(default=2, description="checkpoints and bank snapshots kept")
    deterministic: bool = Field(
        default=False, description="same numbers again: ordered pushes, mined from a fixed step"
    )
    max_failures: NonNegative = Field(default=2, description="restarts of the worker group from the last checkpoint")
    storage: str = Field(default="runs", description="folder (shared by all nodes) that holds the run")


class Evaluation(Section):
    """Retrieval, nearest neighbours and linear probe."""

    protocol: Literal["p1_strict", "p1_ref", "p2", "centre"] = Field(
        default="p1_strict",
        description="p1_strict, p1_ref (CoCLR's retrieval; strict: centred by the train mean) | p2 (IIC's: 10 clips, last map) | centre",
    )
    windows: NonNegative = Field(default=5, description="most windows of one video, evenly spread; 0: no limit")
    crops: Literal["centre", "ten"] = Field(
        default="centre",
        description="of the linear probe's and fine-tuning's test: centre | ten (corners, centre, flips)",
    )
    batch: Positive = Field(default=16, description="clips encoded at once")
    ks: tuple[int, ...] = Field(default=(1, 5, 10, 20, 50), description="R@k")
    neighbours: Positive = Field(default=20, description="of the k-NN classifier")
    shots: tuple[int, ...] = Field(default=(1, 5), description="labelled videos per class of the few-shot probe")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="share of the training groups on which probe settings are chosen; never the test split"
    )
    probe_epochs: Positive = Field(default=100, description="of the linear probe")
    probe_lr: tuple[float, ...] = Field(default=(0.1, 0.3, 1.0), description="rates tried on the held-out groups")
    probe_weight_decay: tuple[float, ...] = Field(
        default=(1e-3, 1e-4), description="decays tried on the held-out groups"
    )


class Finetune(Section):
    """Supervised training of the whole network from a pre-trained encoder."""

    epochs: Positive = Field(default=500, description="passes over the training split")
    batch: Positive = Field(default=32, description="videos in one step")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="adam | sgd (momentum 0.9)")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="of the classifier")
    backbone_lr: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="the backbone's rate as a share of lr; 0: frozen"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-3, description="L2")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="before the classifier")
    milestones: tuple[float, ...] = Field(
        default=(0.8, 0.9), description="shares of the run at which lr is divided by ten"
    )


class Phase(Section):
    """One training of a recipe with several: the words it changes and where its encoders come from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the phase and of its folder")
    start: str | None = Field(default=None, description="earlier phase whose trained stream this one starts from")
    second: str | None = Field(default=None, description="earlier phase whose trained stream is the frozen second one")
    words: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the recipe and their values here")
