"""Packed folders of a few generated videos, written without the packer, and an independent decoder as oracle."""

from __future__ import annotations

import io
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.dataset.flow import FlowForm
from pipelines.dataset.fmp4 import fragment_table
from pipelines.dataset.manifest import Manifest, Samples, Shard, load_manifest, write_manifest
from pipelines.dataset.shards import read_index, sealed_sample, with_flow, write_shard

GOP = 16
ENCODERS = {
    "h264": ("libx264", {"crf": "18", "preset": "veryfast", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0"}),
    "vp9": (
        "libvpx-vp9",
        {"crf": "20", "b": "0", "g": str(GOP), "keyint_min": str(GOP), "cpu-used": "8", "deadline": "realtime",
         "lag-in-frames": "0", "auto-alt-ref": "0"},
    ),
}  # fmt: skip

Painter = Callable[[int, int, int], np.ndarray]


def moving(seed: int) -> Painter:
    """Frames that all differ: smooth colours drifting over the picture."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)

    def paint(number: int, height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        waves = [128 + 100 * np.sin(0.06 * x + 0.04 * (k + 1) * y + 0.35 * number + phase[k]) for k in range(3)]
        return np.stack(waves, -1).astype(np.uint8)

    return paint


def still(colour: Sequence[int]) -> Painter:
    """One colour everywhere, always."""
    return lambda number, height, width: np.broadcast_to(np.uint8(colour), (height, width, 3)).copy()


def ramp(number: int, height: int, width: int) -> np.ndarray:
    """Grey level = 20 + x."""
    return np.repeat(np.broadcast_to(20 + np.arange(width), (height, width))[..., None], 3, -1).astype(np.uint8)


def encode(paint: Painter, frames: int, width: int, height: int, codec: str) -> bytes:
    name, options = ENCODERS[codec]
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
        stream = file.add_stream(name, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(number, height, width), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def whole_decode(video: bytes) -> np.ndarray:
    """Every frame through FFmpeg's own demuxer, uint8 [n, H, W, 3]."""
    with av.open(io.BytesIO(video)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def encode_luma(planes: Sequence[np.ndarray], codec: str) -> bytes:
    """Luma planes uint8 [H, W] as they are, without chroma: how flow is stored."""
    name, options = ENCODERS[codec]
    out = io.BytesIO()
    height, width = planes[0].shape
    with av.open(out, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
        stream = file.add_stream(name, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for number, plane in enumerate(planes):
            chroma = np.full((height // 2, width), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate([plane, chroma]), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def write_pack(
    root: Path,
    codec: str,
    videos: Sequence[bytes],
    sides: Sequence[tuple[int, int]],
    checked: bool = True,
    flows: Sequence[bytes] | None = None,
    form: FlowForm | None = None,
) -> Manifest:
    """Two shards; group = instance // 2, label = instance % 3."""
    root.mkdir(parents=True, exist_ok=True)
    n = len(videos)
    tables = [fragment_table(video) for video in videos]
    rows = [sealed_sample(i, videos[i], np.array([i, i // 2, i % 3]), b'{"key": "%08d"}' % i) for i in range(n)]
    if not checked:  # as before format 2
        rows = [replace(row, gop=table) for row, table in zip(rows, tables, strict=True)]
    if flows is not None:
        rows = [with_flow(row, flow, b"{}") for row, flow in zip(rows, flows, strict=True)]
    cut = math.ceil(n / 2)
    shards = []
    for number, part in enumerate((rows[:cut], rows[cut:])):
        path = root / f"shard-{number:05d}.tar"
        size, digest = write_shard(path, part)
        shards.append(Shard(path.name, size, len(part), digest))
    index = np.arange(n)
    samples = Samples(
        shard=(index >= cut).astype(np.int32),
        label=(index % 3).astype(np.int32),
        group=(index // 2).astype(np.int32),
        split=np.zeros(n, np.int8),
        frames=np.array([table[0] for table in tables], np.int32),
        width=np.array([side[0] for side in sides], np.int16),
        height=np.array([side[1] for side in sides], np.int16),
        name=np.array([f"videos/{i}.mp4" for i in range(n)]),
        crc=np.array([zlib.crc32(row.component("gop")) for row in rows], np.uint32) if checked else None,
        flow_crc=np.array([zlib.crc32(row.component("flow.gop")) for row in rows], np.uint32) if flows else None,
    )
    kind = ("a", "b", "c"), ("all",), tuple(shards), samples
    return write_manifest(Manifest(root, "", codec, 128, 25.0, GOP, *kind, groups=cut, flow=form))


LENGTHS = (5, 16, 33, 40, 47, 64, 21, 50)


def make_pack(root: Path, codec: str, painters: Sequence[Painter] | None = None, checked: bool = True) -> Manifest:
    """Eight videos of several lengths, lying and standing; not `checked`: as packs were before they had checksums."""
    painters = painters or [moving(i) for i in range(len(LENGTHS))]
    sides = [(170, 128) if i % 3 else (128, 160) for i in range(len(LENGTHS))]
    videos = [encode(painters[i], LENGTHS[i], *sides[i], codec) for i in range(len(LENGTHS))]
    return write_pack(root, codec, videos, sides, checked)


def stored_video(manifest: Manifest, instance: int) -> bytes:
    offset, size, path = place_of(manifest, instance)
    return path.read_bytes()[offset : offset + size]


def place_of(manifest: Manifest, instance: int) -> tuple[int, int, Path]:
    shard = int(manifest.samples.shard[instance])
    path = manifest.shard_path(shard)
    index = read_index(path)
    row = index.keys.index(f"{instance:08d}")
    return int(index.offset["mp4"][row]), int(index.size["mp4"][row]), path


def damaged_copy(manifest: Manifest, root: Path, instances: Sequence[int], where: str) -> Manifest:
    """A copy of a pack, same sizes, with some videos overwritten: their `head`, or the pictures in their `body`."""
    shutil.copytree(manifest.root, root)
    copy = load_manifest(root)
    for instance in instances:
        offset, _, path = place_of(copy, instance)
        video = bytearray(stored_video(copy, instance))
        if where == "head":
            video[:64] = bytes(64)
        else:
            at = video.find(b"mdat")
            while at >= 0:
                stop = at - 4 + int.from_bytes(video[at - 4 : at], "big")
                video[at + 4 : stop] = bytes(stop - at - 4)
                at = video.find(b"mdat", stop)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(video)
    return copy
