"""A manifest without videos, and rows of trainings that nobody trained: for tests of what a sweep asks and says."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.sweep.held_out import HeldOut
from cluster.sweep.trained import TrainedRow
from pipelines.dataset.manifest import Manifest, Samples, Shard, write_manifest
from vidssl.evaluation.protocol import Protocol
from vidssl.evaluation.retrieval import wilson


def manifest_of(root: Path, videos: int = 240, classes: int = 10) -> Manifest:
    """Videos of even classes, two to a group, all of them for training."""
    zeros, instance = np.zeros(videos, np.int32), np.arange(videos, dtype=np.int32)
    samples = Samples(
        zeros, instance % classes, instance // (2 * classes) * classes + instance % classes, zeros.astype(np.int8), zeros + 64,
        zeros.astype(np.int16) + 256, zeros.astype(np.int16) + 256, np.array([f"{i}.mp4" for i in range(videos)]),
    )  # fmt: skip
    names = tuple(f"class {i}" for i in range(classes))
    return Manifest(root, "data", "h264", 256, 25.0, 16, names, ("train",), (), samples, groups=videos // 2)


def row_of(arm: str, seed: int, r1: float, percent: int = 100, state: str = "", pool: int | None = 20) -> TrainedRow:
    """As a training leaves it at a rung."""
    state = state or ("finished" if percent == 100 else "goes on")
    said = {
        "run": f"{arm}-{seed}",
        "arm": arm,
        "seed": seed,
        "key": f"{arm}/{seed}",
        "percent": percent,
        "step": 3 * percent,
    }
    return TrainedRow(**said, state=state, pool=pool, r1=r1, low=0.0, high=1.0, chance=0.1, queries=200, seconds=1.5)


def written_manifest(root: Path, **kind: int) -> Path:
    """A folder that is packed as far as anybody looks who reads no video."""
    root.mkdir(parents=True)
    plain = manifest_of(root, **kind)
    write_manifest(replace(plain, shards=(Shard("shard-00000.tar", 1, len(plain), "0" * 64),)))
    return root


def held_out_of(step: int, hits: list[float], asked: str) -> HeldOut:
    """An answer that nobody gave."""
    facts: dict[str, Any] = {field.name: None for field in fields(Protocol) if field.default is MISSING}
    words = (
        "run",
        "method",
        "backbone",
        "checkpoint_sha256",
        "checkpoint",
        "data_hash",
        "normalize",
        "window_rule",
        "crops",
    )
    facts |= dict.fromkeys((*words, "augmentation", "decode", "device"), "x")
    facts |= dict.fromkeys(("T", "stride", "size", "windows"), 1)
    low, high = wilson(float(np.mean(hits)), len(hits))
    return HeldOut(
        asked=asked, step=step, r1=float(np.mean(hits)), interval95=(low, high), chance=0.1, videos=tuple(range(len(hits))), hits=tuple(hits),
        gallery=9, share=0.2, protocol=Protocol(**facts),
    )  # fmt: skip
