"""Are copies found, are scenes cut where they change, and what does a long source or a large folder take?

    python -m benchmarks.duplicates VIDEOS …              100 videos and five copies of each, among 500
    python -m benchmarks.duplicates VIDEOS --scenes        videos joined one after the other, and cut again
    python -m benchmarks.duplicates --hours 2              memory of the decoding process, sample by sample
    python -m benchmarks.duplicates --scale 300000         the search alone, on fingerprints drawn at random

VIDEOS are folders of videos that are no copies of one another: every pair that is found and was not made is a false one.
Copies are encoded again (x264 veryfast, crf 23; --crf 28 is coarser), scaled to 0.6 of the sides, cropped to 95 % of them at a random place, shortened by
a second at either end, and mirrored; only videos of at least 3 s are copied. All go through `vidssl pack … duplicates=siblings`.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from benchmarks.hardware import RESULTS, result_path, write_result
from pipelines.pack import PackOptions, pack
from pipelines.packing.copies import Prints, find_copies
from pipelines.packing.guard import Guard
from pipelines.packing.part import Cut, Part
from pipelines.packing.prints import NUMBERS
from pipelines.packing.survey import survey
from pipelines.packing.verdict import Target

SHORTEST = 3.0
Frames = list[NDArray[np.uint8]]


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--copied", type=int, default=100)
    parser.add_argument("--among", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--crf", type=int, default=23, help="of the copies")
    parser.add_argument("--scenes", action="store_true")
    parser.add_argument("--threshold", type=float, default=6.0)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--scale", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    if given.hours:
        result: dict[str, Any] = {"long": long_source(given.hours)}
    elif given.scale:
        result = {"scale": at_scale(given.scale, given.seed)}
    elif not given.videos:
        parser.error("no VIDEOS given")
    else:
        rng = np.random.default_rng(given.seed)
        paths = sorted(path for folder in given.videos for path in folder.rglob("*.mp4") if path.is_file())
        paths = [paths[at] for at in np.sort(rng.permutation(len(paths))[: given.among])]
        result = scenes(paths, rng, given.threshold) if given.scenes else copies(paths, given, rng)
    write_result(result_path("duplicates", given.out), result)
    return 0


def copies(paths: Sequence[Path], given: argparse.Namespace, rng: np.random.Generator) -> dict[str, Any]:
    """Make copies, pack all, hold what was found against what was made."""
    with tempfile.TemporaryDirectory() as home:
        made = make_copies(paths, Path(home) / "copies", given.copied, given.crf, rng)
        original = {str(path): number for number, path in enumerate(paths)}
        owner = original | {str(path): original[str(source)] for path, (source, _) in made.items()}
        table = Path(home) / "list.csv"
        with table.open("w", newline="") as stream:
            csv.writer(stream).writerows([["path"], *([name] for name in owner)])
        begin = time.perf_counter()
        packed = pack(
            "csv", table, Path(home) / "packed", PackOptions(duplicates="siblings"), workers=given.workers, watch=None
        )
        seconds = time.perf_counter() - begin
    group = dict(zip(packed.samples.name.tolist(), packed.samples.group.tolist(), strict=True))
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        of_kind = [(path, source) for path, (source, what) in made.items() if what == kind and str(path) in group]
        found = sum(group[str(path)] == group[str(source)] for path, source in of_kind)
        rows.append({"kind": kind, "copies": len(of_kind), "found": found})
        print(f"{kind:10s} {found:4d} of {len(of_kind)}")
    pairs = _pairs(group, owner)
    print(f"recall {sum(r['found'] for r in rows) / sum(r['copies'] for r in rows):.3f}")
    print(f"pairs in one group: {pairs['pairs']}, of them false {pairs['false']}: precision {pairs['precision']:.4f}")
    for line in pairs["between"]:
        print("  found, and not made:", line)
    return {"crf": given.crf, "rows": rows, **pairs, "seconds": seconds, "videos": len(owner)}


def _pairs(group: dict[str, int], owner: dict[str, int]) -> dict[str, Any]:
    """Pairs that lie in one group, and those of them that were not made."""
    members: dict[int, list[str]] = {}
    for name, number in group.items():
        members.setdefault(number, []).append(name)
    pairs = [(a, b) for names in members.values() for at, a in enumerate(names) for b in names[:at]]
    false = [(a, b) for a, b in pairs if owner[a] != owner[b]]
    short = {number: Path(name).name for name, number in reversed(owner.items())}
    between = sorted({" and ".join(sorted((short[owner[a]], short[owner[b]]))) for a, b in false})
    precision = 1 - len(false) / max(len(pairs), 1)
    return {"pairs": len(pairs), "false": len(false), "precision": precision, "between": between}


KINDS: dict[str, Callable[[Frames, Fraction, np.random.Generator], Frames]] = {
    "re-encoded": lambda frames, rate, rng: frames,
    "scaled": lambda frames, rate, rng: [_scaled(frame, 0.6) for frame in frames],
    "cropped": lambda frames, rate, rng: _cropped(frames, 0.95, rng),
    "shortened": lambda frames, rate, rng: frames[round(rate) :] if rng.integers(2) else frames[: -round(rate)],
    "mirrored": lambda frames, rate, rng: [frame[:, ::-1] for frame in frames],
}


def make_copies(
    paths: Sequence[Path], folder: Path, count: int, crf: int, rng: np.random.Generator
) -> dict[Path, tuple[Path, str]]:
    """Five copies of each of `count` videos: path → (original, kind)."""
    made: dict[Path, tuple[Path, str]] = {}
    copied = 0
    for number in rng.permutation(len(paths)).tolist():
        frames, rate = read(paths[number])
        if copied == count:
            break
        if len(frames) / rate < SHORTEST:
            continue
        copied += 1
        for kind, change in KINDS.items():
            path = folder / kind / f"{number:05d}.mp4"
            write(path, change(frames, rate, rng), rate, crf=crf)
            made[path] = (paths[number], kind)
    return made


def scenes(paths: Sequence[Path], rng: np.random.Generator, threshold: float) -> dict[str, Any]:
    """Videos joined in random order, three seconds of each, and where `cut=scenes` cuts them."""
    counts = np.zeros(3, int)
    order = rng.permutation(len(paths)).tolist()
    with tempfile.TemporaryDirectory() as home:
        for first in range(0, len(order) - 1, 20):
            joined: Frames = []
            true: list[float] = []
            for number in order[first : first + 20]:
                frames = read(paths[number], most=75)[0]
                if len(frames) >= 25:
                    true += [len(joined) / 25] if joined else []
                    joined += [_to_size(frame, 320, 240) for frame in frames]
            path = Path(home) / "joined.mp4"
            write(path, joined, Fraction(25), crf=20)
            found = survey(str(path), "joined", Cut(None, 1.0, threshold), lambda: None).bounds[1:-1]
            hits = sum(any(abs(one - other) <= 0.04 for other in found) for one in true)
            counts += (hits, len(found), len(true))
    hits, found, wanted = counts.tolist()
    f1 = 2 * hits / max(found + wanted, 1)
    print(f"{wanted} changes of scene, {found} found, {hits} of them right: F1 {f1:.3f} (cut_threshold={threshold:g})")
    return {"scenes": {"changes": wanted, "found": found, "right": hits, "f1": f1, "threshold": threshold}}


def long_source(hours: float) -> list[dict[str, Any]]:
    """Memory of the child that looks where a long source is cut, then packs clips of it from its beginning to its end."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "long.mp4"
        write(path, _endless(hours), Fraction(25), crf=30)
        for word, cut in (("10s", Cut(10.0, 1.0, 6.0)), ("scenes", Cut(None, 1.0, 6.0))):
            with Guard(Target()) as guard, _Watched(guard) as memory:
                begin = time.perf_counter()
                found = guard.bounds_of(str(path), "long", Part(), cut)
                looked = time.perf_counter() - begin
                row = {
                    "cut": word,
                    "hours": hours,
                    "clips": len(found.bounds) - 1,
                    "look_s": looked,
                    "look_mb": memory.peak,
                }
                if cut.every is not None:
                    starts = np.linspace(0, len(found.bounds) - 2, 40).astype(int)
                    times = []
                    for at in starts.tolist():
                        begin = time.perf_counter()
                        guard.run(str(path), "clip", Part(found.bounds[at], found.bounds[at + 1]))
                        times.append(time.perf_counter() - begin)
                    row |= {"clip_s": [float(np.mean(times[:10])), float(np.mean(times[-10:]))], "pack_mb": memory.peak}
            rows.append(row)
            print(row)
    return rows


class _Watched:
    """The largest resident memory of a guard's child, megabytes."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._stop, self.peak = guard, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            process = cast(Any, self._guard)._process
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (AttributeError, OSError, IndexError):
                continue
            self.peak = max(self.peak, pages * resource.getpagesize() / 1e6)


def at_scale(count: int, seed: int) -> dict[str, Any]:
    """The search on random fingerprints of ten seconds; a hundredth of them are copies."""
    rng = np.random.default_rng(seed)
    spectrum = (20 / (1 + np.arange(NUMBERS) / 4)).astype(np.float32)
    prints = []
    for _ in range(count - count // 100):
        motion = np.cumsum(rng.normal(0, 0.15, (40, NUMBERS)).astype(np.float32), 0)
        prints.append(np.rint((rng.normal(0, 1, NUMBERS) + motion) * spectrum * 64).astype(np.int16))
    prints += [
        np.clip(one[4:] + rng.integers(-12, 13, (36, NUMBERS)), -32768, 32767).astype(np.int16)
        for one in prints[: count // 100]
    ]
    begin = time.process_time()
    all_prints = Prints(prints)
    del prints
    found = find_copies(all_prints, range(count))
    seconds = time.process_time() - begin
    wanted = {(at, count - count // 100 + at) for at in range(count // 100)}
    right = len(wanted & {(pair.first, pair.second) for pair in found})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {
        "videos": count,
        "cpu_s": seconds,
        "found": len(found),
        "right": right,
        "wanted": len(wanted),
        "peak_gb": peak,
    }
    print(row)
    return row


def read(path: Path, most: int | None = None) -> tuple[Frames, Fraction]:
    """All frames, rgb24, and their rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = []
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == most:
                break
        return frames, Fraction(stream.average_rate or 25).limit_denominator(1000)


def write(
    path: Path, frames: Sequence[NDArray[np.uint8]] | Iterator[NDArray[np.uint8]], rate: Fraction, crf: int
) -> None:
    """H.264; sides are made even."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = cast(
            VideoStream, container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        )
        for number, picture in enumerate(frames):
            height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _endless(hours: float) -> Iterator[NDArray[np.uint8]]:
    """A small picture that drifts, and is another one every 20 seconds."""
    y, x = np.mgrid[:96, :128]
    for number in range(int(hours * 3600 * 25)):
        scene = np.random.default_rng(number // 500).uniform(0.02, 0.2, 3)
        wave = 128 + 100 * np.sin(scene[0] * x + scene[1] * y + scene[2] + 0.02 * number)
        yield np.repeat(wave[..., None], 3, -1).astype(np.uint8)


def _scaled(picture: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    return _to_size(picture, int(width * share) // 2 * 2, int(height * share) // 2 * 2)


def _to_size(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(width, height).to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _cropped(frames: Frames, share: float, rng: np.random.Generator) -> Frames:
    height, width = frames[0].shape[:2]
    y, x = (int(rng.integers(int(side * (1 - share)) + 1)) for side in (height, width))
    return [frame[y : y + int(height * share), x : x + int(width * share)] for frame in frames]


if __name__ == "__main__":
    sys.exit(main())
