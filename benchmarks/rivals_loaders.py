"""One loader in a process of its own: reads how many clips to make from standard input, says what each of them cost.

    python -m benchmarks.rivals_loaders NAME {orig|packed} FOLDER

Every rival does what its users would write for the job: seek, decode, crop, resize, flip, normalise.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from benchmarks.rivals_films import FRAMES

__all__ = ["LOADERS", "Loader"]

T, STRIDE, SIZE = 16, 2, 112
SPAN = (T - 1) * STRIDE + 1
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255

Clips = Iterator[int]
"""Number of clips in each batch that was made."""


@dataclass(frozen=True)
class Loader:
    """A loader of the table: (folder, kind of films) → endless batches, and the kinds it can read."""

    make: Callable[[Path, str], Clips]
    films: tuple[str, ...] = ("packed", "orig")


@dataclass(frozen=True)
class Draw:
    """One clip: which frames, which crop (top, left, height, width in shares of the frame), mirrored or not."""

    start: int
    crop: tuple[float, float, float, float]
    flip: bool

    @classmethod
    def of(cls, chance: np.random.Generator) -> Draw:
        """Area .5 … 1, aspect 3/4 … 4/3 of the frame's own."""
        area, aspect = chance.uniform(0.5, 1), chance.uniform(3 / 4, 4 / 3)
        high, wide = min(np.sqrt(area / aspect), 1.0), min(np.sqrt(area * aspect), 1.0)
        top, left = chance.uniform(0, 1 - high), chance.uniform(0, 1 - wide)
        return cls(int(chance.integers(0, FRAMES - SPAN + 1)), (top, left, high, wide), bool(chance.random() < 0.5))

    @property
    def numbers(self) -> list[int]:
        """Source frames."""
        return list(range(self.start, self.start + SPAN, STRIDE))

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        top, left, high, wide = self.crop
        return int(top * height), int(left * width), max(int(high * height), 1), max(int(wide * width), 1)


def finished(frames_THWC: torch.Tensor, draw: Draw) -> torch.Tensor:
    """uint8 frames → float32 [C, T, 112, 112], as torchvision's functions on bytes do it."""
    top, left, high, wide = draw.pixels(*frames_THWC.shape[1:3])
    part = frames_THWC[:, top : top + high, left : left + wide].permute(0, 3, 1, 2)
    small = interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)
    small = small.flip(3) if draw.flip else small
    return ((small.float() - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)).permute(1, 0, 2, 3).contiguous()


class OneByOne(torch.utils.data.IterableDataset[torch.Tensor]):
    """Clips of a folder's films in random order, decoded by a function of the film and the frame numbers."""

    def __init__(
        self, folder: Path, kind: str, decode: Callable[[Any, list[int]], torch.Tensor], in_tar: bool = False
    ) -> None:
        self.folder, self.kind, self.decode, self.in_tar = folder, kind, decode, in_tar

    def __iter__(self) -> Iterator[torch.Tensor]:
        torch.set_num_threads(1)
        chance = np.random.default_rng(0)
        for film in self._tar() if self.in_tar else self._files(chance):
            draw = Draw.of(chance)
            yield finished(self.decode(film, draw.numbers), draw)

    def _files(self, chance: np.random.Generator) -> Iterator[str]:
        paths = sorted(map(str, (self.folder / self.kind).iterdir()))
        while True:
            yield from chance.permutation(paths).tolist()

    def _tar(self) -> Iterator[bytes]:
        from webdataset.compat import WebDataset

        films: Any = WebDataset(str(self.folder / f"{self.kind}.tar"), shardshuffle=False, empty_check=False)
        for sample in films.shuffle(20).repeat():
            yield sample["mp4"]


def with_worker(decode: Callable[[Any, list[int]], torch.Tensor], in_tar: bool = False) -> Callable[[Path, str], Clips]:
    """Torch's DataLoader with one worker process."""

    def made(folder: Path, kind: str) -> Clips:
        data = OneByOne(folder, kind, decode, in_tar)
        for batch in torch.utils.data.DataLoader(data, batch_size=10, num_workers=1, prefetch_factor=2):
            yield len(batch)

    return made


def by_opencv(path: str, numbers: list[int]) -> torch.Tensor:
    """Seek to the first frame, grab what is skipped, retrieve what is wanted."""
    import cv2

    cv2.setNumThreads(1)
    film = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    film.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    frames: list[Any] = []
    for number in range(numbers[0], numbers[-1] + 1):
        assert film.grab()
        if number in numbers:
            frames.append(cv2.cvtColor(film.retrieve()[1], cv2.COLOR_BGR2RGB))
    film.release()
    return torch.from_numpy(np.stack(frames))


def by_pyav(path: str, numbers: list[int]) -> torch.Tensor:
    """Seek to the key frame before, decode on, convert what is wanted."""
    import av

    wanted = set(numbers)
    frames: list[Any] = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        tick = 1 / (25 * stream.time_base)
        container.seek(int(numbers[0] * tick), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts / tick) if frame.pts is not None else -1
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(numbers):
                break
    return torch.from_numpy(np.stack(frames))


def by_decord(path: str, numbers: list[int]) -> torch.Tensor:
    """`get_batch` of a reader with one thread."""
    import decord  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(decord.VideoReader(path, num_threads=1).get_batch(numbers).asnumpy())


def by_torchcodec(mode: str) -> Callable[[bytes, list[int]], torch.Tensor]:
    """`get_frames_at` of a decoder over the bytes of a tar's member."""

    def decode(film: bytes, numbers: list[int]) -> torch.Tensor:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        decoder = VideoDecoder(film, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
        return decoder.get_frames_at(numbers).data

    return decode


def by_spdl(folder: Path, kind: str) -> Clips:
    """A pipeline of one thread; crop, resize and flip inside FFmpeg's filters, as its examples do."""
    import spdl.io as sio  # pyright: ignore[reportMissingImports]
    from spdl.pipeline import PipelineBuilder  # pyright: ignore[reportMissingImports]

    chance = np.random.default_rng(0)
    paths = sorted((folder / kind).iterdir())
    sides = _sides(paths[0])

    def jobs() -> Iterator[tuple[str, Draw]]:
        while True:
            for place in chance.permutation(len(paths)):
                yield str(paths[place]), Draw.of(chance)

    def clip(job: tuple[str, Draw]) -> torch.Tensor:
        path, draw = job
        window = (max((draw.start - 0.5) / 25, 0.0), (draw.start + SPAN - 0.5) / 25)
        top, left, high, wide = draw.pixels(*sides)
        steps = [
            f"trim=start={window[0]}:end={window[1]}", f"select='not(mod(n\\,{STRIDE}))'", f"crop={wide}:{high}:{left}:{top}",
            f"scale={SIZE}:{SIZE}:flags=bilinear", *(["hflip"] if draw.flip else []), "format=pix_fmts=rgb24",
        ]  # fmt: skip
        packets = sio.demux_video(path, timestamp=window)
        frames = sio.to_torch(sio.convert_frames(sio.decode_packets(packets, filter_desc=",".join(steps))))
        assert frames.shape == (T, SIZE, SIZE, 3), frames.shape
        return ((frames.float() - MEAN) / STD).permute(3, 0, 1, 2).contiguous()

    clip(
        (str(paths[0]), Draw.of(chance))
    )  # what is wrong here would be logged and skipped, clip by clip, in the pipeline
    builder = PipelineBuilder().add_source(jobs()).pipe(clip, concurrency=1).aggregate(10).pipe(torch.stack)
    pipeline = builder.add_sink(2).build(num_threads=1)
    with pipeline.auto_stop():
        for batch in pipeline.get_iterator():
            yield len(batch)


def _sides(path: Path) -> tuple[int, int]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


def ours(per_video: int) -> Callable[[Path, str], Clips]:
    """The training loader, preset `light`, one thread."""

    def made(folder: Path, kind: str) -> Clips:
        from pipelines.dataset.manifest import load_manifest
        from pipelines.loader import LoaderSpec, TrainLoader
        from vidssl.recipe import Augment
        from vidssl.recipe import Clips as Form
        from vidssl.recipe import Loader as Settings

        spec = LoaderSpec(
            Form(frames=T, stride=STRIDE, size=SIZE, per_video=per_video), Augment(preset="light"), Settings(threads=1),
            ("rgb",), 10 // per_video, 0,
        )  # fmt: skip
        loader = TrainLoader(load_manifest(folder / "pack"), spec, rank=0, world=1, device=torch.device("cpu"))
        for batch in loader:
            yield batch.clips["rgb"].shape[0] * per_video

    return made


LOADERS: dict[str, Loader] = {
    "vidssl": Loader(ours(1), ("packed",)),
    "vidssl, two clips of a video": Loader(ours(2), ("packed",)),
    "SPDL": Loader(by_spdl),
    "webdataset + torchcodec": Loader(with_worker(by_torchcodec("exact"), in_tar=True)),
    "webdataset + torchcodec, approximate": Loader(with_worker(by_torchcodec("approximate"), in_tar=True)),
    "OpenCV + DataLoader": Loader(with_worker(by_opencv)),
    "PyAV + DataLoader": Loader(with_worker(by_pyav)),
    "decord + DataLoader": Loader(with_worker(by_decord)),
}


def cpu_seconds() -> float:
    """Of this process and of all its living children."""
    ticks, me = os.sysconf("SC_CLK_TCK"), os.getpid()
    total = 0.0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(folder.name) == me or int(text[1]) == me:
                total += (int(text[11]) + int(text[12])) / ticks
    return total


def settled() -> float:
    """CPU seconds when everything that is made ahead has been made, so that a round counts as many clips as it takes."""
    last = cpu_seconds()
    while True:
        time.sleep(0.3)
        now = cpu_seconds()
        if now - last < 0.03:  # looking costs a little itself
            return now
        last = now


def main() -> None:
    """Serve rounds until standard input ends."""
    name, kind, folder = sys.argv[1:]
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        clips = LOADERS[name].make(Path(folder), kind)
        for _ in range(4):
            next(clips)
    except Exception as error:  # whatever it is, the row is left out with it
        print(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}", file=answers, flush=True)
        os._exit(1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        wanted, made, before = int(line), 0, settled()
        while made < wanted:
            made += next(clips)
        print(1e3 * (settled() - before) / made, file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
