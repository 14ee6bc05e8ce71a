"""Which encoder is this, and how must clips be prepared for it? A model card: weights and everything needed to use them.

CARD/
  encoder.safetensors   the `Encoder` state dict; what else belongs to the stream under `extra.` (ViCC: the prototypes)
  card.json             network, view, clips, normalisation in words and numbers, where the weights come from

A card is written aside and renamed. It holds tensors and JSON only: nothing in it can run code. A number that is not
finite is never exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from vidssl.encoder import Encoder, build_encoder
from vidssl.errors import CheckpointError
from vidssl.files import check_place, folder_aside, storage_error, write_json, write_whole
from vidssl.recipe import Recipe
from vidssl.saved.tensors import first_bad_number
from vidssl.sections import Clips, Model, Section, View

__all__ = [
    "Card",
    "Facts",
    "Normalization",
    "build_from",
    "card_of",
    "export",
    "is_card",
    "read_card",
    "read_weights",
    "split_extra",
]

FORMAT: Final = 1
CARD: Final = "card.json"
WEIGHTS: Final = "encoder.safetensors"
_NUMBERS: Final = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_BOUNDARY: Final = {
    "wrap": "frame 0 minus the last one first",
    "drop": "one frame fewer",
    "repeat": "the first difference twice",
}
_FLOW: Final = {
    None: "decoded flow of the pack, as the loader makes it",
    "companded": "optical flow in pixels per frame: (u, v), or (0, v, u) where it has three channels",
    "parity": "optical flow as 8-bit pictures (128, v, u), normalised like RGB",
}
FlowEncoding = Literal["companded", "parity"]


class Normalization(Section):
    """How pixels become what the encoder reads, in words and numbers."""

    preset: Literal["imagenet", "unit"] = Field(description="`augment.normalize` of the training")
    mean: tuple[float, float, float] = Field(description="of RGB pixels in 0..1, subtracted")
    std: tuple[float, float, float] = Field(description="of RGB pixels in 0..1, divided by")
    words: str = Field(description="the same as a sentence")
    flow: FlowEncoding | None = Field(
        default=None, description="encoding of the flow it was trained on; None: another stream, or nobody knows"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Normalization:
        if (self.mean, self.std) != _NUMBERS[self.preset]:
            raise ValueError(f"mean and std are not those of preset {self.preset}; the loader would use others")
        return self

    @classmethod
    def of(
        cls, preset: Literal["imagenet", "unit"], view: str, clips: Clips, flow: FlowEncoding | None = None
    ) -> Normalization:
        """What `view` is made of with this preset, on data whose flow is encoded as `flow`."""
        mean, std = _NUMBERS[preset]
        start = "RGB pixels / 255" + (", minus mean, divided by std, per channel" if preset == "imagenet" else "")
        if view == "residual":
            half = ", then (d + 1) / 2" if clips.residual_scale == "half_shift" else ""
            start += f"; then differences of frames, {_BOUNDARY[clips.residual_boundary]}{half}"
        of_flow = view in ("flow", "u", "v")
        if of_flow:
            start = _FLOW[flow]
        return cls(preset=preset, mean=mean, std=std, words=start, flow=flow if of_flow else None)


class Facts(Section):
    """Where the weights come from."""

    method: str = Field(description="pretext task")
    source: str = Field(description="run and checkpoint, or published file, that they were taken from")
    source_sha256: str | None = Field(default=None, description="of that file")
    steps: int | None = Field(default=None, description="optimizer steps; None: the file does not say")
    epoch: int | None = Field(default=None, description="epoch of the last step, from 0; None: the file does not say")
    seed: int | None = Field(default=None, description="of the training")
    data_hash: str | None = Field(default=None, description="hash of the packed data it was trained on")
    recipe: str | None = Field(default=None, description="fingerprint of the recipe")
    assumed: tuple[str, ...] = Field(
        default=(), description="facts that the file did not say: the published protocol's"
    )


class Card(Section):
    """The content of card.json."""

    format: Literal[1] = FORMAT
    view: View = Field(description="stream the encoder is for")
    also: tuple[View, ...] = Field(default=(), description="more views that the same weights were trained on (IIC)")
    model: Model
    clips: Clips
    normalization: Normalization
    protocol: Facts
    weights_sha256: str = Field(default="", description="of encoder.safetensors")
    versions: dict[str, str] = Field(default_factory=dict, description="packages that wrote the card")
    licence: str = Field(default="", description="of the weights; empty: nobody has said")

    @property
    def views(self) -> tuple[str, ...]:
        """Streams that the encoder reads, the trained one first."""
        return (self.view, *self.also)

    def seen_as(self, view: str) -> Card:
        """This card for another of its `views`: the same weights, clips made another way."""
        also = tuple(name for name in self.views if name != view)
        words = Normalization.of(self.normalization.preset, view, self.clips, self.normalization.flow)
        return self.model_copy(update={"view": view, "also": also, "normalization": words})

    def recipe(self) -> dict[str, Any]:
        """A recipe tree for looking at this encoder: its network and clips, no mining."""
        other = next((view for view in (*self.also, "residual", "rgb") if view != self.view), "rgb")
        return {
            "seed": self.protocol.seed or 0,
            "clips": self.clips.model_dump(mode="json"),
            "augment": {"preset": "none", "normalize": self.normalization.preset},
            "model": self.model.model_dump(mode="json"),
            "method": {"name": self.protocol.method, "view": self.view, "second_view": other},
            "mining": {"where": "off"},
        }


def card_of(recipe: Recipe, view: str, facts: Facts, flow: FlowEncoding | None = None) -> Card:
    """The card of one stream of a recipe; `flow` is how the flow of its data is encoded.

    A method that trains one network on all its views (IIC): the others stand under `also`.
    """
    also = tuple(name for name in recipe.views if name != view) if recipe.method.streams == "shared" else ()
    plain = {"channels_last": False, "checkpointing": False}  # memory and speed of the training, not of the encoder
    return Card.model_validate(
        {
            "view": view,
            "also": also,
            "model": recipe.model.model_copy(update=plain),
            "clips": recipe.clips,
            "normalization": Normalization.of(recipe.augment.normalize, view, recipe.clips, flow),
            "protocol": facts,
            "versions": {name: found for name in ("vidssl", "torch", "safetensors") if (found := _version(name))},
        }
    )


def export(folder: str | Path, state: Mapping[str, Tensor], card: Card) -> Path:
    """Write weights and card aside and rename them to `folder`, which must not exist.

    Args:
        folder: The card folder.
        state: An `Encoder` state dict, with what a method adds under `extra.`; see `Method.artifact`.
        card: Its `weights_sha256` is filled in here.

    Raises:
        CheckpointError: the folder exists, the weights are not those of the card's network, or one is no finite number.
        DataError: the folder lies below a file.
        StorageError: the disk is full or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    final = Path(folder).expanduser().resolve()
    if final.exists():
        raise CheckpointError(f"{folder} exists already; give another --out, or remove it first")
    check_place(final, "give another --out")
    build_from(card, state)
    if (bad := first_bad_number(state)) is not None:
        raise CheckpointError(
            f"these weights are spoilt: {bad} is not a finite number, so no card is written; take an earlier checkpoint, "
            "or train again with a lower optim.lr"
        )
    # a clone: safetensors refuses tensors that share memory
    weights = save({key: rows.detach().cpu().contiguous().clone() for key, rows in state.items()})
    whole = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    try:
        with folder_aside(final) as aside:
            write_whole(aside / WEIGHTS, weights)
            write_json(aside / CARD, whole.model_dump(mode="json"))
    except OSError as error:
        raise storage_error(error, final, len(weights), "give another --out") from error
    return final


def is_card(path: str | Path) -> bool:
    """Whether `path` is a folder with a card in it."""
    return (Path(path).expanduser() / CARD).is_file()


def read_card(folder: str | Path) -> Card:
    """The card in `folder`.

    Raises:
        CheckpointError: there is none, it is damaged, or of a format that this version does not know.
    """
    path = Path(folder).expanduser() / CARD
    try:
        tree: Any = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no card folder (it has no {CARD}); make one with: vidssl export RUN --out {folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); export or import the card again") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} is a card of format {found}, this version reads {FORMAT}; export it again")
    try:
        return Card.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{path} is damaged ({key or 'card'}: {first['msg']}); export or import the card again"
        ) from error


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a card: `Encoder` state dict and `extra.*`.

    Raises:
        CheckpointError: as `read_card`; weights that are missing, or other than the card was written with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card, path = read_card(folder), Path(folder).expanduser() / WEIGHTS
    try:
        if _sha256(path) != card.weights_sha256:
            raise CheckpointError(
                f"{path} is damaged or from another card (its sha256 is not the card's); export or import the card again"
            )
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export or import the card again") from error


def split_extra(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The `Encoder` state dict of an artifact, and what stands beside it."""
    encoder = {key: rows for key, rows in state.items() if not key.startswith("extra.")}
    return encoder, {key: rows for key, rows in state.items() if key not in encoder}


def build_from(card: Card, state: Mapping[str, Tensor]) -> Encoder:
    """The encoder of a card with the weights `state`, in evaluation mode; torch's global generator is left as it was.

    Raises:
        CheckpointError: keys or shapes that are not those of the card's network.
        RecipeError: a backbone that this version does not know.
    """
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(card.model, card.view)
    given, own = split_extra(state)[0], encoder.state_dict()
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & given.keys() if own[key].shape != given[key].shape)
    if missing or unknown or shapes:
        raise CheckpointError(
            f"these weights are not those of model.backbone={card.model.backbone}: {len(missing)} layers are missing, "
            f"{len(unknown)} are unknown, {len(shapes)} have another shape (first: {(missing + unknown + shapes)[0]}); "
            "set model.backbone, model.head and model.dim to what was trained"
        )
    encoder.load_state_dict(given)
    return encoder.eval()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
