"""Where is a source cut? Every so many seconds, or where the scene changes. Runs in the child process only.

Scenes are FFmpeg's: the filter `scdet`, which PyAV brings along, scores each frame by how much it differs from the one before
beyond what the frames before differed. Frames are scaled down first and forgotten at once, so a source of hours takes no more
memory than one of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipelines.packing.cut import places
from pipelines.packing.foreign import Rejected, opened
from pipelines.packing.normalise import is_complaint, refuse_huge, video_stream
from pipelines.packing.part import WHOLE, Cut, Part
from pipelines.packing.timeline import Stamps, nominal_step
from pipelines.packing.verdict import Outcome, Verdict

__all__ = ["survey"]

_SIDE = 128
_FARTHEST = 120
"""Seconds that may have to be decoded before a clip begins, on average: more, and a long source is decoded many times over."""

_MICRO = 1_000_000


@dataclass
class _Seen:
    """What was seen of a source, in seconds from the beginning of its timeline.

    `keys` are the key frames, `changes` the places between two scenes, `end` is where the last frame ends, `announced` where the
    file says that it does, `clock` whether it has timestamps at all.
    """

    keys: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    end: float = 0.0
    announced: float = 0.0
    clock: bool = False


def survey(path: str, name: str, cut: Cut, alive: Callable[[], None], part: Part = WHOLE) -> Outcome:
    """Look where a source is to be cut.

    What is wrong with a video says its packing: one that cannot be opened or decoded here has no places, or those before
    the damage, and is packed (or refused) as the whole that it is, or clip by clip.

    Args:
        path: The file.
        name: What the verdict calls it.
        cut: How.
        alive: Called after every packet or frame.
        part: Which of its bytes are the video.

    Returns:
        The outcome, with `bounds` where there is more than one clip; "rejected" where cutting it would never end.

    Raises:
        OSError: the store of the file does not answer.
        Exception: an error of our own.
    """
    seen = _Seen()
    try:
        with opened(path, part) as container:
            _look(container, cut, seen, alive)
        end = seen.end
    except Exception as error:
        if not isinstance(error, Rejected) and not is_complaint(error):
            raise
        end = max(seen.end, seen.announced if seen.end else 0.0)  # the last clip holds the damage
    end = math.ceil(end * 1000) / 1000
    bounds = (0.0, *seen.changes, end) if cut.every is None else places(cut.every, end)
    if len(bounds) < 3:
        return Outcome(Verdict(name, "surveyed", "", seconds=end))
    if (why := _never_ends(bounds, seen)) is not None:
        return Outcome(Verdict(name, "rejected", why, seconds=end))
    return Outcome(Verdict(name, "surveyed", "", seconds=end), bounds=bounds)


def _look(container: InputContainer, cut: Cut, seen: _Seen, alive: Callable[[], None]) -> None:
    stream = video_stream(container)
    refuse_huge(stream)
    seen.announced = float(Fraction(container.duration or 0, _MICRO))
    seen.clock = container.start_time is not None
    step = nominal_step(stream.average_rate, stream.guessed_rate, stream.base_rate)
    origin = Fraction(container.start_time or 0, _MICRO)
    if cut.every is not None:
        _packets(container, stream, seen, origin, step, alive)
    else:
        _frames(container, stream, cut.threshold, seen, origin, step, alive)


def _packets(
    container: InputContainer,
    stream: VideoStream,
    seen: _Seen,
    origin: Fraction,
    step: Fraction,
    alive: Callable[[], None],
) -> None:
    """Lengths and key frames without decoding: what headers announce is often wrong, what lies in the file is there."""
    number = 0
    for packet in container.demux(stream):
        alive()
        if not packet.size:
            continue
        time = float(_time(packet, stream, origin, step * number))
        number += 1
        seen.end = max(seen.end, time + float(step))
        if packet.is_keyframe:
            seen.keys.append(time)


def _time(packet: Packet, stream: VideoStream, origin: Fraction, unknown: Fraction) -> Fraction:
    ticks, base = packet.pts if packet.pts is not None else packet.dts, packet.time_base or stream.time_base
    return unknown if ticks is None or base is None else ticks * Fraction(base) - origin


def _frames(
    container: InputContainer,
    stream: VideoStream,
    threshold: float,
    seen: _Seen,
    origin: Fraction,
    step: Fraction,
    alive: Callable[[], None],
) -> None:
    scores: _Scores | None = None
    before = Fraction(-1)
    for time, frame in _timed(container, stream, origin, step):
        alive()
        scores = scores or _Scores(frame)
        # Between two frames, so that rounding moves no frame into another clip.
        if scores.of(frame) >= threshold and before >= 0:
            seen.changes.append(round(float((before + time) / 2), 3))
        if frame.key_frame:
            seen.keys.append(float(time))
        seen.end = max(seen.end, float(time + step))
        before = time


def _timed(
    container: InputContainer, stream: VideoStream, origin: Fraction, step: Fraction
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Frames with rising times; those that do not rise are passed over, for no clip can begin there."""
    stamps, last = Stamps(), Fraction(-1)
    for frame in container.decode(stream):
        ticks = stamps.choose(frame.pts, frame.dts)
        time = last + step if ticks is None else ticks * Fraction(frame.time_base or stream.time_base or step) - origin
        if time > last:
            last = time
            yield time, frame


class _Scores:
    """FFmpeg's `scdet` for frames of one source, whatever their sizes are on the way."""

    def __init__(self, first: VideoFrame) -> None:
        scale = min(1.0, _SIDE / min(first.width, first.height))
        self._size = max(16, 2 * round(first.width * scale / 2)), max(16, 2 * round(first.height * scale / 2))
        self._scaler = VideoReformatter()
        self._number = 0
        self._graph = Graph()
        start = self._graph.add_buffer(
            width=self._size[0], height=self._size[1], format=VideoFormat("yuv420p"), time_base=Fraction(1, 25)
        )
        scdet, end = self._graph.add("scdet"), self._graph.add("buffersink")
        start.link_to(scdet)
        scdet.link_to(end)
        self._graph.configure()

    def of(self, frame: VideoFrame) -> float:
        """Score of the next frame, 0 … 100; nothing is said of the first two, for scdet holds a difference against the one before."""
        small = self._scaler.reformat(
            frame,
            *self._size,
            format="yuv420p",
            interpolation=Interpolation.AREA | Interpolation.BITEXACT | Interpolation.ACCURATE_RND,
            threads=1,
        )
        small.pts, small.time_base = self._number, Fraction(1, 25)
        self._number += 1
        self._graph.push(small)
        score = float(self._graph.pull().metadata.get("lavfi.scd.score", 0.0))
        return score if self._number > 2 else 0.0


def _never_ends(bounds: tuple[float, ...], seen: _Seen) -> str | None:
    """Why the clips of a source cannot be looked up in it; None: they can."""
    if not seen.clock:
        return (
            "it has no timestamps (a bare stream), so no clip can be looked up in it; put it into a container first, "
            "e.g. ffmpeg -framerate 25 -i IN -c copy OUT.mp4"
        )
    starts, keys = np.array(bounds[1:-1]), np.sort([0.0, *seen.keys])
    lead = float(np.mean(starts - keys[np.searchsorted(keys, starts, side="right") - 1]))
    if lead > _FARTHEST:
        return (
            f"its key frames are too rare to cut it: {lead:.0f} s would be decoded before a clip begins; encode it again "
            "first, e.g. ffmpeg -i IN -g 250 OUT.mp4"
        )
    return None
