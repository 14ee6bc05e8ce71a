"""What does a store cost a loader? Batches/s from a folder, and from a web server that takes its time over every answer.

    python -m benchmarks.stores PACKED [--latency-ms 30] [--prefetch 4] [--reads 16] [--batches 24] [--rounds 3] [--json FILE]
    python -m benchmarks.stores serve FOLDER [--port 0] [--latency-ms 0] [--cut 0]      # the server alone; prints its port

The server is a process of its own on loopback; it waits before it answers and, with `--cut N`, breaks off one answer in N. The
rounds of the kinds of reading take turns, and the best of each counts: other work on the machine can only make one slower.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:  # a server starts without them
    from vidssl.recipe import Loader


class Ranges(BaseHTTPRequestHandler):
    """Files of a folder, whole or in parts.

    Args:
        folder: Which.
        latency_s: Seconds before an answer.
        cut: One answer in so many breaks off half-way; 0: none.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answers = count(1)

    def __init__(self, *given: Any, folder: Path, latency_s: float, cut: int) -> None:
        self.folder, self.latency_s, self.cut = folder, latency_s, cut
        super().__init__(*given)

    def do_HEAD(self) -> None:
        """The size of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """A file, or the part that the header `Range` asks for."""
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _answer(self, body: bool) -> None:
        time.sleep(self.latency_s)
        path = self.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        stop = min(int(asked[2]) + 1, size) if asked and asked[2] else size
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - begin))
        self.send_header("ETag", f'"{size}"')
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        if not body:
            return
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(stop - begin)
        if self.cut and next(self.answers) % self.cut == 0:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)


def serve(folder: Path, port: int, latency_s: float, cut: int) -> None:
    """Answer until the end of the process; the first line of stdout is the port."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", port), partial(Ranges, folder=folder, latency_s=latency_s, cut=cut))
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def served(folder: Path, latency_ms: float = 0.0, cut: int = 0, port: int = 0) -> Iterator[tuple[int, Any]]:
    """A server of a folder as a process: its port and the process, which is ended with the block."""
    words = ["serve", str(folder), "--port", str(port), "--latency-ms", str(latency_ms), "--cut", str(cut)]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.stores", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: Which way of reading.
        batches_per_s: Of the best round.
        share: Of the folder's rate.
        retries: Of all rounds.
    """

    what: str
    batches_per_s: float
    share: float
    retries: int


def measured(args: argparse.Namespace, kinds: dict[str, tuple[str, Loader]]) -> list[Row]:
    """The best rate of each kind of reading; a round of each in turn, every round from the first epoch's first batch."""
    best, retries = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
    for _ in range(args.rounds):
        for what, (place, loader) in kinds.items():
            rate, again = _round(args, place, loader)
            best[what], retries[what] = max(best[what], rate), retries[what] + again
    base = best["folder"]
    return [Row(what, rate, rate / base, retries[what]) for what, rate in best.items()]


def _round(args: argparse.Namespace, place: str, section: Loader) -> tuple[float, int]:
    import torch

    from pipelines.dataset.manifest import load_manifest
    from pipelines.loader import LoaderSpec, TrainLoader
    from vidssl.recipe import Augment, Clips

    clips = Clips(frames=args.frames, stride=args.stride, size=args.size, per_video=2)
    spec = LoaderSpec(clips, Augment(), section, ("rgb",), args.batch, 0)
    loader = TrainLoader(load_manifest(place), spec, rank=0, world=1, device=torch.device("cpu"))
    for _ in range(section.prefetch + 2):  # what was made ahead while nobody waited is not counted
        loader.next()
    began = time.perf_counter()
    for _ in range(args.batches):
        loader.next()
    seconds = time.perf_counter() - began
    loader.close()
    return args.batches / seconds, loader.meter.disk.retries


def _kinds(args: argparse.Namespace, address: str, cache: str) -> dict[str, tuple[str, Loader]]:
    from vidssl.recipe import Loader

    far: dict[str, Any] = {"decode": "py", "threads": args.threads, "prefetch": args.prefetch, "reads": args.reads}
    return {
        "folder": (str(args.packed), Loader(**far)),
        "store": (address, Loader(**far)),
        "store, one question at a time": (address, Loader(**{**far, "reads": 1})),
        "store, from the cache": (address, Loader(**{**far, "cache": cache})),
    }


def main() -> None:
    """Measure, print, write; or serve."""
    if sys.argv[1:2] == ["serve"]:
        args = _server_arguments().parse_args(sys.argv[2:])
        serve(args.folder.resolve(), args.port, args.latency_ms / 1e3, args.cut)
        return
    args = _arguments().parse_args()
    with served(args.packed.resolve(), args.latency_ms) as (port, _), tempfile.TemporaryDirectory() as cache:
        rows = measured(args, _kinds(args, f"http://127.0.0.1:{port}", cache))
    print(f"{'what':32} {'batches/s':>9} {'share':>6} {'retries':>7}")
    for row in rows:
        print(f"{row.what:32} {row.batches_per_s:9.2f} {row.share:6.1%} {row.retries:7}")
    if args.json:
        setting = {name: str(value) for name, value in vars(args).items()}
        args.json.write_text(json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def _server_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="a slow web server of a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--cut", type=int, default=0, help="one answer in so many breaks off; 0: none")
    return parser


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="batches/s from a folder and from a store")
    parser.add_argument("packed", type=Path)
    parser.add_argument("--latency-ms", type=float, default=30.0, help="before every answer of the store")
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--reads", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="decode threads")
    parser.add_argument("--batch", type=int, default=16, help="videos of a batch, two clips each")
    parser.add_argument("--batches", type=int, default=24, help="timed ones of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
