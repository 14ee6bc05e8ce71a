"""What does a whole step cost on this GPU? The published network alone, then packed videos to clips on the device."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.checking import Note, Setting, best_ms, settle

__all__ = ["loader", "train_step"]


def train_step(setting: Setting, note: Note) -> None:
    """InfoNCE on S3D, 2 clips of 32 frames at 128 pixels per video, bf16: clips/s (of all clips) and peak memory by batch."""
    import torch

    for batch in (2,) if setting.small else (16, 32, 64):
        try:
            milliseconds = _step_ms(setting, batch)
        except torch.OutOfMemoryError:
            note(f"B={batch}", "out of memory")
            break
        figures = {"ms": milliseconds, "clips_per_second": 2 * batch / milliseconds * 1e3}
        if setting.on_gpu:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        note(f"B={batch}", figures)


def loader(setting: Setting, note: Note) -> None:
    """`TrainLoader` end to end: clips/s and milliseconds waited per batch, by decoder, codec and threads."""
    videos, batch = (6, 2) if setting.small else (256, 32)
    with tempfile.TemporaryDirectory(prefix="vidssl-gpu-") as folder:
        for codec in ("h264", "vp9"):
            manifest = _packed(Path(folder), codec, videos, setting)
            for decode in ("nvdec", "py") if setting.on_gpu else ("py",):
                for threads in (1,) if setting.small else (4, 8, os.cpu_count() or 1):
                    key = f"{codec} {decode} threads={threads}"
                    try:
                        note(key, _loader_rate(setting, manifest, decode, threads, batch))
                    except RuntimeError as error:
                        note(key, str(error)[:200])


def _step_ms(setting: Setting, batch: int) -> float:
    import torch

    from vidssl.batch import ClipBatch
    from vidssl.methods import build_method
    from vidssl.recipe import load_recipe

    backbone, frames, size = ("tiny", 8, 32) if setting.small else ("s3d", 32, 128)
    words = [f"model.backbone={backbone}", "method.name=infonce", "method.queue=2048"]
    method = build_method(load_recipe("cpr-tiny", words)).to(setting.device).train()
    optimizer = torch.optim.Adam((one for one in method.parameters() if one.requires_grad), lr=1e-3)
    clips = torch.randn(batch, 2, 3, frames, size, size, device=setting.device)
    ids = torch.arange(batch, device=setting.device)
    given = ClipBatch({"rgb": clips}, ids, ids, ids, epoch=0, step=0, start=torch.zeros(batch, 2, dtype=torch.int64))

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            loss = method(given, None).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return best_ms(step, setting.device, rounds=10)


def _packed(folder: Path, codec: str, videos: int, setting: Setting) -> Any:
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
