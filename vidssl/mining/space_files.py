"""How does a mining space get into a bank snapshot and back? A few small arrays beside the rows, and a line of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.mapped import Fitted, MappedRows
from vidssl.mining.space import Space

__all__ = ["array_names", "space_arrays", "space_from", "space_words"]


def space_words(mapped: MappedRows) -> dict[str, Any]:
    """What is no array, as JSON values; nothing of a bank that mines its rows as they are."""
    if mapped.kind == "raw":
        return {}
    if mapped.fitted is None:
        return {"asked": mapped.kind}
    space = mapped.fitted.space
    return {
        "asked": mapped.kind,
        "kind": space.kind,
        "views": list(space.views),
        "rows": space.rows,
        "why": space.why,
        "step": mapped.fitted.step,
    }


def space_arrays(mapped: MappedRows) -> dict[str, NDArray]:
    """Arrays by their names in the snapshot; none of a raw space."""
    if mapped.fitted is None:
        return {}
    space, found = mapped.fitted.space, {}
    for view in space.views:
        found[f"space-mean-{view}"], found[f"space-matrix-{view}"] = space.means[view], space.matrices[view]
    return found | ({"space-weights": space.weights} if space.weights.size else {})


def array_names(words: Mapping[str, Any]) -> list[str]:
    """Names of the arrays that belong to these words."""
    names = [f"space-{part}-{view}" for view in words.get("views", ()) for part in ("mean", "matrix")]
    return names + (["space-weights"] if words.get("kind") == "canonical" else [])


def space_from(words: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Fitted:
    """What was written.

    Raises:
        KeyError, ValueError: words or arrays are missing or spoilt.
    """
    views, kind = tuple(words["views"]), words["kind"]
    if kind not in ("raw", "white", "canonical") or any(not np.isfinite(one).all() for one in arrays.values()):
        raise ValueError("space")
    means = {view: arrays[f"space-mean-{view}"] for view in views}
    matrices = {view: arrays[f"space-matrix-{view}"] for view in views}
    if any(matrices[view].ndim != 2 or means[view].shape != matrices[view].shape[:1] for view in views):
        raise ValueError("space")
    weights = arrays.get("space-weights", np.zeros(0, np.float32))
    space = Space(kind, views, means, matrices, weights, int(words["rows"]), str(words["why"]))
    return Fitted(space, int(words["step"]))
