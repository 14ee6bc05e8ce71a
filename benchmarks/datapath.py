"""What does a clip cost? CPU-ms and clips/s of each decoder, augmentation preset and fragment slicing on one packed folder.

    python -m benchmarks.datapath PACKED [--threads 1] [--frames 8 --stride 2 --size 64] [--batches 8] [--json FILE]

CPU-ms (all threads of this process) is the number to compare: clips/s depends on who else uses the machine. On a GPU
machine `--device cuda` adds the NVDEC rows; their CPU-ms are what is left for the CPU to do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.loader import LoaderSpec, TrainLoader
from pipelines.loading.decode import DALI_CPU_CODECS, Decode
from pipelines.loading.engine import ClipGraph
from pipelines.loading.feed import Fed, Feed
from pipelines.loading.order import Order
from vidssl.recipe import Augment, Clips, Loader

Preset = Literal["none", "light", "paper"]
PRESETS: tuple[Preset, ...] = ("none", "light", "paper")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    decode: str
    preset: str
    slicing: bool
    cpu_ms_per_clip: float
    clips_per_s: float


def main() -> None:
    """Measure, print, write."""
    args = _arguments().parse_args()
    torch.set_num_threads(1)
    manifest = load_manifest(args.packed)
    clips = Clips(frames=args.frames, stride=args.stride, size=args.size, per_video=2)
    device = torch.device(args.device)
    rows = []
    print(f"{'what':8} {'decode':9} {'preset':6} {'slicing':7} {'CPU-ms/clip':>11} {'clips/s':>8}")
    for row in measured(manifest, clips, device, args.threads, args.batch, args.batches):
        rows.append(row)
        print(
            f"{row.what:8} {row.decode:9} {row.preset:6} {'on' if row.slicing else 'off':7}"
            f" {row.cpu_ms_per_clip:11.2f} {row.clips_per_s:8.1f}",
            flush=True,
        )
    if args.json:
        setting = {"codec": manifest.codec, "data": manifest.hash, **clips.model_dump(), **vars(args)}
        tree = {"setting": {name: str(value) for name, value in setting.items()}, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(tree, indent=1) + "\n")


def measured(
    manifest: Manifest, clips: Clips, device: torch.device, threads: int, batch: int, batches: int
) -> Iterator[Row]:
    """Every row: the feed alone, each graph, and the whole loader with its thread."""
    feed = _feed(manifest, clips, "light")
    yield _row("feed", "-", "light", True, _fed(feed, batch), batch * 2, batches)
    for decode in _decoders(manifest.codec, device):
        for preset in PRESETS:
            yield _graph_row(manifest, clips, device, threads, batch, batches, decode, preset, True)
        yield _graph_row(manifest, clips, device, threads, batch, batches, decode, "light", False)
        spec = LoaderSpec(clips, Augment(preset="light"), Loader(decode=decode, threads=threads), ("rgb",), batch, 0)
        loader = TrainLoader(manifest, spec, rank=0, world=1, device=device)
        yield _row("loader", decode, "light", True, loader, batch * 2, batches)
        loader.close()


def _graph_row(
    manifest: Manifest,
    clips: Clips,
    device: torch.device,
    threads: int,
    batch: int,
    batches: int,
    decode: Decode,
    preset: Preset,
    slicing: bool,
) -> Row:
    fed = _fed(_feed(manifest, clips, preset), batch)
    graph = ClipGraph(
        decode,
        clips,
        group=2,
        rows=2 * batch,
        threads=threads,
        device=device,
        coloured=preset == "paper",
        slicing=slicing,
    )
    graph.start(lambda: next(fed))
    row = _row("graph", decode, preset, slicing, iter(graph.run, None), batch * 2, batches)
    graph.close()
    return row


def _row(what: str, decode: str, preset: str, slicing: bool, work: Iterator[object], clips: int, batches: int) -> Row:
    for _ in islice(work, 2):  # buffers grow, files are opened
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in islice(work, batches):
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Row(what, decode, preset, slicing, 1e3 * cpu / (clips * batches), clips * batches / wall)


def _feed(manifest: Manifest, clips: Clips, preset: Preset) -> Feed:
    return Feed(manifest, clips, Augment(preset=preset, flip=True, min_area=0.5), 0)


def _fed(feed: Feed, batch: int) -> Iterator[Fed]:
    order = Order(feed.manifest.rows(), batch, rank=0, world=1, seed=0)
    for step, taken in enumerate(order.walk()):
        yield feed.read(feed.training_plan(step, taken.first_epoch, taken.instance, taken.epoch), (), True)[0]


def _decoders(codec: str, device: torch.device) -> list[Decode]:
    if device.type == "cuda":
        return ["nvdec", "py"]
    return ["dali-cpu", "py"] if codec in DALI_CPU_CODECS else ["py"]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="CPU-ms and clips/s of the data path")
    parser.add_argument("packed", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="decode threads")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="videos of a batch, two clips each")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
