"""(c) Does ViCC's second stream teach the first one more than training on alone would, at equal updates?

Stage 1: each stream alone. Stage 2, from the same RGB network and prototypes: RGB alone again, or RGB across with the
residual stream frozen. It can only be expected where the residual stream is the better one and the loss leaves ln P.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import mean

from benchmarks.science_data import Clips, World
from benchmarks.science_training import Training, describe, method_of, recall, train
from vidssl.methods import Method

__all__ = ["Setup", "comparisons", "register", "run"]

CROSS, CONTINUED = "R@1 | rgb, stage 2 cross", "R@1 | rgb, stage 2 single continued"
RGB, RESIDUAL = "R@1 | rgb, stage 1", "R@1 | residual, stage 1"

FIRST = Training(steps=400, batch=64, lr=1e-3)
SECOND = Training(steps=250, batch=64, lr=1e-3)


@dataclass(frozen=True)
class Setup:
    """Sizes of experiment (c)."""

    world: World = field(default_factory=lambda: World(corr=0.4, pan=0.015, speeds=0.3, objects=3, pool=200))
    first: Training = FIRST
    second: Training = SECOND
    width: int = 12
    dim: int = 64
    prototypes: int = 48


def register(setup: Setup) -> dict[str, object]:
    """What is claimed, how it is measured and how long it takes, fixed before the run."""
    return {
        "claim": "RGB after the cross stage has a higher R@1 than RGB continued alone: mean difference above 0 and at least 4 of 5 "
        "seeds positive",
        "conditions, printed with every seed": f"residual R@1 above RGB R@1 after stage 1; final cross loss below .95 ln P = {0.95 * math.log(setup.prototypes):.2f}",
        "metric": "R@1 of test videos among the training videos, p1_strict, RGB encoder",
        "arms": ["rgb, stage 1", "residual, stage 1", "rgb, stage 2 single continued", "rgb, stage 2 cross"],
        "updates": f"both arms of stage 2: {setup.second.steps} updates from the same weights, prototypes and clips; gradient through both "
        "RGB clips; no queue (batch above prototypes), prototypes never frozen, temperature .1",
        "piloted": PILOTED,
        "setup": asdict(setup),
    }


PILOTED = (
    "on other videos, 300 or 400 test videos. In the world of (a), seed 100, 250 + 300 updates, RGB was the better stream (.425 against "
    ".350) and both arms of stage 2 lost (.338 continued, .328 cross): hence this world with less appearance and slower pans. In it, "
    "stage 1 with 20, 48 and 150 prototypes: residual the better stream in most, loss below ln P in all. Whole runs: seed 100, 250 + "
    "300: RGB .497, residual .635, continued .660, cross .603 (loss 3.14); seed 101, 300 + 500: RGB .565, residual .525, continued .748, "
    "cross .645 (loss 2.90). So cross lost in both, while RGB alone was still improving fast; stage 1 is longer here for that reason. "
    "These sizes themselves were not piloted, and after the pilots the claim is expected to fail"
)


def comparisons(setup: Setup) -> list[tuple[str, str, str]]:
    """(what, arm, rival): arm minus rival, its sign in every seed."""
    del setup
    return [
        ("R@1: cross - single continued", CROSS, CONTINUED),
        ("R@1: cross - stage 1", CROSS, RGB),
        ("R@1: single continued - stage 1", CONTINUED, RGB),
        ("condition: residual - rgb, stage 1", RESIDUAL, RGB),
        ("condition: .95 ln P - cross loss", "loss | 0.95 ln P", "loss | stage 2 cross"),
    ]


def run(setup: Setup, train_clips: Clips, test_clips: Clips, seed: int) -> dict[str, float]:
    """All numbers of one seed: `panel | arm` → value."""
    table: dict[str, float] = {}
    streams: dict[str, Method] = {}

    def asked(name: str, method: Method, losses: list[float]) -> None:
        view = method.trained_view
        table[f"R@1 | {name}"] = recall(
            describe(method.encoder(view), view, train_clips, test_clips), train_clips, test_clips
        )
        table[f"loss | {name.removeprefix('rgb, ')}"] = mean(losses[-20:])

    for view in ("rgb", "residual"):
        streams[view] = _method(setup, view, "single", seed, train_clips)
        asked(f"{view}, stage 1", streams[view], train(streams[view], train_clips, (view,), setup.first, seed))
    for name, kind in (("single continued", "single"), ("cross", "cross")):
        method = _method(setup, "rgb", kind, seed, train_clips)
        method.start_from(streams["rgb"].artifact("rgb"))
        if kind == "cross":
            weights = streams["residual"].artifact("residual")
            method.load_encoder(
                "residual", {key: rows for key, rows in weights.items() if not key.startswith("extra.")}
            )
        views = ("rgb", "residual") if kind == "cross" else ("rgb",)
        asked(f"rgb, stage 2 {name}", method, train(method, train_clips, views, setup.second, seed + 1_000))
    table["loss | ln P"], table["loss | 0.95 ln P"] = (share * math.log(setup.prototypes) for share in (1, 0.95))
    return table


def _method(setup: Setup, view: str, kind: str, seed: int, clips: Clips) -> Method:
    other = "residual" if view == "rgb" else "rgb"
    words = [
        "method.name=vicc", f"method.view={view}", f"method.second_view={other}", "method.warmup_steps=0", "method.temperature=0.1",
        f"method.vicc.streams={kind}", f"method.vicc.prototypes={setup.prototypes}", "method.vicc.queue=0",
        "method.vicc.freeze_epochs=0", f"model.width={setup.width}", f"model.dim={setup.dim}",
    ]  # fmt: skip
    return method_of(words, seed, len(clips))
