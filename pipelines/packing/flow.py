"""Stored frames → optical flow → a second packed video, frame by frame. Runs in the child process; needs the extra `flow`.

The flow is that of the frames as they come out of the packed video, not as they went into its encoder: those are the frames
that training sees, they are decoded again anyway to check them, and a pack to which flow is added later (`add=flow`) holds
the very bytes that it would have held from the start.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.flow import FlowForm, luma_of
from vidssl.errors import RecipeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from pipelines.packing.verdict import Target

__all__ = ["FlowMaker", "costs", "duration", "flow_sides", "megabytes", "opencv_version", "require_opencv"]

_PACKAGE = "opencv-contrib-python-headless"
_SECONDS_A_PIXEL = {"dis": 6e-8, "tvl1": 1.3e-5}
_ENCODING, _BYTES_A_PIXEL = 3e-8, 0.025
"""Of one core, measured at 170×128 and 320×240; all are about proportional to the pixels."""

Calculate = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]


def require_opencv(form: FlowForm | None) -> None:
    """Refuse a pack with flow where the extra is missing.

    Raises:
        RecipeError: OpenCV, or for `tvl1` its contributed part, is not installed.
    """
    if form is None:
        return
    if importlib.util.find_spec("cv2") is None:
        raise RecipeError(
            f"flow={form.algorithm} needs OpenCV, which is not installed; type pip install 'vidssl[flow]'"
        )
    import cv2

    if form.algorithm == "tvl1" and not hasattr(cv2, "optflow"):
        raise RecipeError(
            "flow=tvl1 needs OpenCV with its contributed modules, and the one installed has none; type "
            f"pip install 'vidssl[flow]' (it brings {_PACKAGE}; uninstall opencv-python first)"
        )


def opencv_version() -> str:
    """Version of the package that makes flow."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # another build of OpenCV
        import cv2

        return str(cv2.__version__)


def flow_sides(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) of the flow of a packed video: its short side is `size`, both are even."""
    scale = size / min(width, height)
    return 2 * round(width * scale / 2), 2 * round(height * scale / 2)


def costs(form: FlowForm, frames: Mapping[tuple[int, int], int], workers: int, stored: int = 0) -> str:
    """What flow will take, in a sentence; see `cost`.

    Args:
        form: What is made.
        frames: (width, height) of packed videos → how many frames of that size.
        workers: How many are made at once.
        stored: Bytes of the shards it is added to; they lie beside the new ones for a while.
    """
    seconds, size = cost(form, frames)
    total = sum(frames.values())
    beside = f", beside the {megabytes(stored)} there are until the new shards hold both" if stored else ""
    return (
        f"flow={form.algorithm} of {total} frames at {form.size} px: about {duration(seconds / workers)} on {workers} workers and "
        f"{megabytes(size)} of flow{beside}"
    )


def cost(form: FlowForm, frames: Mapping[tuple[int, int], int]) -> tuple[float, float]:
    """Seconds of one core, and bytes, that flow takes: pixels times what was measured on the machine this was written on."""
    sides = {size: flow_sides(*size, form.size) for size in frames}
    pixels = sum(count * sides[size][0] * sides[size][1] for size, count in frames.items())
    return pixels * (_SECONDS_A_PIXEL[form.algorithm] + _ENCODING), pixels * _BYTES_A_PIXEL


def megabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class FlowMaker:
    """The flow stream of one video in the making.

    Args:
        form: What to make.
        size: (width, height) of the packed video.
        target: Codec, rate and fragments: those of the RGB stream.
    """

    def __init__(self, form: FlowForm, size: tuple[int, int], target: Target) -> None:
        from pipelines.packing.encode import ClipEncoder

        self.width, self.height = flow_sides(*size, form.size)
        self._form, self._scaled = form, (self.width, self.height) != size
        self._calculate = calculator(form.algorithm)
        self._before: NDArray[np.uint8] | None = None
        self._last = np.zeros((self.height, self.width, 2), np.float32)
        self._picture = np.full((self.height * 3 // 2, 2 * self.width), 128, np.uint8)  # chroma stays empty
        self._encoder = ClipEncoder(
            2 * self.width,
            self.height,
            fps=target.fps,
            codec=target.codec,
            crf=form.crf,
            preset="ultrafast",  # a fifth more bytes than `veryfast` in .4 of its time, and decoded faster in every epoch
            gop=target.gop,
        )

    def add(self, frame: VideoFrame) -> None:
        """The next stored frame; gives the flow that leads to it from the one before."""
        grey = grey_of(frame)
        if self._scaled:
            import cv2

            grey = cv2.resize(grey, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(
                np.uint8, copy=False
            )
        if self._before is not None:
            self._last = self._calculate(self._before, grey)
            self._encode(self._last)
        self._before = grey

    def finish(self) -> bytes:
        """The flow's video, with as many frames as were given: nothing follows the last one, so its flow is the one before it."""
        self._encode(self._last)
        return self._encoder.finish()

    def _encode(self, flow: NDArray[np.float32]) -> None:
        from av.video.frame import VideoFrame

        codes = luma_of(flow, self._form.encoding)
        self._picture[: self.height, : self.width] = codes[..., 0]
        self._picture[: self.height, self.width :] = codes[..., 1]
        self._encoder.add(VideoFrame.from_ndarray(self._picture, format="yuv420p"))


def grey_of(frame: VideoFrame) -> NDArray[np.uint8]:
    """Grey levels 0 … 255 of a packed frame: its luma, which goes from 16 to 235, stretched."""
    import cv2

    luma = frame.to_ndarray()[: frame.height, : frame.width]
    return cv2.LUT(luma, _STRETCHED).astype(np.uint8, copy=False)


def calculator(algorithm: str) -> Calculate:
    """(grey frame, the next one) → flow [H, W, 2] in pixels per frame; on one thread."""
    import cv2

    cv2.setNumThreads(1)  # there is a process for every core
    module: Any = cv2
    if algorithm == "tvl1":
        tvl1 = module.optflow.DualTVL1OpticalFlow_create()
        return lambda before, after: tvl1.calc(before, after, None)
    dis = module.DISOpticalFlow_create(module.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # Half of the preset's time; the error on known motions grows from .19 to .23 px, what is left after warping does not.
    dis.setPatchStride(5)
    dis.setGradientDescentIterations(8)
    dis.setVariationalRefinementIterations(2)
    return lambda before, after: dis.calc(before, after, None)


_STRETCHED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
