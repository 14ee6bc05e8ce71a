"""The DALI graph: encoded bytes and given numbers in, normalised clips out. Stateless and without chance.

One row of the graph is one clip; the n clips of a video are neighbours. With several crops a row is one window, which is
decoded once and cut as often as there are crops. On a GPU the same graph runs with two words
changed: the device of the decoder (`mixed`) and `device_id`.

RGB and flow of a row share its window, crop and mirror. Companded flow is expanded to pixels per frame *before* it is
resized, and its u changes sign in a mirror; its values do not grow with the crop (a crop of half the frame shows the same
motion in the same pixels per frame), as published. Flow of the encoding `parity` is the published picture (128, v, u), and
everything that happens to RGB happens to it too: colours, blur, normalisation, a mirror that leaves u as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali.pipeline import Pipeline

from pipelines.dataset.flow import FlowForm, Reading, flow_of, picture_of
from pipelines.loading.augment import LUMA
from pipelines.loading.feed import StreamName
from vidssl.flow import STILL
from vidssl.recipe import Clips

__all__ = ["build_pipeline", "shaded", "window_bytes"]

Node = Any
"""A DALI DataNode."""

# DALI's stubs know neither its enumerations nor which of its functions give one node and which several.
fn: Any = dali.fn
math: Any = dali.math
types: Any = dali.types
pipeline_def: Any = dali.pipeline_def

_VALUES = list(range(256))


def window_bytes(video: Node, table: Node, start: Node, span: int) -> tuple[Node, Node]:
    """Cut the fragments that hold a window out of a video, inside the graph.

    Args:
        video: uint8 [bytes].
        table: int32 fragment table of `pipelines.dataset.fmp4`.
        start: int32 scalar, first frame of the window.
        span: Frames of the window.

    Returns:
        uint8 [fewer bytes], a decodable file, and int32 scalar, the window's first frame in it.
    """
    count = table[2]
    offsets, first = _part(table, 3, count + 1), _part(table, 4 + count, count + 1)
    begin = fn.reductions.sum(fn.cast(first <= start, dtype=types.INT32)) - 1
    stop = math.min(fn.reductions.sum(fn.cast(first < start + span, dtype=types.INT32)), count)
    offset = _one(offsets, begin)
    body = _part(video, offset, _one(offsets, stop) - offset)
    return fn.cat(_part(video, 0, table[1]), body, axis=0), fn.cast(start - _one(first, begin), dtype=types.INT32)


def build_pipeline(
    source: Callable[[], list[Any]],
    decoders: Mapping[str, Callable[..., Any]] | None,
    clips: Clips,
    *,
    rows: int,
    threads: int,
    device_id: int | None,
    coloured: bool,
    slicing: bool = True,
    crops: int = 1,
    streams: tuple[StreamName, ...] = ("rgb",),
    flow: FlowForm | None = None,
) -> Pipeline:
    """The graph, constructed but not built.

    Args:
        source: Called once per batch; returns `inputs_of` a batch.
        decoders: Python decoders of a whole batch, of each stream, which crop and resize RGB too; None: DALI's own, on the
            GPU where there is one.
        clips: T, stride, size.
        rows: The most clips of a batch.
        threads: DALI's threads.
        device_id: CUDA device; None: CPU.
        coloured: Whether the graph holds colour and blur at all (preset `paper`); not read with several crops.
        slicing: Cut windows out of the bytes before DALI decodes them.
        crops: Crops of one row; with more than one, crop, mirror, mean and std have an axis of crops in front.
        streams: What is decoded.
        flow: What the flow of the pack is.

    Returns:
        Pipeline with two outputs of each stream: float [rows, C, T, H, W] (several crops: [rows, crops, C, T, H, W]), and
        uint8 fault texts, empty where a row is good.
    """
    options = {"batch_size": rows, "num_threads": threads, "device_id": device_id, "set_affinity": False}
    # Two batches in flight overlap copies, decoding and augmentation on a GPU; on a CPU they would only hold memory.
    options["prefetch_queue_depth"] = 1 if device_id is None else 2

    @pipeline_def(**options, enable_conditionals=True)
    def graph() -> tuple[Node, ...]:
        names = ("roi_start", "roi_end", "mirror", *(("mean", "std") if shaded(streams, flow) else ()))
        count = 2 * len(streams) + 1 + len(names) + coloured
        given = list(fn.external_source(source=source, num_outputs=count, batch=True))
        stored, (start, *rest) = given[: 2 * len(streams)], given[2 * len(streams) :]
        look, colour = dict(zip(names, rest)), rest[len(names) :]  # noqa: B905 (DALI's `zip` knows no `strict`)
        out: list[Node] = []
        for number, name in enumerate(streams):
            video, table = stored[2 * number : 2 * number + 2]
            form = flow if name == "flow" else None
            if decoders is not None:
                frames, faults = _by_python(decoders[name], (video, table, start, *rest[:2]), device_id)
            else:
                frames = _native(video, table, start, clips, device_id, slicing)
                faults = fn.slice(video, 0, 0, axes=[0], normalized_anchor=False, normalized_shape=False)
            reading: Reading = "grey" if decoders is None else "luma"
            out += [_made(frames, form, reading, clips, crops, colour, look), faults]
        return tuple(out)

    with _annotations_of_dali():
        return graph()


def shaded(streams: tuple[StreamName, ...], flow: FlowForm | None) -> bool:
    """Whether anything is decoded that has colours: RGB, or flow that is handled as a picture."""
    return "rgb" in streams or (flow is not None and flow.parity)


def _by_python(decoder: Callable[..., Any], given: tuple[Node, ...], device_id: int | None) -> tuple[Node, Node]:
    frames, faults = fn.python_function(
        *given, function=decoder, batch_processing=True, num_outputs=2, output_layouts=["FHWC", ""]
    )
    return (frames if device_id is None else frames.gpu()), faults


def _made(
    frames: Node,
    form: FlowForm | None,
    reading: Reading,
    clips: Clips,
    crops: int,
    colour: list[Node],
    look: Mapping[str, Node],
) -> Node:
    """Decoded frames of one stream → clips; `form` is that of flow, None for RGB.

    RGB that Python decoded (`reading` is "luma") has its final size; the crops of a row lie one behind the other.
    """
    size, cut = clips.size, form is None and reading == "luma"
    if form is None:
        finish = _augmented_crop if cut else _augmented
    elif form.parity:
        frames, finish = _flow_picture(frames, reading), _augmented
    else:
        frames, finish, colour = _flow(frames, reading), _resized_flow, []
    if crops == 1:
        return finish(frames, size, *colour, **look)
    made: list[Node] = []
    for crop in range(crops):  # DALI rewrites this function and knows no `zip` with `strict`
        part = _part(frames, crop * clips.frames, clips.frames) if cut else frames
        made.append(finish(part, size, **{key: one[crop] for key, one in look.items()}))
    return fn.stack(*made)


def _flow(frames: Node, reading: Reading) -> Node:
    """Luma or grey [T, H, 2·W, C] → u and v in pixels per frame, float [T, H, W, 2]."""
    u, v = _halves(frames, reading, flow_of("companded", reading), types.FLOAT)
    return fn.reinterpret(fn.cat(u, v, axis=3), layout="FHWC")


def _flow_picture(frames: Node, reading: Reading) -> Node:
    """Luma or grey [T, H, 2·W, C] → the published picture (no motion, v, u), uint8 [T, H, W, 3]."""
    u, v = _halves(frames, reading, picture_of(reading), types.UINT8)
    still = fn.cast(u * np.uint8(0) + np.uint8(STILL), dtype=types.UINT8)
    return fn.reinterpret(fn.cat(still, v, u, axis=3), layout="FHWC")


def _halves(frames: Node, reading: Reading, table: NDArray[Any], kind: Any) -> tuple[Node, ...]:
    """Left and right half of the first channel, each value replaced by that of the table."""
    if reading == "grey":  # three equal channels
        frames = fn.slice(frames, 0, 1, axes=[3], normalized_anchor=False, normalized_shape=False)
    values = fn.lookup_table(frames, keys=_VALUES, values=table.tolist(), dtype=kind)
    return tuple(
        fn.slice(values, begin, 0.5, axes=[2], normalized_anchor=True, normalized_shape=True) for begin in (0.0, 0.5)
    )


def _resized_flow(frames: Node, size: int, *, roi_start: Node, roi_end: Node, mirror: Node, **_: Node) -> Node:
    """Crop and resize as `_augmented`, flip, and turn u round in a mirror; mean and deviation are those of RGB."""
    frames = _resized(frames, size, roi_start, roi_end)
    sign = 1.0 - 2.0 * fn.cast(mirror, dtype=types.FLOAT)
    turned = fn.stack(sign, sign * sign)  # (-1, 1) in a mirror, else (1, 1)
    zero = types.Constant(np.zeros(2, np.float32))
    return fn.crop_mirror_normalize(
        frames, dtype=types.FLOAT, output_layout="CFHW", mirror=mirror, mean=zero, std=turned
    )


@contextmanager
def _annotations_of_dali() -> Iterator[None]:
    """DALI 2.4 marks syntax trees in a way that Python 3.13 deprecates; as an error it would break every condition."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".* got an unexpected keyword argument '___pyct_anno'", DeprecationWarning)
        yield


def _native(video: Node, table: Node, start: Node, clips: Clips, device_id: int | None, slicing: bool) -> Node:
    if slicing:
        video, start = window_bytes(video, table, start, (clips.frames - 1) * clips.stride + 1)
    return fn.decoders.video(
        video,
        device="cpu" if device_id is None else "mixed",
        affine=False,  # pinned decoder threads of several workers would share cores
        start_frame=start,
        sequence_length=clips.frames,
        stride=clips.stride,
        pad_mode="edge",
    )


def _augmented(
    frames: Node,
    size: int,
    colour: Node | None = None,
    *,
    roi_start: Node,
    roi_end: Node,
    mirror: Node,
    mean: Node,
    std: Node,
) -> Node:
    """Crop and resize in one pass, colour and blur of the rows that have them, flip and normalise in one pass."""
    return _augmented_crop(_resized(frames, size, roi_start, roi_end), size, colour, mirror=mirror, mean=mean, std=std)


def _augmented_crop(
    frames: Node, _: int, colour: Node | None = None, *, mirror: Node, mean: Node, std: Node, **corners: Node
) -> Node:
    if colour is not None:
        frames = _blurred(_coloured(frames, colour), colour)
    return fn.crop_mirror_normalize(frames, dtype=types.FLOAT, output_layout="CFHW", mirror=mirror, mean=mean, std=std)


def _resized(frames: Node, size: int, roi_start: Node, roi_end: Node) -> Node:
    return fn.resize(
        frames,
        size=[size, size],
        roi_start=roi_start,
        roi_end=roi_end,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )


def _coloured(frames: Node, colour: Node) -> Node:
    if colour[10] > 0.0:
        pixel = fn.reductions.mean(frames, axes=[0, 1, 2], dtype=types.FLOAT)
        luma = fn.reductions.sum(pixel * types.Constant(LUMA.astype(np.float32)), axes=[0], keep_dims=True)
        lift = fn.cat(luma, luma, luma) * colour[9]
        matrix = fn.reshape(_part(colour, 0, 9), shape=[3, 3])
        # The lift comes from the pixels, and on a GPU `coord_transform` takes no argument from there: so it is added.
        changed = fn.cast(fn.coord_transform(frames, M=matrix) + lift, dtype=types.UINT8)
        frames = fn.reinterpret(changed, layout="FHWC")
    return frames


def _blurred(frames: Node, colour: Node) -> Node:
    sigma = colour[11]
    if sigma > 0.0:
        frames = fn.gaussian_blur(frames, sigma=sigma)
    return frames


def _part(values: Node, begin: Node | int, length: Node | int) -> Node:
    return fn.slice(values, begin, length, axes=[0], normalized_anchor=False, normalized_shape=False)


def _one(values: Node, place: Node) -> Node:
    return fn.squeeze(_part(values, fn.cast(place, dtype=types.INT32), 1), axes=[0])
