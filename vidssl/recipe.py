"""What is a run? One frozen, validated tree, read from `recipes/NAME.yaml` (or a path) and `key=value` words.

Every component receives its own section, never the whole tree. A recipe file opens with comment lines: its command,
the hardware and time it needs, the score to expect and where that score comes from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from vidssl.errors import RecipeError

__all__ = [
    "Augment",
    "Clips",
    "Evaluation",
    "Loader",
    "Mining",
    "Model",
    "Optim",
    "Pretext",
    "Recipe",
    "Trainer",
    "load_recipe",
    "recipe_from_file",
    "recipe_names",
]

RECIPES = Path(__file__).parent / "recipes"

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


class Augment(Section):
    """Random changes of a clip: one draw per clip, constant over time."""

    preset: Literal["none", "light", "paper"] = Field(
        default="light", description="none | light (crop, flip, brightness, contrast) | paper (CoCLR's)"
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
    max_bad_samples: NonNegative = Field(
        default=20, description="samples that may fail to decode in a run before it stops"
    )


class Model(Section):
    """The encoder."""

    backbone: str = Field(default="tiny", description="tiny | s3d | s3dg")
    dim: Positive = Field(default=128, description="D, width of the embedding")
    width: Annotated[int, Field(ge=2)] = Field(
        default=16, description="channels of the first stage of `tiny`; other backbones have their published width"
    )


class Pretext(Section):
    """The pretext task."""

    name: Literal["infonce", "coclr", "cpr"] = Field(
        default="cpr", description="infonce | coclr (top-k) | cpr (cascade)"
    )
    view: Literal["rgb", "residual"] = Field(default="rgb", description="the stream that is trained")
    second_view: Literal["rgb", "residual"] = Field(
        default="residual", description="the other stream, which mines (coclr, cpr)"
    )
    second_from: str | None = Field(
        default=None,
        description="run or checkpoint with the second view's trained encoder; none: it is trained in the warm-up",
    )
    warmup_steps: NonNegative = Field(
        default=0, description="steps of InfoNCE on both streams before mining starts and the second is frozen"
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


class Mining(Section):
    """The cascade and where it runs."""

    where: Literal["actor", "inline", "off"] = Field(
        default="actor",
        description="actor (whole data set, asynchronous) | inline (queue of every rank, as published) | off",
    )
    strategy: Literal["cascade", "single", "sum", "minrank"] = Field(
        default="cascade", description="cascade | single (main view) | sum | minrank"
    )
    stages: Positive = Field(default=3, description="S")
    ratio: Ratio | None = Field(default=None, description="share kept by each stage; give this or pool")
    pool: Positive | None = Field(
        default=None, description="candidates that reach the last stage: ratio = (pool/N)^(1/(S-1))"
    )
    topk: Positive = Field(default=5, description="k positives per row")
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

    @field_validator("where", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: object) -> object:
        return "off" if given is False else given  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _one_knob(self) -> Mining:
        if self.ratio is not None and self.pool is not None:
            raise ValueError("mining.ratio and mining.pool are two names of one choice: give one of them")
        return self


class Optim(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "sgd"] = Field(default="adam", description="adam | sgd (momentum 0.9)")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-5, description="L2")
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="cosine", description="constant | cosine | step (x0.1 at each milestone)"
    )
    milestones: tuple[float, ...] = Field(
        default=(0.8,), description="shares of the run at which `step` divides the rate by ten"
    )
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
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="autocast of the encoder; losses stay fp32")
    log_every_steps: Positive = Field(default=10, description="a live line and a log row")
    checkpoint_every_steps: Positive = Field(default=100, description="besides the last step")
    keep: Positive = Field(default=2, description="checkpoints and bank snapshots kept")
    deterministic: bool = Field(
        default=False, description="same numbers again: ordered pushes, mined from a fixed step"
    )
    max_failures: NonNegative = Field(default=2, description="restarts of the worker group from the last checkpoint")
    storage: str = Field(default="runs", description="folder (shared by all nodes) that holds the run")


class Evaluation(Section):
    """Retrieval protocol."""

    protocol: Literal["p1_strict", "p1_ref", "centre"] = Field(
        default="p1_strict", description="windows and centring (CoCLR's retrieval; strict: centred by the train mean)"
    )
    windows: Positive = Field(default=5, description="most windows of one video, evenly spread")
    batch: Positive = Field(default=16, description="clips encoded at once")
    ks: tuple[int, ...] = Field(default=(1, 5, 10, 20, 50), description="R@k")


class Recipe(Section):
    """One run, whole."""

    name: str = Field(default="run", description="name of the run folder")
    data: str | None = Field(default=None, description="folder that `vidssl pack` wrote")
    seed: NonNegative = Field(default=0, description="of order, windows, augmentation, weights")
    clips: Clips = Clips()
    augment: Augment = Augment()
    loader: Loader = Loader()
    model: Model = Model()
    method: Pretext = Pretext()
    mining: Mining = Mining()
    optim: Optim = Optim()
    trainer: Trainer = Trainer()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _views_differ(self) -> Recipe:
        if self.method.name != "infonce" and self.method.view == self.method.second_view:
            raise ValueError(
                f"method.second_view={self.method.second_view} is the trained view too; {self.method.name} mines with another stream"
            )
        return self

    @property
    def views(self) -> tuple[str, ...]:
        """Views the loader must make: the trained one first."""
        if self.method.name == "infonce":
            return (self.method.view,)
        return (self.method.view, self.method.second_view)

    def fingerprint(self) -> str:
        """Hash of everything that changes the numbers: a resumed run must have the same one."""
        same = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "evaluation": True,
                "trainer": {"storage", "log_every_steps", "keep", "max_failures"},
            },
        )
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a shipped name or a path to a YAML file) with `key=value` words applied.

    Raises:
        RecipeError: unknown recipe or key (with the nearest known one), wrong value, impossible combination.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(
            f"no recipe '{name}'; there are {', '.join(recipe_names())}{_did_you_mean(name, recipe_names())}"
        )
    return recipe_from_file(path, overrides)


def recipe_from_file(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `key=value` words applied.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        tree = OmegaConf.load(path)
        if not isinstance(tree, DictConfig):
            raise RecipeError(f"{path} holds no mapping of recipe keys")
        for word in overrides:
            key, sep, value = word.partition("=")
            if not sep or not key:
                raise RecipeError(f"'{word}' is no setting; type key=value, e.g. trainer.workers=2")
            _check_key(key)
            OmegaConf.update(tree, key, OmegaConf.from_dotlist([f"v={value}"]).v, merge=True)
        plain: Any = OmegaConf.to_container(tree, resolve=True)
    except YAMLError as error:
        raise RecipeError(f"{path.name} {' '.join(overrides)}: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path.name}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(_one_sentence(error)) from error


def _keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_key(key: str) -> None:
    known = list(_keys())
    if key not in known:
        raise RecipeError(f"unknown key '{key}'{_did_you_mean(key, known)}")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near and "." not in word:  # `workers` for `trainer.workers`
        near = [key for key in known if key.rsplit(".", 1)[-1] == word][:1]
    return f"; did you mean '{near[0]}'?" if near else ""


def _one_sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_did_you_mean(key, list(_keys()))}"
    given = "" if isinstance(first["input"], dict | BaseModel) else f"={first['input']!r}"
    return f"{key}{given}: {message[0].lower() + message[1:]}" if key else message
