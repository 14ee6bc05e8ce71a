"""What does a whole step cost on this GPU? The published network alone, then packed videos to clips on the device."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checking import Note, Setting, best_ms, settle

__all__ = ["loader", "packed", "product_step", "step_words", "train_step"]


def train_step(setting: Setting, note: Note) -> None:
    """InfoNCE on S3D in bf16, 2 clips per video, by clip and batch: clips/s (of all clips), peak memory."""
    import torch

    sizes = (
        ((2, 8, 32),)
        if setting.small
        else tuple((b, 16, 112) for b in (32, 64, 128)) + tuple((b, 32, 128) for b in (16, 32, 64))
    )
    for batch, frames, size in sizes:
        name = f"{frames}x{size}x{size} B={batch}"
        try:
            milliseconds = best_ms(product_step(setting, [], batch, frames, size), setting.device, rounds=8, budget_s=6)
        except torch.OutOfMemoryError:
            note(name, "out of memory")
            continue
        figures = {"ms": milliseconds, "clips_per_second": 2 * batch / milliseconds * 1e3}
        if setting.on_gpu:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        note(name, figures)


def step_words(setting: Setting, note: Note) -> None:
    """The same step, 16x112x112 at B=64, by what recipes can say of it: fp32, layout of memory, compiled encoders, one kernel per weight."""
    import torch

    arms = {
        "bf16": ([], {}),
        "bf16 channels_last": (["model.channels_last=true"], {}),
        "bf16 compile": (["model.compile=true"], {}),
        "bf16 channels_last compile": (["model.channels_last=true", "model.compile=true"], {}),
        "bf16, optimizer not fused": ([], {"fused": False}),
        "fp32": ([], {"precision": torch.float32}),
    }
    for name, (words, more) in list(arms.items())[:: 5 if setting.small else 1]:
        step = product_step(setting, words, *((2, 8, 32) if setting.small else (64, 16, 112)), **more)
        began = time.perf_counter()
        step()
        settle(setting.device)
        first = time.perf_counter() - began
        note(name, {"ms": best_ms(step, setting.device, rounds=8, budget_s=6), "first_step_s": first})


def loader(setting: Setting, note: Note) -> None:
    """`TrainLoader` end to end: clips/s and milliseconds waited per batch, by decoder, codec and threads."""
    videos, batch = (6, 2) if setting.small else (256, 32)
    with tempfile.TemporaryDirectory(prefix="vidssl-gpu-") as folder:
        for codec in ("h264", "vp9"):
            manifest = packed(Path(folder), codec, videos, setting)
            for decode in (
                ("nvdec", "py", "mixed") if setting.on_gpu else ("py",) if codec == "h264" else ("py", "mixed")
            ):
                for threads in (1,) if setting.small else (4, 8, os.cpu_count() or 1):
                    key = f"{codec} {decode} threads={threads}"
                    try:
                        note(key, _loader_rate(setting, manifest, decode, threads, batch))
                    except RuntimeError as error:
                        note(key, str(error)[:200])


def product_step(
    setting: Setting,
    words: Sequence[str],
    batch: int,
    frames: int,
    size: int,
    *,
    fused: bool = True,
    precision: Any = None,
) -> Callable[[], object]:
    """A step as a worker does it: InfoNCE on S3D (tiny where small), the optimizer of `vidssl.optimizers`, bf16 unless said."""
    import torch

    from vidssl.batch import ClipBatch
    from vidssl.methods import build_method
    from vidssl.optimizers import build_optimizer
    from vidssl.recipe import load_recipe

    torch.backends.cudnn.benchmark = True
    backbone = "tiny" if setting.small else "s3d"
    recipe = load_recipe("cpr-tiny", [f"model.backbone={backbone}", "method.name=infonce", "method.queue=2048", *words])
    method = build_method(recipe).to(setting.device).train()
    optimizer = build_optimizer(recipe.optim, (one for one in method.parameters() if one.requires_grad))
    if not fused:
        for group in optimizer.param_groups:
            group["fused"] = group["foreach"] = False
    clips = torch.randn(batch, 2, 3, frames, size, size, device=setting.device)
    ids = torch.arange(batch, device=setting.device)
    given = ClipBatch({"rgb": clips}, ids, ids, ids, epoch=0, step=0, start=torch.zeros(batch, 2, dtype=torch.int64))
    bf16 = precision is None

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            loss = method(given, None).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def packed(folder: Path, codec: str, videos: int, setting: Setting) -> Any:
    """The manifest of made videos in that codec, packed below `folder`."""
    from pipelines.pack import pack
    from pipelines.packing.options import pack_options
    from pipelines.synthetic import make_motion_set

    source = folder / "videos"
    if not source.exists():
        make_motion_set(source, videos=videos, frames=40 if setting.small else 100, size=128 if setting.small else 160)
    return pack("csv", source / "videos.csv", folder / codec, pack_options([f"codec={codec}"]))


def _loader_rate(setting: Setting, manifest: Any, decode: str, threads: int, batch: int) -> dict[str, float]:
    import torch

    from pipelines.loader import LoaderSpec, TrainLoader
    from vidssl.recipe import Augment, Clips, Loader

    clips = Clips(frames=8, size=64) if setting.small else Clips(frames=16, stride=2, size=112)
    given = Loader.model_validate({"decode": decode, "threads": threads})
    spec = LoaderSpec(clips, Augment(), given, ("rgb",), batch=batch, seed=0)
    feed = TrainLoader(manifest, spec, rank=0, world=1, device=torch.device(setting.device))
    try:
        for _ in range(3):
            feed.next()
        feed.meter.read_wait()
        batches, began = 0, time.perf_counter()
        while time.perf_counter() - began < (0.3 if setting.small else 8):
            feed.next()
            batches += 1
        settle(setting.device)
        seconds = time.perf_counter() - began
        return {
            "clips_per_second": batches * batch * clips.per_video / seconds,
            "wait_ms_per_batch": 1e3 * feed.meter.read_wait() / batches,
            "bad": len(feed.meter.bad),
        }
    finally:
        feed.close()
