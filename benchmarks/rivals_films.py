"""The films that `benchmarks.rivals` reads: ordinary ones, and the same ones packed, as files and in tars."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import av
from webdataset.writer import TarWriter

from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.reader import ShardReader

__all__ = ["FRAMES", "make_films"]

FRAMES = 250
RATE = Fraction(25)


def make_films(videos: Path, folder: Path, size: int, films: int) -> None:
    """`folder/{orig,packed}/NN.mp4`, `folder/{orig,packed}.tar` and the packed folder `folder/pack`; made once.

    Args:
        videos: Any folder of videos; their frames are joined to films of 250.
        folder: Where to.
        size: Short side in pixels of both kinds.
        films: How many.
    """
    if (folder / "done").is_file():
        return
    for kind in ("joined", "orig", "packed"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, frames in zip(range(films), _films(videos), strict=False):
        name = f"{number:03}.mp4"
        _write(folder / "joined" / name, frames, size, {"crf": "12", "preset": "veryfast", "g": "250"})
        _write(folder / "orig" / name, frames, size, {"crf": "23", "preset": "veryfast", "g": "250"})
    words = [
        sys.executable,
        "-m",
        "cluster",
        "pack",
        "folder",
        str(folder / "joined"),
        str(folder / "pack"),
        f"size={size}",
    ]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    reader = ShardReader(load_manifest(folder / "pack"))
    for instance in range(len(reader.manifest)):
        (folder / "packed" / f"{instance:03}.mp4").write_bytes(reader.read(instance)[0].tobytes())
    for kind in ("orig", "packed"):
        with TarWriter(str(folder / f"{kind}.tar")) as tar:
            for path in sorted((folder / kind).iterdir()):
                tar.write({"__key__": path.stem, "mp4": path.read_bytes()})
    (folder / "done").touch()


def _films(videos: Path) -> Iterator[list[av.VideoFrame]]:
    files = sorted(path for path in videos.rglob("*") if path.suffix in (".mp4", ".avi", ".webm", ".mkv"))
    film: list[av.VideoFrame] = []
    for path in cycle(files):
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                film.append(frame)
                if len(film) == FRAMES:
                    yield film
                    film = []


def _write(path: Path, frames: list[av.VideoFrame], size: int, options: dict[str, str]) -> None:
    first = frames[0]
    scale = size / min(first.width, first.height)
    width, height = (2 * round(side * scale / 2) for side in (first.width, first.height))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(frames):
            small = frame.reformat(width, height, format="yuv420p", interpolation="BICUBIC")
            small.pts, small.time_base = number, 1 / RATE
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
