"""(b) Do IIC's intra-negatives (a clip with its motion destroyed) help, at an equal number of negatives?

Three arms from equal weights on equal clips: 2K+1 other videos and no intra-negative; K others and, as published, the
memory's intra-negatives (own and K others'); 2K others and this step's own intra-negative.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.science_data import Clips, World
from benchmarks.science_training import Training, describe, method_of, recall, train
from vidssl.encoder import Encoder, unit_rows
from vidssl.views import intra_negative

__all__ = ["Setup", "comparisons", "frozen", "margin", "register", "run"]

VIEWS = ("rgb", "residual")
NONE, BANK, LIVE = "none", "repeat, bank", "repeat, live"

TRAINING = Training(steps=540, batch=32, lr=1e-3)


@dataclass(frozen=True)
class Setup:
    """Sizes of experiment (b)."""

    world: World = field(default_factory=World)
    training: Training = TRAINING
    width: int = 12
    dim: int = 64
    negatives: int = 128

    def arms(self) -> dict[str, list[str]]:
        """Arm → words; every arm has 2K+1 negatives."""
        k = self.negatives
        bank, live = "method.iic.intra_negative=bank", "method.iic.intra_negative=live"
        return {
            NONE: ["method.iic.intra=none", f"method.iic.negatives={2 * k + 1}"],
            BANK: ["method.iic.intra=repeat", bank, f"method.iic.negatives={k}"],
            LIVE: ["method.iic.intra=repeat", live, f"method.iic.negatives={2 * k}"],
        }


def register(setup: Setup) -> dict[str, object]:
    """What is claimed, how it is measured and how long it takes, fixed before the run."""
    return {
        "claim": f"'{BANK}' has a larger margin than '{NONE}': mean difference above 0 and at least 4 of 5 seeds positive",
        "second claim": f"'{BANK}' has a higher joint R@1 than '{NONE}', judged the same way",
        "metric": "margin: cos(z, z of the other view) - cos(z, z of its own frozen frame), mean over test videos' middle windows and both "
        "views as z; R@1 of test videos among the training videos, p1_strict, of rgb, residual and both side by side (joint)",
        "arms": {name: " ".join(words) for name, words in setup.arms().items()},
        "updates": f"{setup.training.steps} in every arm ({setup.training.steps // (setup.world.sources * setup.world.cuts // setup.training.batch)} epochs); "
        "one clip per video, both views of it, unit rows in the scores, one shared network",
        "piloted": PILOTED,
        "setup": asdict(setup),
    }


PILOTED = (
    "on other videos, seed 100, these sizes, 400 test videos: margin .73 (none), .94 (bank), 1.14 (live); joint R@1 .535, .637, .635; "
    "rgb .487, .575, .580; frozen frame .102, .130, .117. The world and the width are those of (a), nothing else was tried"
)


def comparisons(setup: Setup) -> list[tuple[str, str, str]]:
    """(what, arm, rival): arm minus rival, its sign in every seed."""
    del setup
    panels = ("margin", "R@1 joint", "R@1 rgb", "R@1 residual", "R@1 rgb of a frozen frame")
    return [
        (f"{panel}: {arm} - {NONE}", f"{panel} | {arm}", f"{panel} | {NONE}")
        for panel in panels
        for arm in (BANK, LIVE)
    ]


def run(setup: Setup, train_clips: Clips, test_clips: Clips, seed: int) -> dict[str, float]:
    """All numbers of one seed: `panel | arm` → value."""
    found: dict[str, dict[str, float]] = {}
    for arm, words in setup.arms().items():
        sizes = [
            f"model.width={setup.width}",
            f"model.dim={setup.dim}",
            "method.iic.normalize=true",
            "method.warmup_steps=0",
        ]
        method = method_of([*sizes, "method.name=iic", *words], seed, len(train_clips))
        losses = train(method, train_clips, VIEWS, setup.training, seed, per_video=1)
        found[arm] = {"margin": margin(method.encoder("rgb"), test_clips, seed)}
        found[arm] |= _recalls(method.encoder("rgb"), train_clips, test_clips)
        found[arm]["loss"] = float(np.mean(losses[-20:]))
    return {f"{panel} | {arm}": found[arm][panel] for panel in found[NONE] for arm in found}


def _recalls(encoder: Encoder, train_clips: Clips, test_clips: Clips) -> dict[str, float]:
    rows = {view: describe(encoder, view, train_clips, test_clips) for view in VIEWS}
    still = describe(encoder, "rgb", train_clips, frozen(test_clips))
    return {
        "R@1 joint": recall(rows["rgb"].joined(rows["residual"]), train_clips, test_clips),
        "R@1 rgb": recall(rows["rgb"], train_clips, test_clips),
        "R@1 residual": recall(rows["residual"], train_clips, test_clips),
        "R@1 rgb of a frozen frame": recall(still, train_clips, test_clips),
    }


def frozen(clips: Clips) -> Clips:
    """The same videos without motion: their middle frame throughout."""
    from dataclasses import replace

    middle = clips.world.frames
    return replace(clips, pixels=clips.pixels[:, :, middle : middle + 1].expand_as(clips.pixels))


@torch.no_grad()
def margin(encoder: Encoder, clips: Clips, seed: int) -> float:
    """How much nearer a clip is to its other view than to itself without motion, in cosine; mean over videos and views."""
    gaps: list[Tensor] = []
    for batch in clips.windows(VIEWS):
        if batch.step != 1:  # the middle window
            continue
        rgb, residual = (batch.clips[view][:, 0] for view in VIEWS)
        still = intra_negative(rgb, "repeat", seed=seed, step=0, instance=batch.instance.numpy())
        first, second, broken = (unit_rows(encoder(one)) for one in (rgb, residual, still))
        gaps += [(one * two).sum(1) - (one * broken).sum(1) for one, two in ((first, second), (second, first))]
    return float(torch.cat(gaps).mean())
