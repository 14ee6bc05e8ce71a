"""Does this GPU get what it needs? A whole training with its loader and bank, the kernels of its step, the pixels it is fed."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.checking import Note, Setting
from benchmarks.checks_training import packed, product_step

__all__ = ["decoder_use", "kernels", "pixels", "training"]

ROOT = Path(__file__).parents[1]
ARM_S = 75.0
COLUMNS = (
    "clips_per_second", "step_ms", "wait_ratio", "data/read_ms", "data/decode_ms", "data/augment_ms", "data/handover_ms",
    "data/queue", "data/dali_share", "bank/push_ms", "mining/fallback_rate", "mining/age_p99", "queue/filled",
)  # fmt: skip
TINY, WHOLE = (
    ("{frames: 4, stride: 2, size: 32}", "{backbone: tiny, dim: 16, width: 4}", 24, "{stages: 3, pool: 8, topk: 2}", 6, 24),
    ("{frames: 16, stride: 2, size: 112}", "{backbone: s3d, dim: 128, channels_last: true}", 2048,
     "{stages: 3, pool: 64, topk: 5}", 64, 60),
)  # fmt: skip


def training(setting: Setting, note: Note) -> None:
    """CPR as `vidssl train` runs it, on packed videos: rate, share of waiting, stages of the loader, use of NVDEC, by arm.

    With NVDEC, with PyAV and with both, without and with the bank, in this process and in a Ray worker (NCCL). What lies between "bank
    off" and "bank" is what asynchronous mining costs a step.
    """
    videos = 60 if setting.small else 256
    arms = {
        "py, bank off": ("py", 0, "off"),
        "py, bank": ("py", 0, "actor"),
        "nvdec, bank off": ("nvdec", 0, "off"),
        "nvdec, bank": ("nvdec", 0, "actor"),
        "mixed, bank": ("mixed", 0, "actor"),
        "nvdec, bank, Ray": ("nvdec", 1, "actor"),
    }
    with tempfile.TemporaryDirectory(prefix="vidssl-gpu-") as folder:
        manifest = packed(Path(folder), "h264", videos, setting)
        for name, (decode, workers, where) in arms.items():
            if setting.on_gpu or (decode == "py" and not workers):
                note(name, _trained(Path(folder), manifest.root, setting, name, decode, workers, where))


def kernels(setting: Setting, note: Note) -> None:
    """Three steps under torch's profiler: share of the time in which the device works, the ten longest kernels, waits of the host."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = product_step(setting, [], *((2, 8, 32) if setting.small else (64, 16, 112)))
    step()
    step()
    which = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with profile(activities=which) as seen:
        for _ in range(3):
            step()
        if setting.on_gpu:
            torch.cuda.synchronize()
    rows = seen.key_averages()
    on = "self_device_time_total" if setting.on_gpu else "self_cpu_time_total"
    kept = sorted(((getattr(row, on), row.key) for row in rows), reverse=True)
    spans = [(one.time_range.start, one.time_range.end) for one in seen.events() or []]
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    busy = sum(us for us, _ in kept)
    note("busy_share", busy / wall)
    note("step_ms", wall / 3e3)
    note(
        "host_waits", {row.key: row.count / 3 for row in rows if re.search(r"Synchronize|_local_scalar_dense", row.key)}
    )
    note("longest_ms", {key[:80]: us / 3e3 for us, key in kept[:10]})


def pixels(setting: Setting, note: Note) -> None:
    """The same plan decoded by NVDEC and by PyAV: mean and largest difference in grey levels of 255, and the share above 8."""
    import torch

    from pipelines.loader import LoaderSpec, TrainLoader
    from vidssl.recipe import Augment, Clips, Loader

    clips = Clips(frames=8, size=64) if setting.small else Clips(frames=16, stride=2, size=112)
    augment = Augment(preset="crop", normalize="unit")
    with tempfile.TemporaryDirectory(prefix="vidssl-gpu-") as folder:
        manifest = packed(Path(folder), "h264" if setting.on_gpu else "vp9", 6 if setting.small else 64, setting)
        batches = {}
        for decode in ("py", "nvdec" if setting.on_gpu else "dali-cpu"):
            spec = LoaderSpec(
                clips,
                augment,
                Loader.model_validate({"decode": decode}),
                ("rgb",),
                batch=2 if setting.small else 16,
                seed=0,
            )
            feed = TrainLoader(manifest, spec, rank=0, world=1, device=torch.device(setting.device))
            try:
                batches[decode] = [feed.next() for _ in range(2)]
            finally:
                feed.close()
        first, second = batches.values()
        for one, other in zip(first, second, strict=True):
            if not torch.equal(one.instance, other.instance):
                raise RuntimeError("the two loaders brought other videos")
        apart = torch.cat(
            [(a.clips["rgb"] - b.clips["rgb"]).float().abs().flatten() for a, b in zip(first, second, strict=True)]
        )
        note("between", list(batches))
        note("mean", float(apart.mean()) * 255)
        note("largest", float(apart.max()) * 255)
        note("share_above_8", float((apart > 8 / 255).float().mean()))


@contextmanager
def decoder_use(setting: Setting) -> Iterator[list[int]]:
    """Per cent of NVDEC's time in use, each second while this is open; empty without a GPU or without nvidia-smi."""
    seen: list[int] = []
    if not setting.on_gpu:
        yield seen
        return
    try:
        watch = subprocess.Popen(
            ["nvidia-smi", "dmon", "-s", "u", "-d", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        yield seen
        return
    try:
        yield seen
    finally:
        watch.terminate()
        seen += decoder_column(watch.communicate()[0])


def decoder_column(said: str) -> list[int]:
    """The column `dec` of `nvidia-smi dmon -s u`, of its first GPU."""
    lines = [line.split() for line in said.splitlines() if line.strip()]
    head = next((line[1:] for line in lines if line[0] == "#" and "dec" in line), None)
    if head is None:
        return []
    rows = [line for line in lines if line[0] == "0" and len(line) == len(head)]
    return [int(row[head.index("dec")]) for row in rows if row[head.index("dec")].isdigit()]


def _trained(
    folder: Path, data: Path, setting: Setting, name: str, decode: str, workers: int, where: str
) -> dict[str, Any]:
    clips, model, queue, plan, batch, steps = TINY if setting.small else WHOLE
    run = re.sub(r"\W+", "-", name)
    recipe = folder / f"{run}.yaml"
    recipe.write_text(
        f"name: {run}\nclips: {clips}\naugment: {{preset: {'light' if setting.small else 'paper'}}}\nmodel: {model}\n"
        f"loader: {{decode: {decode}, threads: {1 if setting.small else os.cpu_count() or 1}}}\n"
        f"method: {{name: cpr, view: residual, second_view: rgb, warmup_steps: 5, queue: {queue}}}\n"
        f"mining: {plan}\ntrainer: {{batch: {batch}, steps: {steps}, log_every_steps: {steps // 12}, checkpoint_every_steps: {steps}, "
        f"workers: {workers}, device: {setting.device}, precision: {'bf16' if setting.on_gpu else 'fp32'}}}\n"
    )
    words = [f"data={data}", f"trainer.storage={folder / 'runs'}", f"mining.where={where}", "--no-evaluation"]
    command = [sys.executable, "-W", "ignore", "-m", "cluster", "train", str(recipe), *words]
    with decoder_use(setting) as used:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ARM_S, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"longer than {ARM_S:.0f} s"}
    if done.returncode:
        return {"error": " | ".join((done.stdout + done.stderr).strip().splitlines()[-2:])[:400]}
    return figures_of(folder / "runs" / run) | ({"nvdec_percent_most": max(used)} if used else {})


def figures_of(run: Path) -> dict[str, float]:
    """Medians of what a run logged after its first third: that is compilation, tuning, an empty queue and an empty bank."""
    from vidssl.saved.run_folder import RunFolder

    rows = RunFolder(run).read_log()
    rows = rows[len(rows) // 3 :]
    return {name: statistics.median(row[name] for row in rows) for name in COLUMNS if all(name in row for row in rows)}
