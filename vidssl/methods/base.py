"""What does the training loop know about a pretext task? One call per step and a few questions.

The period of a method follows from the step of the batch and what stands in its state dict, never from a counter of its
own: a resumed run continues exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.encoder import Encoder
from vidssl.methods.stream import Stream
from vidssl.recipe import Recipe

__all__ = ["Method", "Period", "StepOutput"]

Period = Literal["warmup", "main"]


@dataclass(frozen=True)
class StepOutput:
    """What one step gives back.

    Attributes:
        loss: Scalar, float32, mean over this rank's rows.
        embeddings: view → [B, D] unit rows, float32, detached: what goes to the bank.
        metrics: flat tag → number or scalar tensor (a tensor is not read here, so that no device is waited for).
        update: False: the optimizer makes no step (CoCLR and CPR hold it until their queue is full). Equal on all ranks.
    """

    loss: Tensor
    embeddings: Mapping[str, Tensor]
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)
    update: bool = True


class Method(nn.Module, ABC):
    """A pretext task: `method(batch, positives)` → `StepOutput`, called through DistributedDataParallel.

    Momentum encoders and queues change inside `forward`, in training mode only. Wrap it with `broadcast_buffers=False`
    (queues are equal on all ranks by construction) and `find_unused_parameters=method.unused_parameters`, and clear
    gradients to None: a frozen stream must not see zero gradients, on which an optimizer would still act.

    Attributes:
        name: As `method.name` says it.
        trained_view: The view whose stream is trained: the run is for its encoder.
        main_view: View of the first and the last stage of a cascade: the second view (one stream: the trained one).
        aux_view: The second one of a cascade, whose rows are handed out as positives: the trained one.
        streams: view → encoder and momentum twin.
        unset: Names in the state dict under which NaN means "not known yet".
    """

    unset: ClassVar[tuple[str, ...]] = ()
    streams: nn.ModuleDict

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.name = recipe.method.name
        self.options = recipe.method
        self.seed = seed
        self.trained_view: str = recipe.method.view
        self.main_view: str = recipe.views[-1]
        self.aux_view: str = recipe.method.view
        self._parts: list[Mapping[str, Tensor]] = []

    @classmethod
    def of(cls, recipe: Recipe, seed: int, instances: int, rows: NDArray[np.int64] | None) -> Self:
        """The method of a recipe; see `vidssl.methods.build_method`. One with memories of all videos overrides it."""
        return cls(recipe, seed)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse, before anything starts, words of a recipe that mean nothing to this method.

        Raises:
            RecipeError: in one sentence.
        """
        return

    @abstractmethod
    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """Loss, rows for the bank and metrics of one step.

        Args:
            batch: With two clips per video (iic: one is enough), every view of the recipe; `label` is read by UberNCE and
                by the rival `mining.strategy=oracle` alone.
            positives: What the bank mined for exactly these rows; None where nothing was asked for.
        """

    @property
    def unused_parameters(self) -> bool:
        """Whether some trainable parameters take no gradient in some steps (after a warm-up of two streams)."""
        return False

    def period(self, step: int) -> Period:
        """`warmup` while both streams learn alone, `main` after it."""
        return "main"

    def needs_positives(self, step: int) -> bool:
        """Whether this step wants positives from the bank."""
        return False

    def whole_step(self, batch: ClipBatch, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """This rank's rows of all parts of a step, at its last part; None before it (`trainer.accumulate`).

        Whatever a step remembers, its parts are compared with what was there before it: so they find what the undivided
        batch finds.

        Args:
            batch: Of one part.
            rows: name → [B / parts, …] of that part.
        """
        if batch.parts == 1:
            return rows
        self._parts = [*(self._parts if batch.part else ()), rows]
        if not batch.ends:
            return None
        parts, self._parts = self._parts, []
        return {name: torch.cat([part[name] for part in parts]) for name in rows}

    def before_update(self, batch: ClipBatch) -> None:
        """Called between the backward pass and the optimizer's step (ViCC: frozen prototypes lose their gradient)."""
        return

    def news(self) -> list[str]:
        """What the user should read, since the last call: the space that is mined in, and why."""
        return []

    def artifact(self, view: str) -> dict[str, Tensor]:
        """What another run can start from: the `Encoder` state dict of a view.

        Under `extra.` stands what else belongs to the stream (ViCC: `extra.prototypes.weight`).
        """
        return dict(self.encoder(view).state_dict())

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Start the trained stream from an `artifact`; `extra.` entries that this method has no use for are left out.

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder.
        """
        self.load_encoder(self.trained_view, {key: rows for key, rows in state.items() if not key.startswith("extra.")})

    def stream(self, view: str) -> Stream:
        """Encoder and twin of a view."""
        found = self.streams[view]
        assert isinstance(found, Stream)  # for the type checker: ModuleDict forgets what it holds
        return found

    def encoder(self, view: str) -> Encoder:
        """The encoder that evaluation reads: the query encoder of a view."""
        return self.stream(view).query

    def load_encoder(self, view: str, state: Mapping[str, Tensor]) -> None:
        """Start a stream from trained weights (an `Encoder` state dict); its twin starts equal.

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder.
        """
        self.stream(view).load(state)
