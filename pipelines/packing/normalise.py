"""One foreign video → one packed video, or the reason why not. Runs in the child process only (`pipelines.packing.child`)."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast

import numpy as np
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipelines.packing.encode import ClipEncoder, verified_table
from pipelines.packing.flow import FlowMaker
from pipelines.packing.foreign import Rejected, cannot_be_reached, opened
from pipelines.packing.geometry import Geometry, arrange_planes, plan_geometry
from pipelines.packing.part import WHOLE, Part
from pipelines.packing.prints import Printer
from pipelines.packing.span import frames_of
from pipelines.packing.timeline import Stamps, Timeline, nominal_step, plain_rate
from pipelines.packing.verdict import Outcome, Target, Verdict
from vidssl.errors import DataError

__all__ = ["checked_and_flow", "is_complaint", "normalise", "refuse_huge", "video_stream"]

MAX_PIXELS = 8192 * 8192
"""Larger frames are refused: a few bytes can claim them and fill the memory."""


def normalise(
    path: str,
    name: str,
    target: Target,
    alive: Callable[[], None],
    part: Part = WHOLE,
    slow: Callable[[], None] = lambda: None,
) -> Outcome:
    """Decode a file to its end, bring it to the pack's form and check the result by decoding it again.

    Args:
        path: The file.
        name: What the verdict calls it (path relative to the source).
        target: Form of the packed video.
        alive: Called after every frame; lets the watchdog tell slow from hung.
        part: What of the file is the video.
        slow: Called when nothing foreign is left to decode, and only flow to make.

    Returns:
        The verdict, with the packed bytes where it is "packed". Never raises for what is wrong with the video.

    Raises:
        OSError: the store of the file does not answer.
        Exception: an error of our own, or of this installation; it says nothing about the video.
    """
    facts = _Facts(part)
    try:
        packed = _pack(path, target, facts, alive, slow)
    except Rejected as reason:
        return Outcome(facts.verdict(name, "rejected", str(reason)))
    except Exception as error:
        if not is_complaint(error):
            raise
        return Outcome(facts.verdict(name, "rejected", f"{facts.doing} failed: {_words(error)}"))
    return replace(packed, verdict=facts.verdict(name, "packed", "; ".join(facts.notes)), fps=float(facts.rate))


def is_complaint(error: Exception) -> bool:
    """Whether an error is what a decoder, a codec or the system says of this file, not a fault of our own.

    Foreign bytes make PyAV raise many types (seven were seen). ValueError and its like count where PyAV raised them; what
    a wrong call raises (TypeError, AttributeError …) never does, nor does a codec that this PyAV was built without.
    """
    if isinstance(error, UnknownCodecError) or cannot_be_reached(error):
        return False
    if isinstance(error, FFmpegError | OSError | UnicodeError | MemoryError | DataError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1:]
    in_pyav = any(frame.filename.startswith("av/") or "/site-packages/av/" in frame.filename for frame in last)
    return in_pyav and isinstance(error, ValueError | ArithmeticError | EOFError | RuntimeError)


@dataclass
class _Facts:
    """What is known of the source so far, and the rate of what is made of it."""

    part: Part = WHOLE
    doing: str = "opening"
    codec: str = ""
    width: int = 0
    height: int = 0
    rotation: int = 0
    rate: Fraction = Fraction(0)
    clock: Timeline | None = None
    notes: list[str] = field(default_factory=list)

    def verdict(self, name: str, verdict: str, reason: str) -> Verdict:
        frames = self.clock.frames if self.clock else 0
        seconds = float(self.clock.seconds) if self.clock else 0.0
        known = Verdict(name, verdict, reason, frames, 0.0, self.width, self.height, self.codec, self.rotation)
        return replace(known, seconds=round(seconds, 3), fps=round(frames / seconds, 3) if seconds else 0.0)


def _pack(path: str, target: Target, facts: _Facts, alive: Callable[[], None], slow: Callable[[], None]) -> Outcome:
    with opened(path, facts.part) as container:
        stream = _video_stream(container, facts)
        target = _with_rate(target, stream, facts)
        encoder = _encode_all(container, stream, target, facts, alive)
        announced = stream.frames
    frames = facts.clock.frames if facts.clock else 0
    if announced > frames * 1.02 + 1 and not facts.part.is_range:
        facts.notes.append(f"the file announces {announced} frames, {frames} are there")
    if encoder is None or frames < target.min_frames:
        few = f"only {_count(frames, 'frame')}" if frames else "no frame decodes"
        raise Rejected(f"{few} (min_frames={target.min_frames})")
    if encoder.frames < target.min_frames:
        rate = f"{float(target.fps):g} fps"
        few = _count(encoder.frames, "frame")
        raise Rejected(f"too short: {few} at {rate} (min_frames={target.min_frames})")
    facts.doing = "encoding"
    mp4 = encoder.finish()
    facts.doing = "checking the packed video"
    size = (encoder.width, encoder.height)
    if target.flow is not None:
        slow()
    flow = checked_and_flow(mp4, encoder.frames, size, target, alive)
    fingerprint = b"" if encoder.printer is None else encoder.printer.finish()
    return Outcome(facts.verdict("", "packed", ""), mp4, encoder.frames, *size, flow=flow, print=fingerprint)


def checked_and_flow(
    mp4: bytes, frames: int, size: tuple[int, int], target: Target, alive: Callable[[], None]
) -> bytes:
    """Decode a packed video again to its end, and make its optical flow on the way where it is wanted.

    Args:
        mp4: The packed video.
        frames: How many were put in.
        size: Its (width, height).
        target: Form of the packed video.
        alive: Called after every frame.

    Returns:
        The flow's video, checked too; empty where none is wanted.

    Raises:
        DataError: a video does not decode as it was written.
    """
    if target.flow is None:
        verified_table(mp4, frames, target.gop, alive)
        return b""
    maker = FlowMaker(target.flow, size, target)
    verified_table(mp4, frames, target.gop, alive, maker.add)
    flow = maker.finish()
    verified_table(flow, frames, target.gop, alive)
    return flow


def video_stream(container: InputContainer) -> VideoStream:
    """The stream that is packed, decoded on one thread.

    Raises:
        Rejected: there is none, or no decoder for it.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        pictures = " (only a cover picture)" if container.streams.video else ""
        raise Rejected(f"there is no video stream{pictures}")
    stream = streams[0]
    if cast(VideoCodecContext | None, stream.codec_context) is None:
        raise Rejected("FFmpeg knows no decoder for its codec")
    # Frame threading hangs on damaged files; the packer is parallel over videos anyway.
    stream.thread_type, stream.thread_count = "NONE", 1
    return stream


def refuse_huge(stream: VideoStream) -> None:
    """Refuse frames that would fill the memory.

    Raises:
        Rejected: they are above `MAX_PIXELS`.
    """
    if stream.width * stream.height > MAX_PIXELS:
        raise Rejected(f"frames of {stream.width}x{stream.height} are above {MAX_PIXELS} pixels")


def _video_stream(container: InputContainer, facts: _Facts) -> VideoStream:
    stream = video_stream(container)
    facts.codec, facts.width, facts.height = stream.codec.canonical_name, stream.width, stream.height
    refuse_huge(stream)
    return stream


def _with_rate(target: Target, stream: VideoStream, facts: _Facts) -> Target:
    """The target at the rate of this video: as given, or with `own_rate` its average rate, constant."""
    if target.own_rate:
        rate = 1 / nominal_step(stream.average_rate, stream.guessed_rate, stream.base_rate)
        target = replace(target, fps=plain_rate(rate))
    facts.rate = target.fps
    return target


def _encode_all(
    container: InputContainer, stream: VideoStream, target: Target, facts: _Facts, alive: Callable[[], None]
) -> _Encoding | None:
    """Feed every decoded frame to the encoder, each for as many slots as it is shown."""
    facts.doing = "decoding"
    clock = facts.clock = Timeline(target.fps, nominal_step(stream.average_rate, stream.guessed_rate, stream.base_rate))
    encoding: _Encoding | None = None
    stamps, held, damaged = Stamps(), 0, 0
    for frame in _frames(container, stream, target, facts, alive):
        alive()
        ticks = stamps.choose(frame.pts, frame.dts)
        slot = clock.slot(None if ticks is None else ticks * (frame.time_base or stream.time_base or clock.step))
        if clock.time > target.max_minutes * 60:
            raise Rejected(f"longer than {target.max_minutes:g} minutes (max_minutes={target.max_minutes:g})")
        damaged += frame.is_corrupt
        if encoding is None:
            encoding = _Encoding(frame, stream, target, facts)
        else:
            encoding.repeat(slot - held)
        held = slot
        encoding.hold(frame)
    if encoding is not None:
        encoding.repeat(clock.end() - held)
        facts.notes += encoding.notes + _clock_notes(clock)
        facts.notes += [f"the decoder marks {_count(damaged, 'frame')} as damaged"] if damaged else []
    return encoding


def _frames(
    container: InputContainer, stream: VideoStream, target: Target, facts: _Facts, alive: Callable[[], None]
) -> Iterator[VideoFrame]:
    try:
        yield from frames_of(container, stream, facts.part, alive, facts.notes)
    except Exception as error:
        if not is_complaint(error):
            raise
        decoded = facts.clock.frames if facts.clock else 0
        reason = f"decoding stops with an error after {_count(decoded, 'frame')}: {_words(error)}"
        if not target.keep_partial or not decoded:
            raise Rejected(reason) from error
        facts.notes.append(reason)


class _Encoding:
    """The encoder and the frame that is on show."""

    def __init__(self, first: VideoFrame, stream: VideoStream, target: Target, facts: _Facts) -> None:
        facts.width, facts.height, facts.rotation = first.width, first.height, first.rotation % 360
        if min(first.width, first.height) < target.min_side:
            raise Rejected(f"frames of {first.width}x{first.height} are too small (min_side={target.min_side})")
        self.geometry = plan_geometry(
            first.width,
            first.height,
            pixel=stream.sample_aspect_ratio,
            rotation=first.rotation,
            short_side=target.size,
            max_aspect=target.max_aspect,
        )
        self.notes = list(self.geometry.notes)
        self.width, self.height = self.geometry.size
        self._source = (first.width, first.height)
        self._reformat = _Reformat(self.geometry, shrink=min(self._source) >= target.size)
        self._frame: VideoFrame | None = None
        self._ready = False
        # Of the frames before they are encoded: one loss less between a video and its copies.
        self.printer = Printer(target.fps) if target.prints else None
        self._encoder = ClipEncoder(
            self.width,
            self.height,
            fps=target.fps,
            codec=target.codec,
            crf=target.crf,
            preset=target.preset,
            gop=target.gop,
        )

    @property
    def frames(self) -> int:
        return self._encoder.frames

    def hold(self, frame: VideoFrame) -> None:
        """Show `frame` from now on; it is scaled only when a slot needs it."""
        if (frame.width, frame.height) != self._source:
            self._source = (frame.width, frame.height)
            self.notes.append(f"the size changes to {frame.width}x{frame.height} on the way")
        self._frame, self._ready = frame, False

    def repeat(self, slots: int) -> None:
        """Encode the frame on show for that many slots (0: it is never seen)."""
        if slots < 1 or self._frame is None:
            return
        if not self._ready:
            self._frame, self._ready = self._reformat(self._frame), True
        for _ in range(slots):
            if self.printer is not None:
                self.printer.add(self._frame)
            self._encoder.add(self._frame)

    def finish(self) -> bytes:
        return self._encoder.finish()


class _Reformat:
    """Any frame → yuv420p of the packed size, BT.601 matrix, limited range."""

    def __init__(self, geometry: Geometry, *, shrink: bool) -> None:
        self.geometry = geometry
        self.plain = geometry.turns == 0 and geometry.size == geometry.scaled
        self._scaler = VideoReformatter()
        same = Interpolation.BITEXACT | Interpolation.ACCURATE_RND  # the machines of a cluster must agree
        self._filter = (Interpolation.AREA if shrink else Interpolation.BICUBIC) | same

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        scaled = self._scaler.reformat(
            frame,
            *self.geometry.scaled,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            interpolation=self._filter,
            threads=1,
        )
        if self.plain:
            return scaled
        arranged = arrange_planes(scaled.to_ndarray().astype(np.uint8, copy=False), self.geometry)
        return VideoFrame.from_ndarray(arranged, format="yuv420p")


def _clock_notes(clock: Timeline) -> list[str]:
    notes = []
    if clock.missing:
        placed = f"placed at {float(1 / clock.step):.5g} fps"
        notes.append(f"{_count(clock.missing, 'frame')} without a timestamp {placed}")
    if clock.jumps:
        notes.append(f"{_count(clock.jumps, 'timestamp')} out of order repaired")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _words(error: Exception) -> str:
    """An exception without codes and machine paths."""
    if isinstance(error, MemoryError):
        return "not enough memory (memory_mb sets the limit)"
    if isinstance(error, FFmpegError | OSError) and error.strerror:
        return error.strerror
    return f"{error}".splitlines()[0][:200] if str(error) else type(error).__name__
