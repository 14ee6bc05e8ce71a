"""When is a frame shown? Timestamps of any quality → slots of a constant frame rate.

Slot j is shown at j / fps seconds. A frame holds from its own slot until the next frame's; frames that fall on one slot
give way to the last of them. A missing timestamp, a jump back and a gap above `MAX_GAP` are repaired with the nominal
distance of two frames, and counted.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

__all__ = ["MAX_GAP", "Stamps", "Timeline", "nominal_step", "plain_rate"]

MAX_GAP = Fraction(10)
"""Seconds; a longer gap between two frames is taken for a broken clock, not for a still picture."""

_SOUND_RATE = (Fraction(1, 2), Fraction(240))
_FALLBACK_RATE = Fraction(25)


def nominal_step(*rates: Fraction | None) -> Fraction:
    """Seconds between two frames: one over the first rate between 0.5 and 240 fps, 1/25 s where there is none."""
    low, high = _SOUND_RATE
    return 1 / next((rate for rate in rates if rate and low <= rate <= high), _FALLBACK_RATE)


def plain_rate(fps: float | Fraction) -> Fraction:
    """A rate that a file can keep: 29.97 means 30000/1001 and so on, others are taken to a thousandth."""
    television = Fraction(round(fps) * 1000, 1001)
    return television if abs(fps - television) < 0.005 else Fraction(fps).limit_denominator(1000)


class Stamps:
    """Which of a frame's two timestamps to trust, as FFmpeg does: the one that has gone wrong less often so far.

    Some containers (AVI with packed B-frames) hand out presentation times in the wrong order, while the decoding times,
    carried along with the frames, run evenly.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._faults = {"pts": 0, "dts": 0}

    def choose(self, pts: int | None, dts: int | None) -> int | None:
        """The timestamp of the next frame, in the units given; None when there is neither."""
        for name, stamp in (("pts", pts), ("dts", dts)):
            if stamp is not None:
                self._faults[name] += stamp <= self._last.get(name, stamp - 1)
                self._last[name] = stamp
        trusted = self._faults["pts"] <= self._faults["dts"]
        return pts if pts is not None and (trusted or dts is None) else dts


class Timeline:
    """The clock of one video, fed frame by frame in the order of display.

    Attributes:
        time: Seconds from the first frame to the last one fed.
        frames: Frames fed.
        missing: Frames that had no timestamp.
        jumps: Timestamps that went back, stood still or leapt ahead.
    """

    def __init__(self, fps: Fraction, step: Fraction) -> None:
        self.fps = fps
        self.step = step
        self.time = Fraction(0)
        self.frames = 0
        self.missing = 0
        self.jumps = 0
        self._origin: Fraction | None = None

    def slot(self, stamp: Fraction | None) -> int:
        """Slot of the next frame, from its timestamp in seconds (None: it has none)."""
        self.time = self._place(stamp)
        self.frames += 1
        return self._slot_of(self.time)

    def end(self) -> int:
        """Slot after the last frame, which is shown for one nominal step (and for one slot at least)."""
        if not self.frames:
            return 0
        return max(self._slot_of(self.time + self.step), self._slot_of(self.time) + 1)

    @property
    def seconds(self) -> Fraction:
        """Length of what was fed, in seconds."""
        return self.time + self.step if self.frames else Fraction(0)

    def _slot_of(self, time: Fraction) -> int:
        return ceil(time * self.fps - Fraction(1, 2))  # a tie goes down, so that 50 fps halves to 25 exactly

    def _place(self, stamp: Fraction | None) -> Fraction:
        expected = self.time + self.step if self.frames else Fraction(0)
        if stamp is None:
            self.missing += 1
            return expected
        if self._origin is None:
            self._origin = stamp - expected
        time = stamp - self._origin
        if self.frames and not self.time < time <= self.time + MAX_GAP:
            self.jumps += 1
            self._origin = stamp - expected
            return expected
        return time
