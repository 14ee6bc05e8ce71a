"""What was found out about one video, and what a packed video has to look like."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pipelines.dataset.flow import FlowForm

__all__ = ["Fault", "Limits", "Outcome", "Target", "Verdict"]


@dataclass(frozen=True)
class Target:
    """Form of a packed video (see `pipelines.packing.options.PackOptions` for the meaning of each).

    With `own_rate` a video keeps the frame rate of its source, and `fps` says nothing. With `prints` each gets a fingerprint.
    """

    fps: Fraction = Fraction(25)
    size: int = 128
    codec: str = "h264"
    crf: int = 23
    preset: str = "veryfast"
    gop: int = 16
    min_frames: int = 8
    min_side: int = 16
    max_aspect: float = 4.0
    keep_partial: bool = False
    max_minutes: float = 600
    own_rate: bool = False
    flow: FlowForm | None = None
    prints: bool = False


@dataclass(frozen=True)
class Limits:
    """What one video may take of this machine; they reject, and never change a packed byte.

    Attributes:
        timeout: Seconds without a new frame that count as hung.
        max_seconds: Seconds of work in all.
        memory_mb: Megabytes of address space of the process that decodes.
    """

    timeout: float = 30
    max_seconds: float = 3600
    memory_mb: int = 8192


@dataclass(frozen=True)
class Verdict:
    """One row of `verdicts.csv`; the figures are those of the original (of a range: those of its frames).

    Attributes:
        path: Relative to the source.
        verdict: "packed", "rejected", or "left out" (listed by the source, and never looked at).
        reason: Why it was rejected, or what was changed or is odd about it; plain words, may be empty when packed.
        frames: Decoded until the verdict was clear (all of them when packed).
        fps: Frames over seconds, by timestamps.
        width: Of the decoded frames.
        height: Of the decoded frames.
        codec: FFmpeg's name.
        rotation: Degrees counterclockwise, 0..359; applied when packed.
        seconds: By timestamps.
    """

    path: str
    verdict: str
    reason: str
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    rotation: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A verdict and, when packed, the video.

    Attributes:
        verdict: What to tell the user.
        mp4: Fragmented MP4; empty when rejected.
        frames: Of the packed video.
        width: Of the packed video.
        height: Of the packed video.
        fps: Of the packed video.
        flow: Its optical flow as fragmented MP4; empty where none was wanted.
        print: Its fingerprint (`pipelines.packing.prints`); empty where none was wanted.
        bounds: Of a source that was surveyed: where it is cut, seconds; empty: it is one clip.
    """

    verdict: Verdict
    mp4: bytes = b""
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    flow: bytes = b""
    print: bytes = b""
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Something other than the video stopped it: an error of our own, or a store that does not answer.

    Attributes:
        error: Type and text.
        place: File and line of ours where it came from; empty when a store does not answer.
        versions: Of what took part.
    """

    error: str
    place: str = ""
    versions: str = ""
