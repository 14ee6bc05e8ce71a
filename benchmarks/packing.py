"""What does packing cost beside the ffmpeg program that does the same encoding, in time and in bytes?

    python -m benchmarks.packing VIDEOS … [--videos 60] [--rounds 3] [--size 128] [--fps 25]

VIDEOS are folders of videos. Both make H.264 of the same size, rate, quality (crf 23, veryfast), with a key frame in every
16 frames, one thread, one video at a time. Ours also decodes what it wrote again and compares, looks for faults, and writes
tar shards with a manifest: all that is in its figure. CPU seconds are those of the whole tree of
processes; rounds are interleaved, medians are printed, and `ffmpeg` is left out, in words, where it is not installed.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import RESULTS, result_path, write_result

SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov")


def main(words: Sequence[str] | None = None) -> int:
    """Measure both, a table, JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as home:
        videos, seconds = _chosen(given, Path(home) / "videos")
        ways: dict[str, Callable[[Path, Path], int]] = {"vidssl pack": lambda where, to: _ours(where, to, given)}
        if shutil.which("ffmpeg"):
            ways["ffmpeg"] = lambda where, to: _ffmpeg(where, to, given)
        else:
            print("ffmpeg is not installed here: nothing to compare with")
        measured = _rounds(ways, Path(home), given.rounds)
    print(f"{videos} videos, {seconds:.0f} s of film, {given.size} px, {given.fps} frames/s, {given.rounds} rounds")
    print(f"{'':12} {'CPU-ms / s of film':>19} {'wall-ms / s':>12} {'kB / s':>8}")
    rows = {}
    for way, found in measured.items():
        cpu, wall = (statistics.median(one[at] for one in found) * 1e3 / seconds for at in (0, 1))
        rows[way] = {"cpu_ms": cpu, "wall_ms": wall, "kb": found[0][2] / 1e3 / seconds, "rounds": found}
        print(f"{way:12} {cpu:19.1f} {wall:12.1f} {rows[way]['kb']:8.1f}")
    if len(rows) == 2:
        ours, theirs = rows["vidssl pack"], rows["ffmpeg"]
        print(
            f"ratio        {ours['cpu_ms'] / theirs['cpu_ms']:19.2f} {ours['wall_ms'] / theirs['wall_ms']:12.2f} {ours['kb'] / theirs['kb']:8.2f}"
        )
    setting: dict[str, Any] = {
        "videos": videos,
        "seconds": seconds,
        "size": given.size,
        "fps": given.fps,
        "rounds": given.rounds,
    }
    write_result(result_path("packing", given.out), {"setting": setting, "ways": rows})
    return 0


def _chosen(given: argparse.Namespace, into: Path) -> tuple[int, float]:
    """A folder of links to some of the videos, and how long they are together."""
    import av

    found = sorted(path for folder in given.folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    into.mkdir()
    total, kept = 0.0, 0
    for number in np.random.default_rng(given.seed).permutation(len(found)).tolist():
        if kept == given.videos:
            break
        try:
            with av.open(str(found[number])) as container:
                seconds = (container.duration or 0) / 1e6
        except (OSError, ValueError):
            continue
        if seconds >= 1:
            (into / f"{kept:04d}{found[number].suffix}").symlink_to(found[number].resolve())
            total, kept = total + seconds, kept + 1
    if not kept:
        raise SystemExit(f"no video of a second or more in {', '.join(map(str, given.folders))}")
    return kept, total


def _rounds(
    ways: dict[str, Callable[[Path, Path], int]], home: Path, rounds: int
) -> dict[str, list[tuple[float, float, int]]]:
    """(CPU seconds, wall seconds, bytes) of each way in each round."""
    found: dict[str, list[tuple[float, float, int]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            out = home / "out"
            shutil.rmtree(out, ignore_errors=True)
            cpu, wall = _cpu(), time.perf_counter()
            size = run(home / "videos", out)
            found[way].append((_cpu() - cpu, time.perf_counter() - wall, size))
    return found


def _cpu() -> float:
    """CPU seconds of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ours(videos: Path, out: Path, given: argparse.Namespace) -> int:
    code = (
        "import sys; from pipelines.pack import PackOptions, pack; "
        "pack('folder', sys.argv[1], sys.argv[2], PackOptions(fps=float(sys.argv[3]), size=int(sys.argv[4])), workers=1)"
    )
    words = [sys.executable, "-c", code, str(videos), str(out), str(given.fps), str(given.size)]
    subprocess.run(words, check=True, capture_output=True)
    return sum(path.stat().st_size for path in out.rglob("*.tar"))


def _ffmpeg(videos: Path, out: Path, given: argparse.Namespace) -> int:
    out.mkdir()
    scale = f"scale='if(gt(iw,ih),-2,{given.size})':'if(gt(iw,ih),{given.size},-2)'"
    for path in sorted(videos.iterdir()):
        words = [
            "ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-an", "-vf", f"fps={given.fps},{scale}", "-c:v", "libx264",
            "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", "-x264-params",
            "keyint=16:min-keyint=16:scenecut=0:open-gop=0:bframes=0:threads=1", "-movflags", "frag_keyframe+empty_moov",
            str(out / f"{path.stem}.mp4"),
        ]  # fmt: skip
        subprocess.run(words, check=False, capture_output=True)  # what it cannot read is its loss: no file
    return sum(path.stat().st_size for path in out.iterdir())


if __name__ == "__main__":
    sys.exit(main())
