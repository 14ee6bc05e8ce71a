"""What does a clip cost beside other loaders? CPU-ms per clip of ours, SPDL, webdataset + torchcodec, OpenCV, PyAV, decord.

    python -m benchmarks.rivals VIDEOS [--sizes 128 240] [--clips 60] [--rounds 5] [--json FILE] [--plot FILE]

Films of ten seconds are joined from VIDEOS and kept at each size twice: as an ordinary film (x264 veryfast, GOP 250) and as
`vidssl pack` packs it. A clip is 16 frames, every second one, from a random place, a random crop of it at 112×112, flipped or
not, float32 and normalised. Each loader is a process of its own with one thread (those that are used with torch's DataLoader
have one worker process); rounds are interleaved, so that all meet the same machine. The number is CPU time of the process
and of its children, in ms per clip: median of the rounds, and the lowest and the highest. What is not installed is said and
left out. `--only NAME…` takes some rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.rivals_films import make_films
from benchmarks.rivals_loaders import LOADERS

__all__ = ["Row", "main", "measured"]


@dataclass
class Row:
    """One loader on one kind of films.

    Attributes:
        loader: Name.
        films: `orig` or `packed`.
        size: Short side in pixels.
        cpu_ms: Per clip, of each round.
    """

    loader: str
    films: str
    size: int
    cpu_ms: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """CPU-ms per clip."""
        return statistics.median(self.cpu_ms)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 240])
    parser.add_argument("--films", type=int, default=30)
    parser.add_argument("--clips", type=int, default=60, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=sorted(LOADERS))
    parser.add_argument("--folder", type=Path, help="where the films are made, and found again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        rows: list[Row] = []
        for size in args.sizes:
            make_films(args.videos, folder / str(size), size, args.films)
            rows += measured(folder / str(size), size, args.only or list(LOADERS), args.clips, args.rounds)
    if args.json:
        tree = {
            "setting": {name: str(value) for name, value in vars(args).items()},
            "rows": [asdict(one) for one in rows],
        }
        args.json.write_text(json.dumps(tree, indent=1) + "\n")
    if args.plot:
        _plot(rows, args.plot)


def measured(folder: Path, size: int, names: list[str], clips: int, rounds: int) -> list[Row]:
    """Every row of one size, printed as a table, the cheapest first."""
    running = [
        one for name in names for films in LOADERS[name].films if (one := _Worker.started(name, films, folder, size))
    ]
    for _ in range(rounds):
        for worker in running:
            worker.round(clips)
    for worker in running:
        worker.end()
    rows = sorted((worker.row for worker in running if worker.row.cpu_ms), key=lambda row: row.median)
    print(f"\n{size} px{'':30}films   CPU-ms/clip   lowest  highest")
    for row in rows:
        print(f"{row.loader:36}{row.films:8}{row.median:11.2f}{min(row.cpu_ms):9.2f}{max(row.cpu_ms):9.2f}", flush=True)
    _ratios(rows)
    return rows


def _ratios(rows: list[Row]) -> None:
    ours = [row.median for row in rows if row.loader.startswith("vidssl")]
    theirs = {row.loader: row.median for row in reversed(rows) if not row.loader.startswith("vidssl")}
    if ours and theirs:
        best = min(theirs, key=lambda name: theirs[name])
        said = f"ours {min(ours):.2f}: {min(ours) / theirs[best]:.2f} of the best rival ({best})"
        codec = [value for name, value in theirs.items() if "torchcodec" in name]
        print(said + (f", {min(ours) / min(codec):.2f} of webdataset + torchcodec" if codec else ""), flush=True)


class _Worker:
    """A loader in its own process, told when to make clips."""

    def __init__(self, process: subprocess.Popen[str], row: Row) -> None:
        self.process, self.row = process, row

    @classmethod
    def started(cls, name: str, films: str, folder: Path, size: int) -> _Worker | None:
        words = [sys.executable, "-m", "benchmarks.rivals_loaders", name, films, str(folder)]
        process = subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said == "ready":
            return cls(process, Row(name, films, size))
        print(f"left out: {name} on {films}: {said or 'it ended'}", flush=True)
        process.kill()
        process.wait()
        return None

    def round(self, clips: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{clips}\n")
        self.process.stdin.flush()
        self.row.cpu_ms.append(float(self.process.stdout.readline()))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:  # the threads of some loaders never end
            self.process.kill()
            self.process.wait()


def _plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({row.size for row in rows})
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(8 * len(sizes), 5), squeeze=False, layout="constrained")
    for axis, size in zip(axes[0], sizes, strict=True):
        shown = [row for row in rows if row.size == size][::-1]
        names = [f"{row.loader}, {row.films}" for row in shown]
        spread = [[row.median - min(row.cpu_ms) for row in shown], [max(row.cpu_ms) - row.median for row in shown]]
        colours = ["tab:blue" if row.loader.startswith("vidssl") else "tab:grey" for row in shown]
        axis.barh(names, [row.median for row in shown], xerr=spread, color=colours)
        axis.set_xlabel("CPU-ms per clip")
        axis.set_title(f"{size} px: median of rounds, lowest to highest")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
