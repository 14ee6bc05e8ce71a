"""How much memory does a worker's step take on its device? Counted on a network without values, in milliseconds.

The backward pass of one clip needs what the forward pass saved for it:

    a = sum of bytes over the different tensors that autograd saves, weights left out            (plain)
    a = sum of bytes of the maps between stages + the largest stage's own sum                    (`model.checkpointing`)

and a step of B videos of which c clips each go through an encoder with gradient (counted in a real step) takes about

    c·B·a / accumulate + state + 4·P·(1 + m) + (prefetch + 2)·B·clips

bytes: `state` is weights, twin, queue or memories; P the number of trained weights, with a gradient each and m moments
(adam 2, else 1); `clips` are a video's, as float32. In bf16 the network counts in bf16. What kernels need for a moment
(cuDNN's workspaces), allocator gaps and passes without gradient come on top: about a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vidssl.backbones.trunk import Trunk
from vidssl.batch import ClipBatch
from vidssl.encoder import Encoder, build_encoder
from vidssl.recipe import Clips, Model, Recipe
from vidssl.views import channels_of

__all__ = ["ClipsWithGradient", "activation_bytes", "memory_lines"]

ON_TOP = 1.2
"""What is taken of a device as a multiple of what was counted."""


def activation_bytes(model: Model, clips: Clips, view: str = "rgb", precision: str = "fp32") -> int:
    """Bytes of `a` above, of one clip."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        encoder = build_encoder(model, view).to(dtype).train()
        maps = torch.empty(
            2, channels_of(view, model.flow_channels), clips.frames, clips.size, clips.size, dtype=dtype
        )  # two clips: a batch norm over one value has no variance
    stages = [*cast(Trunk, encoder.backbone).stages(), lambda out: encoder.head(out.mean(dim=(2, 3, 4)))]
    weights = {one.untyped_storage()._cdata for one in (*encoder.parameters(), *encoder.buffers())}
    between, found = 0, []
    for stage in stages:
        between += maps.numel() * maps.element_size()
        saved = _Saved(weights)
        with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda one: one):
            maps = stage(maps)
        found.append(saved)
    if model.checkpointing:
        return (between + max(sum(one.bytes.values()) for one in found)) // 2
    return sum({place: size for one in found for place, size in one.bytes.items()}.values()) // 2


class _Saved:
    """Bytes of the different memories that autograd saved, by their place; they are kept, so that no place is used twice."""

    def __init__(self, weights: set[int]) -> None:
        self.bytes: dict[int, int] = {}
        self._weights, self._kept = weights, []

    def note(self, one: Tensor) -> Tensor:
        memory = one.untyped_storage()
        if memory._cdata not in self._weights:
            self.bytes[memory._cdata] = memory.nbytes()
            self._kept.append(memory)
        return one


@dataclass
class ClipsWithGradient:
    """How many clips went through encoders with gradient, while it watches a method.

    Attributes:
        clips: So many.
    """

    clips: int = 0

    def watch(self, method: nn.Module) -> None:
        """Count from now on."""
        for encoder in method.modules():
            if isinstance(encoder, Encoder):
                encoder.register_forward_pre_hook(self._count)

    def _count(self, encoder: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in encoder.parameters()):
            self.clips += len(given[0])


def memory_lines(
    recipe: Recipe, method: nn.Module, batch: ClipBatch, per_video: float, device: torch.device
) -> list[str]:
    """What a worker's step takes of its device, and whether that fits, in lines.

    Args:
        recipe: One training.
        method: Its method.
        batch: A batch of it.
        per_video: c, clips with gradient of a video.
        device: Where it would run.
    """
    trainer = recipe.trainer
    a = activation_bytes(recipe.model, recipe.clips, recipe.method.view, trainer.precision)
    rows = trainer.batch // trainer.accumulate
    activations = per_video * rows * a
    moments = 2 if recipe.optim.name == "adam" else 1
    trained = 4 * sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    state = sum(one.numel() * one.element_size() for one in (*method.parameters(), *method.buffers()))
    clips = sum(view[0].numel() * view.element_size() for view in batch.clips.values()) * trainer.batch
    whole = ON_TOP * (activations + state + trained * (1 + moments) + (recipe.loader.prefetch + 2) * clips)
    said = (
        f"{_gb(a)} a clip in {trainer.precision} × {per_video * rows:g} clips with gradient = {_gb(activations)}; "
        f"with all else a step takes about {_gb(whole)}"
    )
    if device.type != "cuda":
        return [f"  memory of a step        {said}: of a GPU, or of this machine's memory on a CPU"]
    there = torch.cuda.get_device_properties(device).total_memory
    if whole <= there:
        return [f"  memory of a step        {said} of the GPU's {_gb(there)}: it fits"]
    less = "model.checkpointing=true" if not recipe.model.checkpointing else "a smaller trainer.batch"
    parts = "" if recipe.method.traits.prototypes else f" or trainer.accumulate={2 * trainer.accumulate}"
    return [f"  memory of a step        {said} of the GPU's {_gb(there)}: too much; try {less}{parts}"]


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
