"""Do the papers' methods and networks run on this GPU as they do on a CPU, and what do they cost there?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.checking import Note, Setting, best_ms

__all__ = ["backbones", "methods", "sinkhorn", "switches"]

_SWITCHES: tuple[dict[str, bool], ...] = (
    {},
    {"channels_last": True},
    {"checkpointing": True},
    {"channels_last": True, "checkpointing": True},
)
NAMES = ("s3d", "s3dg", "r2d3d50", "r18_2d3d", "r21d10", "r21d18", "r3d10", "r3d18", "c3d")


def backbones(setting: Setting, note: Note) -> None:
    """Each network: largest difference of its pooled output from the CPU's (fp32, share of the largest value), and ms of a bf16 step."""
    import torch

    from vidssl.encoder import build_encoder
    from vidssl.sections import Model

    frames, size, batch = (16, 64, 2) if setting.small else (16, 112, 32)
    for name in ("s3d", "r3d10") if setting.small else NAMES:
        torch.manual_seed(0)
        encoder = build_encoder(Model(backbone=name)).eval()
        few = torch.randn(2, 3, 16, size, size)
        with torch.no_grad():
            here = encoder.features(few)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            there = encoder.to(setting.device).features(few.to(setting.device)).cpu()
            torch.backends.cudnn.allow_tf32 = True
        clips = torch.randn(batch, 3, frames, size, size, device=setting.device)
        note(
            name,
            {
                "difference": float((here - there).abs().max() / here.abs().max()),
                "ms_bf16": best_ms(lambda net=encoder, x=clips: _step(net, x, setting), setting.device, rounds=5),
            },
        )


def switches(setting: Setting, note: Note) -> None:
    """S3D 32x128x128 in bf16, plain, channels_last_3d and checkpointed: ms of a forward and backward pass, peak memory."""
    import torch

    from vidssl.encoder import build_encoder
    from vidssl.sections import Model

    frames, size, batch = (8, 32, 2) if setting.small else (32, 128, 32)
    for words in _SWITCHES[: 3 if setting.small else 4]:
        encoder = build_encoder(Model(backbone="s3d").model_copy(update=words)).to(setting.device).train()
        clips = torch.randn(batch, 3, frames, size, size, device=setting.device)
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        figures = {"ms": best_ms(lambda net=encoder, x=clips: _step(net, x, setting), setting.device, rounds=5)}
        if setting.on_gpu:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        note(" ".join(words) or "plain", figures)


def methods(setting: Setting, note: Note) -> None:
    """One training step of every method under bf16 autocast: finite loss, finite gradients, ms; the losses stay fp32."""
    import torch

    from vidssl.methods import build_method
    from vidssl.recipe import load_recipe

    for name, words in _arms():
        model = "tiny" if setting.small else "r3d10" if name.startswith("iic") else "s3d"
        dim = "model.dim=512" if name.startswith("iic") and not setting.small else "model.dim=128"
        recipe = load_recipe("cpr-tiny", [f"model.backbone={model}", dim, "method.queue=64", *words])
        rows = 8 if setting.small else 16
        method = build_method(recipe, instances=256).to(setting.device).train()
        frames, size = (8, 32) if setting.small else (16, 112)
        batch = _batch(recipe.views, rows, frames, size, setting.device)

        def step(method: Any = method, batch: Any = batch) -> Any:
            with torch.autocast(setting.device, torch.bfloat16):
                out = method(batch, None)
            method.zero_grad(set_to_none=True)
            out.loss.backward()
            method.before_update(batch)
            return out

        for _ in range(64 // rows):  # what is timed is a step with a full queue, and mining in it
            step()
        out = step()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        note(
            name,
            {
                "loss": float(out.loss),
                "dtype": str(out.loss.dtype),
                "queue_filled": float(out.metrics.get("queue/filled", 1.0)),
                "finite": bool(out.loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients),
                "ms": best_ms(step, setting.device, rounds=3),
            },
        )


def sinkhorn(setting: Setting, note: Note) -> None:
    """Assignments of 2112 rows to 300 prototypes: equal to the CPU's, finite from fp16 scores, ms."""
    import torch

    from vidssl.sinkhorn import sinkhorn as assign

    scores = torch.randn(2112, 300, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    here = assign(scores, 0.05, 3)
    there = assign(scores.to(setting.device), 0.05, 3)
    half = assign(scores.to(setting.device).half(), 0.05, 3)
    note("difference", float((here - there.cpu()).abs().max()))
    note("finite_from_fp16", bool(half.isfinite().all()))
    note("ms", best_ms(lambda: assign(scores.to(setting.device), 0.05, 3), setting.device, rounds=10))


def _arms() -> Iterator[tuple[str, list[str]]]:
    yield "infonce", ["method.name=infonce"]
    yield "ubernce", ["method.name=ubernce"]
    yield (
        "infonce + cascade",
        ["method.name=infonce", "method.cascade=true", "method.warmup_steps=0", "mining.where=inline"],
    )
    yield "cpr", ["method.name=cpr", "method.warmup_steps=0", "mining.where=inline"]
    yield (
        "vicc single",
        ["method.name=vicc", "method.vicc.prototypes=30", "method.vicc.queue=0", "method.warmup_steps=0"],
    )
    yield (
        "vicc cross",
        ["method.name=vicc", "method.vicc.streams=cross", "method.vicc.queue=0", "method.warmup_steps=0"],
    )
    yield "iic", ["method.name=iic", "model.head=mlp", "method.iic.negatives=128"]
    yield (
        "iic + cascade",
        [
            "method.name=iic",
            "method.cascade=true",
            "method.warmup_steps=0",
            "mining.where=inline",
            "method.iic.normalize=true",
        ],
    )


def _batch(views: tuple[str, ...], rows: int, frames: int, size: int, device: str) -> Any:
    import torch

    from vidssl.batch import ClipBatch

    ids = torch.arange(rows, device=device)
    clips = {view: torch.randn(rows, 2, 3, frames, size, size, device=device) for view in views}
    start = torch.zeros(rows, 2, dtype=torch.int64)
    return ClipBatch(clips, ids, ids, ids % 4, epoch=0, step=0, start=start)


def _step(encoder: Any, clips: Any, setting: Setting) -> None:
    import torch

    with torch.autocast(setting.device, torch.bfloat16):
        loss = encoder(clips).float().square().mean()
    encoder.zero_grad(set_to_none=True)
    loss.backward()
