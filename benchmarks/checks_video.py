"""NVDEC through DALI: is it there, is it exact, what does it take, what does it cost? And hardware optical flow."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.checking import Note, Setting, settle
from benchmarks.decoding import Packed, Window, decode_graph, decoded_alone, packed_video

__all__ = [
    "decode_exact",
    "decode_many_sizes",
    "decode_python",
    "decode_recovery",
    "decode_sizes",
    "decode_slices",
    "decode_threads",
    "nvdec",
    "optical_flow",
]

SIDE = (170, 128)
THREADS = (1, 2, 4, 7, 8, 14)
MEAN_TOLERANCE = 3.0
"""Grey levels: chroma upsampling and rounding differ between decoders, a wrong frame differs by far more."""


def nvdec(setting: Setting, note: Note) -> None:
    """One clip of each codec through DALI's decoder on the device.

    Raises:
        RuntimeError: no codec decodes.
    """
    worked = []
    for codec in _codecs(setting):
        try:
            clips = _frames(decode_graph([packed_video(0, codec, *SIDE, 48)], [3], Window(), setting, 2))
        except RuntimeError as error:
            note(codec, _last(error))
            continue
        worked.append(codec)
        note(codec, f"decodes, clip {list(clips[0].shape)}")
    if not worked:
        raise RuntimeError(f"nothing decodes: {note.found}")


def decode_exact(setting: Setting, note: Note) -> None:
    """Windows at many starts against PyAV: the mean difference is small, and no neighbouring frame fits better.

    Raises:
        RuntimeError: a wrong frame, or pixels further off than rounding explains.
    """
    length = 60 if setting.small else 150
    window = Window(8, 3)
    for codec in _codecs(setting):
        video = packed_video(1, codec, *SIDE, length)
        whole = decoded_alone(video).astype(np.int16)
        starts = [0, 1, 15, 16, 17, 31, 33, length - window.span, length - 5]
        clips = _frames(decode_graph([video] * len(starts), starts, window, setting, 4))
        shifts, means, worst = [], [], 0
        for start, clip in zip(starts, clips, strict=True):
            for t, frame in enumerate(clip):
                wanted = min(start + t * window.stride, length - 1)  # pad_mode="edge"
                near = [n for n in range(wanted - 2, wanted + 3) if 0 <= n < length]
                means_near = [float(np.abs(frame - whole[n]).mean()) for n in near]
                shifts.append(near[int(np.argmin(means_near))] - wanted)
                means.append(means_near[near.index(wanted)])
                worst = max(worst, int(np.abs(frame - whole[wanted]).max()))
        note(
            codec,
            {"frames": len(means), "mean": np.mean(means).item(), "worst_frame": max(means), "worst_pixel": worst},
        )
        if any(shifts) or max(means) > MEAN_TOLERANCE:
            raise RuntimeError(
                f"{codec}: {np.count_nonzero(shifts)} wrong frames, worst mean difference {max(means):.2f}"
            )


def decode_sizes(setting: Setting, note: Note) -> None:
    """Square frames from large to small until the decoder refuses; what it says then is noted."""
    for codec in _codecs(setting):
        for side in (256, 128, 96, 64, 48, 32, 16):
            try:
                _frames(decode_graph([packed_video(2, codec, side, side, 32)], [0], Window(), setting, 1))
                note(f"{codec} {side}", "decodes")
            except RuntimeError as error:
                note(f"{codec} {side}", _last(error))


def decode_recovery(setting: Setting, note: Note) -> None:
    """A batch with one broken video: does it fail, does the same pipeline go on, does a fresh one?

    Raises:
        RuntimeError: even a fresh pipeline does not decode any more.
    """
    codec = _codecs(setting)[-1]
    good, starts = packed_video(3, codec, *SIDE, 48), [0, 0, 5]
    for kind, data in _broken(good).items():
        bad = Packed(data, good.table, good.frames)
        pipeline = decode_graph([good] * 3, starts, Window(), setting, 2, first=[good, bad, good])
        note(kind, {"batch": _tried(pipeline), "next_run": _tried(pipeline)})
        fresh = _tried(decode_graph([good] * 3, starts, Window(), setting, 2))
        if fresh != "decodes":
            raise RuntimeError(f"after {kind} a fresh pipeline fails: {fresh}")
    note("fresh_pipeline_after_each", "decodes")


def decode_threads(setting: Setting, note: Note) -> None:
    """Clips/s by `num_threads` (an H200 has 7 NVDEC engines; more threads are said not to help)."""
    for codec in _codecs(setting):
        videos = _many(setting, codec)
        for threads in (1, 2) if setting.small else THREADS:
            note(f"{codec} threads={threads}", _rate(videos, setting, threads))


def decode_slices(setting: Setting, note: Note) -> None:
    """Clips/s with and without cutting a window's fragments, by GOP, at 128 and 256 pixels."""
    codec = _codecs(setting)[0]
    for height in (128,) if setting.small else (128, 256):
        for gop in (16,) if setting.small else (8, 16, 32):
            videos = _many(setting, codec, (height * 4 // 3 // 2 * 2, height), gop)
            for slicing in (True, False):
                rate = _rate(videos, setting, 2 if setting.small else 7, slicing)
                note(f"{height}px gop={gop} {'cut' if slicing else 'whole'}", rate)
            note(
                f"{height}px gop={gop} bytes_per_frame",
                sum(len(one.data) for one in videos) / sum(one.frames for one in videos),
            )


def decode_many_sizes(setting: Setting, note: Note) -> None:
    """Clips/s of one frame size against as many sizes as videos (DALI keeps decoders by codec and size)."""
    codec = _codecs(setting)[0]
    count, length = (3, 48) if setting.small else (64, 150)
    mixed = [packed_video(i, codec, 128 + 2 * i, 128, length) for i in range(count)]
    same = [packed_video(i, codec, *SIDE, length) for i in range(count)]
    threads = 2 if setting.small else 7
    note("sizes", count)
    note("one_size", _rate(same, setting, threads))
    note("many_sizes", _rate(mixed, setting, threads))


def decode_python(setting: Setting, note: Note) -> None:
    """Clips/s of the `py` decoder by threads: what NVDEC has to beat with this machine's cores."""
    from pipelines.loading.decode import decode_clips

    window = Window()
    for codec in ("h264", "vp9"):
        videos = _many(setting, codec)
        starts = _starts(videos, window)
        jobs = list(zip(videos, starts, strict=True)) * (1 if setting.small else 4)
        for threads in (1, 2) if setting.small else sorted({*THREADS, os.cpu_count() or 1}):
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                list(
                    pool.map(
                        lambda job: decode_clips(job[0].data, job[0].table, [job[1]], window.frames, window.stride),
                        jobs,
                    )
                )
                note(f"{codec} threads={threads}", len(jobs) / (time.perf_counter() - began))


def optical_flow(setting: Setting, note: Note) -> None:
    """Vectors of a texture that moves by (3, 1) pixels a frame: median error and ms per pair for each grid.

    Raises:
        RuntimeError: no grid finds the shift to within half a pixel.
    """
    setting.need_gpu("hardware optical flow")
    errors = []
    for side in (128, 256):
        clip = _moving_texture(side, 16)
        for grid in (1, 2, 4):
            try:
                flow, milliseconds = _hardware_flow(clip, grid)
            except RuntimeError as error:
                note(f"{side}px grid={grid}", _last(error))
                continue
            error = float(np.linalg.norm(np.median(flow, axis=(0, 1, 2)) - np.array([3.0, 1.0])))
            errors.append(error)
            note(f"{side}px grid={grid}", {"shape": list(flow.shape), "error_px": error, "ms_per_pair": milliseconds})
    if not errors or min(errors) > 0.5:
        raise RuntimeError(f"the known shift is not found, errors {errors}")


def _codecs(setting: Setting) -> tuple[str, ...]:
    return ("h264", "vp9") if setting.on_gpu else ("vp9",)  # DALI decodes no H.264 on a CPU


def _many(setting: Setting, codec: str, size: tuple[int, int] = SIDE, gop: int = 16) -> list[Packed]:
    """A batch of 64 clips from 16 videos (3 in a rehearsal)."""
    distinct, batch, length = (3, 3, 48) if setting.small else (16, 64, 150)
    return [packed_video(i % distinct, codec, *size, length, gop) for i in range(batch)]


def _starts(videos: Sequence[Packed], window: Window) -> list[int]:
    rng = np.random.default_rng(0)
    return [int(rng.integers(one.frames - window.span + 1)) for one in videos]


def _rate(videos: Sequence[Packed], setting: Setting, threads: int, slicing: bool = True) -> float:
    """Clips/s over some seconds of runs, after two that warm up."""
    window = Window()
    pipeline = decode_graph(videos, _starts(videos, window), window, setting, threads, slicing)
    for _ in range(2):
        pipeline.run()
    settle(setting.device)
    runs, began = 0, time.perf_counter()
    while time.perf_counter() - began < (0.2 if setting.small else 3):
        pipeline.run()
        settle(setting.device)
        runs += 1
    return runs * len(videos) / (time.perf_counter() - began)


def _frames(pipeline: Any) -> list[NDArray[np.int16]]:
    (out,) = pipeline.run()
    on_host = out.as_cpu()
    return [np.asarray(on_host[row]).astype(np.int16) for row in range(len(on_host))]


def _broken(good: Packed) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    flipped = good.data.copy()
    flipped[len(flipped) // 3 : len(flipped) // 3 + 200] ^= 0xFF
    cut = good.data.copy()
    cut[len(cut) // 4 :] = 0
    return {
        "garbage": rng.integers(0, 256, len(good.data), np.uint8),
        "zeros after a quarter": cut,
        "flipped bytes": flipped,
    }


def _moving_texture(side: int, frames: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (side + 64, side + 64, 3)).astype(np.float32)
    for axis in (0, 1):  # a texture that is smooth over a few pixels
        noise = np.mean([np.roll(noise, shift, axis) for shift in range(-3, 4)], axis=0)
    noise = 255 * (noise - noise.min()) / (noise.max() - noise.min())
    views = [noise[32 - t : 32 - t + side, 48 - 3 * t : 48 - 3 * t + side] for t in range(frames)]
    return np.stack(views).astype(np.uint8)


def _hardware_flow(clip: NDArray[np.uint8], grid: int) -> tuple[NDArray[np.float32], float]:
    dali: Any = importlib.import_module("nvidia.dali")
    fn = dali.fn

    @dali.pipeline_def(batch_size=8, num_threads=2, device_id=0)
    def graph() -> Any:
        given = fn.external_source(source=lambda: [clip] * 8, batch=True, layout="FHWC")
        return fn.optical_flow(given.gpu(), output_grid=grid)

    pipeline = graph()
    pipeline.build()
    (out,) = pipeline.run()
    flow = np.asarray(out.as_cpu()[0])
    began = time.perf_counter()
    for _ in range(5):
        pipeline.run()[0].as_cpu()
    return flow, 1e3 * (time.perf_counter() - began) / (5 * 8 * (len(clip) - 1))


def _tried(pipeline: Any) -> str:
    try:
        _frames(pipeline)
    except RuntimeError as error:
        return _last(error)
    return "decodes"


def _last(error: Exception) -> str:
    """What DALI says after its traceback of the graph, without its source position."""
    told = str(error).partition("encountered:")[2] or str(error)
    return next((line.strip() for line in told.splitlines() if line.strip()), "no text")[:200]
