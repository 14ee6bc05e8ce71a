"""One stream of a contrastive method: the encoder that learns and the momentum twin that makes its keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidssl.distributed import copy_buffers_from_first, on_shuffled_rows
from vidssl.encoder import Encoder, build_encoder, check_fit, follow, momentum_twin, unit_rows
from vidssl.recipe import Model

__all__ = ["Stream"]


class Stream(nn.Module):
    """Query encoder and, where the stream is trained, its momentum twin.

    Args:
        model: Recipe section of the encoder.
        trained: False: the encoder is frozen from the start and has no twin.
        view: What it sees, which decides its input channels.
        twin: False: no momentum twin (ViCC, IIC).
    """

    key: Encoder | None

    def __init__(self, model: Model, trained: bool = True, *, view: str = "rgb", twin: bool = True) -> None:
        super().__init__()
        self.query = build_encoder(model, view)
        self._one_batch = model.sync_bn
        self.key = momentum_twin(self.query) if trained and twin else None
        if not trained:
            self.query.requires_grad_(False)
        if model.compile:  # in place: names in a state dict stay
            for network in (self.query, self.key):
                if network is not None:
                    network.compile()

    def queries(self, clips: Tensor) -> Tensor:
        """Unit rows [B, D] of clips [B, C, T, H, W], with gradient."""
        return unit_rows(self.query(clips))

    @torch.no_grad()
    def keys(self, clips: Tensor, *, shuffle: bool, seed: int, step: int) -> Tensor:
        """Unit rows [B, D] of the twin, without gradient; over rows shuffled over ranks where `shuffle` is set.

        Synchronised batch norms see the rows of all ranks anyhow: then nothing is shuffled.
        """
        twin = self.key if self.key is not None else self.query

        def encode(rows: Tensor) -> Tensor:
            return unit_rows(twin(rows))

        return on_shuffled_rows(encode, clips, seed, step) if shuffle and not self._one_batch else encode(clips)

    @torch.no_grad()
    def frozen_rows(self, clips: Tensor) -> Tensor:
        """Unit rows [B, D] of the query encoder in evaluation mode, without gradient (CoCLR's `sampler`)."""
        if self.query.training:  # whoever called method.train() did not know that this stream is frozen
            self.query.eval()
        return unit_rows(self.query(clips))

    def follow(self, momentum: float) -> None:
        """Move the twin one step towards the encoder."""
        if self.key is not None:
            follow(self.key, self.query, momentum)

    def freeze(self) -> None:
        """Stop learning: evaluation mode, and rank 0's batch-norm statistics everywhere (each rank kept its own)."""
        copy_buffers_from_first(self.query)
        self.query.eval()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Encoder weights into the query encoder and its twin.

        Raises:
            CheckpointError: keys or shapes that are not those of this encoder.
        """
        check_fit(self.query, state)
        self.query.load_state_dict(dict(state))
        if self.key is not None:
            self.key.load_state_dict(dict(state))
