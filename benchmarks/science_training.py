"""How are the arms of a science check trained and asked? The product's methods, losses and optimizer, one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from benchmarks.science_data import Clips, RealWorld
from vidssl.batch import ClipBatch
from vidssl.encoder import Encoder
from vidssl.evaluation.encode import EncoderReader, describe_videos
from vidssl.evaluation.retrieval import Side, retrieve
from vidssl.methods import Method, build_method
from vidssl.optimizers import build_optimizer
from vidssl.recipe import Recipe, load_recipe
from vidssl.schedule import learning_rate

__all__ = ["Rows", "Training", "describe", "method_of", "recall", "recipe_of", "train", "train_together"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Training:
    """How long and how fast; the same for every arm that is compared."""

    steps: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Rows:
    """Features and embeddings of training and test videos under one view; means over three windows."""

    train: Floats
    test: Floats
    embedding: Floats

    def joined(self, other: Rows) -> Rows:
        """Both views side by side (each row's two features have about length one)."""
        pairs = ((self.train, other.train), (self.test, other.test), (self.embedding, other.embedding))
        return Rows(*(np.concatenate(pair, axis=1) for pair in pairs))


def method_of(words: Sequence[str], seed: int, instances: int) -> Method:
    """The product's method of a recipe in words, with fresh weights."""
    return build_method(recipe_of(words), seed, instances)


def recipe_of(words: Sequence[str]) -> Recipe:
    """`cpr-tiny` with words."""
    return load_recipe("cpr-tiny", list(words))


def train(
    method: Method, clips: Clips, views: Sequence[str], training: Training, seed: int, per_video: int = 2
) -> list[float]:
    """Every `steps` is one optimizer step; returns the loss of each.

    Order and augmentation depend on (seed, step) alone: arms of one seed see the same clips.
    """
    return train_together({"": method}, clips, views, training, seed, per_video)[""]


def train_together(
    methods: Mapping[str, Method],
    clips: Clips,
    views: Sequence[str],
    training: Training,
    seed: int,
    per_video: int = 2,
) -> dict[str, list[float]]:
    """As `train`, of several methods step by step: the clips of a step are cut once. They share nothing else."""
    optim = recipe_of([f"optim.lr={training.lr}", "optim.schedule=cosine", f"optim.min_lr={training.lr / 20}"]).optim
    optimizers = {}
    for name, method in methods.items():
        method.train()
        optimizers[name] = build_optimizer(optim, [one for one in method.parameters() if one.requires_grad])
    losses: dict[str, list[float]] = {name: [] for name in methods}
    for step in range(training.steps):
        batch = clips.batch(_rows(len(clips), training.batch, seed, step), views, seed, step, per_video)
        for name, method in methods.items():
            lr = learning_rate(optim, step, training.steps)
            losses[name].append(_update(method, optimizers[name], batch, lr))
    for method in methods.values():
        method.eval()
    return losses


def _update(method: Method, optimizer: Optimizer, batch: ClipBatch, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    out = method(batch, None)
    if not out.update:
        raise RuntimeError(f"step {batch.step} made no update; all arms must make the same number")
    optimizer.zero_grad(set_to_none=True)
    out.loss.backward()
    method.before_update(batch)
    optimizer.step()
    return float(out.loss.detach())


def describe(encoder: Encoder, view: str, train_clips: Clips, test_clips: Clips) -> Rows:
    """What the product's evaluation makes of the encoder: pooled backbone features, and the head's unit rows."""
    encoder.eval()
    reader = EncoderReader(encoder, view)
    seen, asked = (
        describe_videos(clips.windows((view,)), [reader], np.arange(len(clips))).rows
        for clips in (train_clips, test_clips)
    )
    embedding = seen[f"embedding/{view}"]
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    return Rows(seen[f"feature/{view}"], asked[f"feature/{view}"], unit)


def recall(rows: Rows, train_clips: Clips, test_clips: Clips) -> float:
    """R@1 of the test videos among the training videos (p1_strict); of real clips, which are both, one source is left out."""
    sides = [
        Side(feature, clips.label, clips.group, np.arange(len(clips)))
        for feature, clips in ((rows.test, test_clips), (rows.train, train_clips))
    ]
    gallery = None if isinstance(test_clips.world, RealWorld) else sides[1]
    return retrieve(sides[0], gallery, protocol="p1_strict", ks=(1,)).at[1]


def _rows(videos: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Videos of a step: epochs in random order, the rest of an epoch is dropped."""
    per_epoch = videos // batch
    order = np.random.default_rng((seed, step // per_epoch, 11)).permutation(videos)
    return order[(step % per_epoch) * batch :][:batch]
