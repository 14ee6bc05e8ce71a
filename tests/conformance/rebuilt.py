"""Inputs and weights of the conformance cases, rebuilt from their names.

The cases lie beside this file, or in the folder that `VIDSSL_CONFORMANCE` names: `KIND_….json` says sizes and salt,
`KIND_….npz` holds what the published code computed. Every array has a generator of its own, seeded by the CRC32 of its name; see `weight` for the rules of a checkpoint.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def folder() -> Path:
    """Where the cases lie."""
    named = os.environ.get("VIDSSL_CONFORMANCE", "")
    found = Path(named).expanduser() if named else HERE
    if not any(found.glob("*.json")):
        raise FileNotFoundError(f"VIDSSL_CONFORMANCE={named} holds no case (NAME.json beside NAME.npz)")
    return found


def cases(kind: str) -> list[str]:
    """Names of the cases of a kind: `cascade`, `encoder`, `loss_coclr`, `loss_iic`, `loss_vicc`."""
    return sorted(path.stem for path in folder().glob(f"{kind}_*.json"))


def load(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a case says, and the arrays that the published code computed."""
    with np.load(folder() / f"{case}.npz") as stored:
        return json.loads((folder() / f"{case}.json").read_text()), dict(stored)


def rng(name: str, salt: str = "") -> np.random.Generator:
    return np.random.default_rng(zlib.crc32((salt + name).encode()))


def array(name: str, *shape: int, salt: str = "") -> torch.Tensor:
    """Standard normal float32 [*shape]."""
    return torch.from_numpy(rng(name, salt).standard_normal(shape).astype(np.float32))


def unit(name: str, *shape: int, salt: str = "") -> torch.Tensor:
    """The same with rows (last axis) of length one."""
    rows = array(name, *shape, salt=salt).numpy()
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def weight(key: str, shape: tuple[int, ...], salt: str = "") -> torch.Tensor:
    """One entry of a checkpoint, by the first rule that fits its name and shape."""
    draw = rng(key, salt)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_mean"):
        values = 0.1 * draw.standard_normal(shape)
    elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = 0.1 * draw.standard_normal(shape)
    else:
        values = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32))


def checkpoint(said: dict[str, Any], leave_out: str = "encoder_k.") -> dict[str, Any]:
    """The whole published file of a case; entries under `leave_out` are not-a-number, so that none can be used unseen."""
    tree: dict[str, Any] = {}
    for name, entries in said["checkpoint"].items():
        if not isinstance(entries, list):  # "epoch": "int"
            tree[name] = 299
            continue
        tree[name] = {
            key: torch.tensor(torch.nan).expand(shape)
            if key.startswith(leave_out)
            else weight(key, tuple(shape), said["salt"])
            for key, shape in entries
        }
    return tree


def assert_same(ours: Any, theirs: np.ndarray) -> None:
    """Equal within the order of float32 summation."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(np.abs(theirs).max()))
