"""How is a trained encoder used in other code? `vidssl.load_encoder(FOLDER)`: clips in, features out, and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidssl.encoder import Encoder
from vidssl.errors import CheckpointError, DataError
from vidssl.saved.card import Card, Facts, build_from, card_of, is_card, read_card, read_weights
from vidssl.saved.checkpoint import read_meta, weights_hash
from vidssl.saved.run_folder import open_run
from vidssl.saved.trained import load_method
from vidssl.views import channels_of

__all__ = ["LoadedEncoder", "load_encoder", "read_encoder"]


class LoadedEncoder(nn.Module):
    """A trained encoder in evaluation mode.

    Calling it gives the pooled backbone features [B, F] of clips [B, C, T, H, W], which is what evaluations read;
    `project` gives the head's output [B, D] before normalisation, which is what the pretext task compares.

    Attributes:
        card: The content of card.json: view, network, clips, normalisation, where the weights come from.
        encoder: The network itself.
    """

    def __init__(self, encoder: Encoder, card: Card) -> None:
        super().__init__()
        self.encoder = encoder
        self.card: dict[str, Any] = card.model_dump(mode="json")
        self._view, self._clips = card.view, card.clips
        self._channels = channels_of(card.view, card.model.flow_channels)
        self.eval()

    def forward(self, clips: Tensor) -> Tensor:
        """Features [B, F] of float clips [B, C, T, H, W], normalised as `card["normalization"]` says.

        Raises:
            DataError: clips of another shape or type.
        """
        return self.encoder.features(self._checked(clips))

    def project(self, clips: Tensor) -> Tensor:
        """The head's output [B, D], not normalised, of float clips [B, C, T, H, W]; without a head it is the features.

        Raises:
            DataError: clips of another shape or type.
        """
        return self.encoder(self._checked(clips))

    def __repr__(self) -> str:
        """One line: network, stream, clips, widths, origin."""
        model, clips, words = self.card["model"], self._clips, self.card["normalization"]["preset"]
        shape = f"{self._channels}x{clips.frames}x{clips.size}x{clips.size}, stride {clips.stride}"
        head = "no head" if model["head"] == "none" else f"{self.encoder.dim} projected"
        return (
            f"LoadedEncoder({model['backbone']} of {self._view} clips {shape}, {words} normalisation → "
            f"{self.encoder.width} features, {head}; {self.card['protocol']['source']})"
        )

    def _checked(self, clips: Tensor) -> Tensor:
        given = tuple(clips.shape)
        if clips.ndim != 5 or given[1] != self._channels:
            raise DataError(
                f"clips of shape {given} were given; this encoder of {self._view} reads [B, C, T, H, W] with "
                f"C={self._channels}, e.g. (1, {self._channels}, {self._clips.frames}, {self._clips.size}, {self._clips.size})"
            )
        if not clips.is_floating_point():
            raise DataError(
                f"clips of type {clips.dtype} were given; this encoder reads float clips, normalised so: "
                f"{self.card['normalization']['words']}"
            )
        return clips


def load_encoder(path: str | Path, view: str | None = None) -> LoadedEncoder:
    """The trained encoder of a run (its last checkpoint) or of a card.

    Args:
        path: A run folder or a card folder.
        view: Stream of the encoder; None: the trained one.

    Returns:
        A module in evaluation mode on the CPU; see `LoadedEncoder`.

    Raises:
        CheckpointError: neither a run nor a card, damaged, without a checkpoint, or without an encoder of `view`.
    """
    card, state = read_encoder(path, view)
    return LoadedEncoder(build_from(card, state), card)


def read_encoder(path: str | Path, view: str | None = None) -> tuple[Card, dict[str, Tensor]]:
    """The card and the weights (with `extra.*`) of one stream of a run or of a card.

    Raises:
        CheckpointError: as `load_encoder`.
    """
    if is_card(path):
        card = read_card(path)
        _check_view(path, view, card.views)
        return card if view is None else card.seen_as(view), read_weights(path)
    folder = open_run(path)
    method, recipe, step = load_method(folder)
    _check_view(path, view, recipe.views)
    meta = read_meta(folder, step)
    chosen = recipe.method.view if view is None else view
    facts = Facts(
        method=recipe.method.name,
        source=f"run {folder.path.name}, step {step}",
        source_sha256=weights_hash(folder, step),
        steps=step,
        epoch=meta.epoch,
        seed=recipe.seed,
        data_hash=meta.data,
        recipe=meta.recipe,
    )
    flow = folder.read_facts().get("flow")
    return card_of(recipe, chosen, facts, flow if flow in ("companded", "parity") else None), method.artifact(chosen)


def _check_view(path: str | Path, view: str | None, have: tuple[str, ...]) -> None:
    if view is not None and view not in have:
        raise CheckpointError(f"{path} has no encoder of view={view}; it has {', '.join(have)}")
