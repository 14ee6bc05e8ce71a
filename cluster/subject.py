"""What is looked at? A run's last checkpoint or a model card, the data it is shown, the device: opened and checked once.

`embed`, `evaluate` and everything that reads features ask a `Subject` and never whether it is a run or a card.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cluster.keywords import OF_A_TRAINED
from cluster.looking.who import Lookers, on_tasks, tasks_of
from vidssl.encoder import Encoder, build_encoder
from vidssl.errors import CheckpointError, DataError, DeviceError, RecipeError
from vidssl.evaluation.protocol import Protocol, share_words
from vidssl.evaluation.tables import dataset_of
from vidssl.recipe import Recipe, recipe_from_file, recipe_from_tree
from vidssl.saved.card import Card, build_from, is_card, read_card, read_weights
from vidssl.saved.checkpoint import Meta, checkpoint_path, read_checkpoint
from vidssl.saved.run_folder import RunFolder, open_run
from vidssl.saved.trained import load_method

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from pipelines.loading.crops import Crops
    from pipelines.loading.windows import Rule
    from vidssl.methods import Method

__all__ = ["Subject", "looked_at", "open_subject"]

_log: Final = logging.getLogger(__name__)  # a warning reaches standard error without being asked for

_RULES: Final[dict[str, Rule]] = {"p1_ref": "p1", "p2": "p2"}
_WINDOWS: Final[dict[str, str]] = {
    "spread": "every T*stride/2-1 frames, at most `windows`, spread evenly",
    "p1": "every T*stride/2-1 frames from the first on, at most `windows`; short videos padded in front",
    "p2": "10, centres evenly spread from T*stride/2 to the length minus it",
}


class _Origin(NamedTuple):
    """How long it was trained and which weights were taken."""

    seed: int | None
    steps: int | None
    epochs: float | None
    checkpoint: str
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained encoder with everything needed to look at it.

    Attributes:
        home: The run folder or the card folder.
        recipe: Of the run, with the words of this evaluation applied; of a card, what the card says as a recipe.
        meta: Of the checkpoint; of a card, what it knows of it.
        checkpoint_hash: sha256 of the checkpoint's or the card's weights, first 16 digits.
        manifest: The data it is shown.
        device: Where it is in this process.
        folder: The run; None for a card.
        method: In evaluation mode, on `device`; None for a card.
        card: None for a run.
        lookers: Who shows it videos; None: this process, and nothing is said.
    """

    home: Path
    recipe: Recipe
    meta: Meta
    checkpoint_hash: str
    manifest: Manifest
    device: torch.device
    folder: RunFolder | None = None
    method: Method | None = None
    card: Card | None = None
    lookers: Lookers | None = None
    _encoder: Encoder | None = None

    @property
    def looking(self) -> Lookers:
        """Who shows it videos."""
        return self.lookers or Lookers(self.device)

    @property
    def trained_view(self) -> str:
        """The stream whose encoder this is for."""
        return self.recipe.method.view

    @property
    def views(self) -> tuple[str, ...]:
        """Streams that there is an encoder of, the trained one first."""
        return self.recipe.views if self.card is None else self.card.views

    @property
    def out_folder(self) -> Path:
        """Where results go."""
        return self.home / "eval"

    @property
    def own_data(self) -> bool:
        """Whether it is shown the data it was trained on."""
        return self.meta.data == self.manifest.hash

    @property
    def windows(self) -> int:
        """Most windows of one video."""
        chosen = self.recipe.evaluation
        return {"centre": 1, "p2": 10}.get(chosen.protocol, chosen.windows)

    @property
    def window_rule(self) -> tuple[Rule, Crops]:
        """Which windows of a video and which part of the frame: the published protocols cut `evaluation.crop` of the short side."""
        rule = _RULES.get(self.recipe.evaluation.protocol, "spread")
        return rule, "centre" if rule == "spread" else "inner"

    def encoder(self, view: str) -> Encoder:
        """The trained encoder of `view`, in evaluation mode, on the device.

        Raises:
            RecipeError: there is no encoder of this view.
            DataError: it reads flow, and that of the data is encoded otherwise than where it was trained.
        """
        self._check_view(view)
        self._check_flow(view)
        if self.method is not None:
            return self.method.encoder(view)
        assert self._encoder is not None  # for the type checker: a card always brings one
        return self._encoder

    def untrained(self, view: str) -> Encoder:
        """The same network and seed before training: the rival that every score has to beat.

        Raises:
            RecipeError: there is no encoder of this view.
        """
        self._check_view(view)
        if self.method is not None:
            from vidssl.methods import build_method

            fresh = build_method(self.recipe, self.recipe.seed).encoder(view)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.seed)
                fresh = build_encoder(self.recipe.model, view)
        return fresh.eval().to(self.device)

    def protocol(self) -> Protocol:
        """What every number made from this subject has to carry."""
        from pipelines.loading.decode import resolve_decode

        recipe, clips, (rule, crops) = self.recipe, self.recipe.clips, self.window_rule
        share = 1.0 if crops == "centre" else recipe.evaluation.crop
        dataset, split = dataset_of(self.manifest.source, self.manifest.classes)
        origin, device = self._origin(), self.looking.device
        return Protocol(
            run=self.home.name,
            method=recipe.method.name,
            backbone=recipe.model.backbone,
            recipe=self.meta.recipe or None,
            checkpoint_sha256=self.checkpoint_hash,
            seed=origin.seed,
            steps=origin.steps,
            epochs=origin.epochs,
            checkpoint=origin.checkpoint,
            assumed=origin.assumed,
            dataset=dataset,
            split=split,
            pretrained=dataset if self.own_data else None,
            data_hash=self.manifest.hash,
            trained_on=self.meta.data,
            T=clips.frames,
            stride=clips.stride,
            size=clips.size,
            normalize=recipe.augment.normalize,
            windows=self.windows,
            window_rule=_WINDOWS[rule] if self.windows != 1 else "centre",
            crops="centre" if share == 1 else f"centre, {share_words(share)} of the short side",
            crop=share,
            augmentation="none",
            decode=resolve_decode(recipe.loader.decode, self.manifest.codec, device),
            device=device.type,
        )

    def _origin(self) -> _Origin:
        if self.card is None:
            return _Origin(self.recipe.seed, self.meta.step, self._epochs(), "last")
        facts = self.card.protocol
        return _Origin(facts.seed, facts.steps, None, facts.source, facts.assumed)

    def _epochs(self) -> float | None:
        if not self.own_data:
            return None
        train = len(self.manifest.training_rows())
        seen = self.meta.seen
        if seen is None:  # of an older version, whose workers never changed
            seen = self.meta.step * self.recipe.trainer.batch * self.meta.world
        return round(seen / train, 2)

    def _check_view(self, view: str) -> None:
        if view not in self.views:
            raise RecipeError(
                f"{self.home.name} has no encoder of view={view}; type view= one of {', '.join(self.views)}"
            )

    def _check_flow(self, view: str) -> None:
        """Flow in pixels and flow as pictures are other numbers: no encoder can be shown the other kind."""
        told = self.folder.read_facts().get("flow") if self.folder is not None else None
        trained = self.card.normalization.flow if self.card is not None else told
        here = self.manifest.flow
        if view in ("flow", "u", "v") and trained is not None and here is not None and here.encoding != trained:
            raise DataError(
                f"{self.home.name} reads {view} of flow_encoding={trained} and {self.manifest.root} holds flow_encoding="
                f"{here.encoding}; pack the videos with flow_encoding={trained} into another folder"
            )


def open_subject(path: str | Path, words: Sequence[str], elsewhere: Callable[[Recipe], bool] = on_tasks) -> Subject:
    """Open the last checkpoint of a run, or a card, and its data.

    Args:
        path: A run folder or a card folder.
        words: `evaluation.*`, `finetune.*`, `loader.*`, `trainer.device` and `data`, as key=value.
        elsewhere: Whether the work is done by other processes, so that this one needs no GPU.

    Raises:
        CheckpointError: neither a run nor a card, no checkpoint in the run, a damaged card.
        RecipeError: a word that would change what was trained, or no key of a recipe.
        DataError: the data is gone, is other data than the run was trained on and was not named with `data=`, or has no
            flow for an encoder that reads flow.
        DeviceError: cuda without a GPU.
    """
    for word in words:
        if not word.startswith(OF_A_TRAINED):
            raise RecipeError(
                f"'{word}' cannot be set for a run that is trained; type evaluation.*, finetune.*, loader.*, trainer.device or data"
            )
    if is_card(path):
        return _open_card(Path(path).expanduser().resolve(), words, elsewhere)
    try:
        folder = open_run(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is no run folder (it has no recipe.yaml) and no card folder (no card.json); "
            "give the folder that `vidssl train`, `vidssl import` or `vidssl export` named"
        ) from error
    return _open_run(folder, words, elsewhere)


@contextmanager
def looked_at(subject: Subject, say: Callable[[str], None]) -> Iterator[Subject]:
    """The subject with whoever shows it videos: this process, or tasks of a cluster for the length of the block.

    Args:
        subject: Of `open_subject`.
        say: Told how far a long look is.

    Raises:
        DeviceError: more than the cluster has.
    """
    if not on_tasks(subject.recipe):
        yield replace(subject, lookers=Lookers(subject.device, say=say))
        return
    with tasks_of(subject.recipe, say) as lookers:
        yield replace(subject, lookers=lookers)


def _open_run(folder: RunFolder, words: Sequence[str], elsewhere: Callable[[Recipe], bool]) -> Subject:
    recipe = recipe_from_file(folder.recipe, words)
    method, _, step = load_method(folder)
    meta, _, _ = read_checkpoint(folder, step)
    manifest = _data_of(recipe, meta.data, named=any(word.startswith("data=") for word in words))
    device = _device(recipe, elsewhere(recipe), trained_on=str(folder.read_facts().get("device", "")))
    with (checkpoint_path(folder, step) / "model.pt").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    return Subject(folder.path, recipe, meta, digest, manifest, device, folder=folder, method=method.to(device))


def _open_card(folder: Path, words: Sequence[str], elsewhere: Callable[[Recipe], bool]) -> Subject:
    card = read_card(folder)
    facts = card.protocol
    recipe = recipe_from_tree({"name": folder.name} | card.recipe(), words)
    if recipe.data is None:
        raise DataError(f"the card {folder.name} names no data; type data=FOLDER, a folder that `vidssl pack` wrote")
    manifest = _data_of(recipe, facts.data_hash, named=True)
    if card.view in ("flow", "u", "v") and manifest.flow is None:
        encoding = card.normalization.flow
        words = f"add=flow flow_encoding={encoding}" if encoding is not None else "add=flow"
        raise DataError(
            f"the card {folder.name} reads {card.view} and {manifest.root} holds no optical flow; type the words that it was "
            f"packed with and {words}"
        )
    device = _device(recipe, elsewhere(recipe))
    encoder = build_from(card, read_weights(folder)).to(device)
    meta = Meta(facts.steps or 0, facts.recipe or "", facts.data_hash, 1, facts.epoch or 0)
    return Subject(folder, recipe, meta, card.weights_sha256[:16], manifest, device, card=card, _encoder=encoder)


def _data_of(recipe: Recipe, trained_on: str | None, named: bool) -> Manifest:
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    if recipe.data is None:
        raise DataError("this run names no data; type data=FOLDER, a folder that `vidssl pack` wrote")
    root = place_of(recipe.data)
    if isinstance(root, Path) and not root.exists():
        raise DataError(f"the data of this run is not at {root}; if it has moved, type data=FOLDER")
    manifest = load_manifest(root)
    if manifest.hash != trained_on and not named:
        raise DataError(
            f"{root} holds other data (hash {manifest.hash}) than this run was trained on ({trained_on}); "
            f"to look at it all the same, type data={recipe.data}"
        )
    return manifest


def _device(recipe: Recipe, elsewhere: bool, trained_on: str = "") -> torch.device:
    """Of this process; where others do the work it keeps to the CPU."""
    name = recipe.trainer.device
    if elsewhere:
        return torch.device("cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("trainer.device=cuda was asked for and this machine has no GPU; type trainer.device=cpu")
    if name == "auto" and trained_on == "cuda" and not torch.cuda.is_available():
        _log.warning("this run was trained on a GPU and this machine has none: its features are computed on the CPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
