"""Does the loader's memory grow? Resident megabytes of a process that loads clip after clip, each decoder in one of its own.

    python -m benchmarks.growth [--clips 20000] [--frames 8 --stride 2 --size 64] [--only py dali-cpu]

Makes its own videos (64 moving shapes) and packs them as H.264, and as VP9 for the decoder that reads nothing else.
What counts is the growth from a tenth of the clips to all of them; before that, buffers find their size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.hardware import RESULTS, result_path, write_result
from pipelines.dataset.manifest import load_manifest
from pipelines.loader import LoaderSpec, TrainLoader
from pipelines.pack import PackOptions, pack
from pipelines.synthetic import make_motion_set
from vidssl.recipe import Augment, Clips, Loader

WAYS: dict[str, tuple[Literal["h264", "vp9"], str, str]] = {
    "py": ("h264", "py", "whole"),
    "py-windows": ("h264", "py", "windows"),
    "dali-cpu": ("vp9", "dali-cpu", "whole"),
}
"""Name → codec of the pack, `loader.decode`, `loader.read`."""
CUDA_WAYS: dict[str, tuple[Literal["h264", "vp9"], str, str]] = {
    "nvdec": ("h264", "nvdec", "whole"),
    "py-cuda": ("h264", "py", "whole"),
}
POINTS = 10
VIDEOS = 64


def main(words: Sequence[str] | None = None) -> int:
    """Each way in a process of its own, a table, JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=[*WAYS, *CUDA_WAYS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "PACKED"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        print(json.dumps(grown(given.child[0], Path(given.child[1]), given)))
        return 0
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for way in given.only or (CUDA_WAYS if given.device == "cuda" else WAYS):
            found[way] = _in_a_process(way, _packed(Path(home), (WAYS | CUDA_WAYS)[way][0]), given)
            print(_line(way, found[way]), flush=True)
    setting = {name: getattr(given, name) for name in ("clips", "frames", "stride", "size", "device")}
    write_result(result_path("growth", given.out), {"setting": setting, "ways": found})
    return 0


def grown(way: str, packed: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """Load clips in this process: how many, resident megabytes, and seconds, at ten points."""
    torch.set_num_threads(1)
    _, decode, read = (WAYS | CUDA_WAYS)[way]
    clips = Clips(frames=given.frames, stride=given.stride, size=given.size, per_video=2)
    loader_keys = Loader.model_validate({"decode": decode, "read": read, "threads": 1})
    spec = LoaderSpec(clips, Augment(preset="light"), loader_keys, ("rgb",), batch=16, seed=0)
    loader = TrainLoader(load_manifest(packed), spec, rank=0, world=1, device=torch.device(given.device))
    points: dict[str, list[float]] = {"clips": [], "megabytes": [], "seconds": []}
    began, seen = time.perf_counter(), 0
    for point in range(1, POINTS + 1):
        while seen < given.clips * point / POINTS:
            next(loader)
            seen += 32
        points["clips"].append(seen)
        points["megabytes"].append(round(_resident(), 1))
        points["seconds"].append(round(time.perf_counter() - began, 1))
    loader.close()
    return points


def _resident() -> float:
    """Megabytes of this process that are in memory now."""
    words = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(words.split()[1]) / 1024


def _packed(home: Path, codec: Literal["h264", "vp9"]) -> Path:
    folder = home / codec
    if not folder.exists():
        table = make_motion_set(home / "videos", videos=VIDEOS, frames=48, size=128, seed=0)
        pack("csv", table, folder, PackOptions(codec=codec))
    return folder


def _in_a_process(way: str, packed: Path, given: argparse.Namespace) -> dict[str, Any]:
    names = ("clips", "frames", "stride", "size", "device")
    words = [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", *words, "--child", way, str(packed)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    points = json.loads(done.stdout.splitlines()[-1])
    return {"points": points, "growth": points["megabytes"][-1] / points["megabytes"][0] - 1}


def _line(way: str, found: dict[str, Any]) -> str:
    points = found["points"]
    return (
        f"{way:10} {points['megabytes'][0]:7.0f} MB after {points['clips'][0]:.0f} clips, "
        f"{points['megabytes'][-1]:7.0f} after {points['clips'][-1]:.0f}: {100 * found['growth']:+.1f} %   "
        f"({points['clips'][-1] / points['seconds'][-1]:.0f} clips/s)"
    )


if __name__ == "__main__":
    sys.exit(main())
