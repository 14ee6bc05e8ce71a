"""Which frames of a file lie in a range of its time? Only that range is decoded, from a key frame a little before it.

A frame belongs to the range when it is first shown in it: start ≤ time < stop, counted as players and FFmpeg's `-ss` do,
from the beginning of the file's timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipelines.packing.foreign import Rejected
from pipelines.packing.part import Part
from pipelines.packing.timeline import Stamps, nominal_step

__all__ = ["frames_of"]

_BACK = (Fraction(1), Fraction(10))
"""Seconds before the range where a key frame is looked for. A second more than needed: seeking goes by decoding times, which
lie before those of display, and pictures that follow a key frame but are shown before it may lean on what was skipped."""

_MICRO = 1_000_000
_SHORT = Fraction(1, 2)
"""Seconds that may be missing at the end of a range without a word."""

Timed = Iterator[tuple[Fraction, VideoFrame]]


def frames_of(
    container: InputContainer, stream: VideoStream, part: Part, alive: Callable[[], None], notes: list[str]
) -> Iterator[VideoFrame]:
    """The frames of a part, in the order of display.

    Args:
        container: Opened at its beginning.
        stream: One of its streams.
        part: Without a range: all frames.
        alive: Called after every frame that is decoded and left out.
        notes: Is told when the video ends before the range does.

    Raises:
        Rejected: not one frame lies in the range.
        FFmpegError: the decoder complains.
    """
    if part.start is None or part.stop is None:
        yield from container.decode(stream)
        return
    # A list says 0.4 and means 2/5, not the float next to it.
    start, stop = (Fraction(seconds).limit_denominator(1000) for seconds in (part.start, part.stop))
    end, inside = Fraction(0), False
    for time, frame in _from_before(container, stream, start):
        if time >= stop:
            end = time
            break
        end = time + _step(stream)
        if time < start:
            alive()
            continue
        inside = True
        yield frame
    if not inside:
        raise Rejected(
            f"no frame lies between {part.start:g} and {part.stop:g} s, the video ends at {float(end):.1f} s "
            "(a clip that was cut before must say so by its name)"
        )
    if end < stop - _SHORT:
        notes.append(f"the video ends {float(stop - end):.1f} s before its range does")


def _from_before(container: InputContainer, stream: VideoStream, start: Fraction) -> Timed:
    """Frames with their times, from one that is shown at `start` or before, or else from the first there is."""
    if container.start_time is None:  # no clock at all: nothing can be looked for, and a try would lose the place
        yield from _timed(container, stream, Fraction(0), Fraction(0))
        return
    origin = Fraction(container.start_time, _MICRO)
    for back in _BACK:
        try:
            container.seek(round((start + origin - back) * _MICRO), backward=True)
        except FFmpegError:  # no index, or nothing that far: the beginning will do
            continue
        timed = _timed(container, stream, origin, start + 1)
        first = next(timed, None)
        if first is not None and first[0] <= start:
            yield first
            yield from timed
            return
    container.seek(container.start_time, backward=True)
    yield from _timed(container, stream, origin, Fraction(0))


def _timed(container: InputContainer, stream: VideoStream, origin: Fraction, unknown: Fraction) -> Timed:
    """Frames with their times; `unknown` is that of a first frame without a timestamp, others follow the one before."""
    stamps, time = Stamps(), None
    for frame in container.decode(stream):
        ticks = stamps.choose(frame.pts, frame.dts)
        if ticks is not None:
            time = ticks * (frame.time_base or stream.time_base or _step(stream)) - origin
        else:
            time = unknown if time is None else time + _step(stream)
        yield time, frame


def _step(stream: VideoStream) -> Fraction:
    return nominal_step(stream.average_rate, stream.guessed_rate, stream.base_rate)
