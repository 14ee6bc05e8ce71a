"""Are the packed videos as large as the recipe wants them? A smaller pack trains, on enlarged crops; it is said."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from vidssl.recipe import Recipe

__all__ = ["too_small", "wanted_side"]


def wanted_side(recipe: Recipe) -> int:
    """Short side in pixels that packed videos should have: `clips.pack_size`, or what the crop leaves unenlarged.

    That is `clips.size` over 7/8 where training crops 7/8 of the short side (`augment.preset=crop`: 112 of 128), else
    `clips.size`.
    """
    from pipelines.loading.augment import INNER

    if recipe.clips.pack_size is not None:
        return recipe.clips.pack_size
    share = INNER if recipe.augment.preset in ("crop", "simclr") else 1.0
    return math.ceil(recipe.clips.size / share)


def too_small(recipe: Recipe, manifest: Manifest) -> tuple[str, ...]:
    """A sentence where the videos are smaller than the recipe wants; nothing where they are not."""
    wanted = wanted_side(recipe)
    if manifest.short_side >= wanted:
        return ()
    even = max(wanted + wanted % 2, 128)
    return (
        f"the videos of {manifest.root} have a short side of {manifest.short_side} pixels and {recipe.name} wants {wanted}"
        f" (clips of {recipe.clips.size}), so it trains on enlarged crops; to give it what it wants, pack again with"
        f" size={even}",
    )
