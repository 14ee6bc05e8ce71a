"""Flow of real packed video: OpenCV's own, known motions, no motion, sizes and bytes."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from pipelines.dataset.flow import FlowForm, flow_of, luma_of
from pipelines.loader import EvalLoader, LoaderSpec
from pipelines.packing.flow import FlowMaker, calculator, costs, flow_sides, require_opencv
from pipelines.packing.normalise import normalise
from pipelines.packing.options import PackOptions
from pipelines.packing.verdict import Outcome, Target
from tests.pipelines.small_packs import write_pack
from vidssl.errors import RecipeError
from vidssl.recipe import Augment, Clips, Loader

DIS, TVL1 = FlowForm("dis", "companded", 128, 29), FlowForm("tvl1", "companded", 128, 29)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise of several scales, grey levels 0 … 255."""
    rng = np.random.default_rng(seed)
    levels = [cv2.resize(rng.normal(size=(height // k, width // k)), (width, height), interpolation=cv2.INTER_CUBIC) * k**0.5
              for k in (2, 4, 8, 16)]  # fmt: skip
    noise = sum(levels)
    return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.float32)


def warped(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The picture whose flow to `picture` is `motion` [H, W, 2]."""
    height, width = picture.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(picture, x + motion[..., 0], y + motion[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def write_grey(path: Path, pictures: list[np.ndarray]) -> Path:
    """A source of nearly no loss."""
    height, width = pictures[0].shape
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            grey = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, -1), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def sliding(
    frames: int = 12, shift: tuple[float, float] = (1.5, -0.75), size: tuple[int, int] = (128, 160)
) -> list[np.ndarray]:
    """A window that goes over a texture: everything moves by -shift pixels a frame."""
    height, width = size
    whole = texture(height + 64, width + 64)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return [cv2.remap(whole, x + 32 + shift[0] * t, y + 32 + shift[1] * t, cv2.INTER_CUBIC) for t in range(frames)]


def packed(path: Path, form: FlowForm | None, **kind) -> Outcome:
    outcome = normalise(str(path), path.name, Target(flow=form, **kind), lambda: None)
    assert outcome.verdict.verdict == "packed", outcome.verdict
    return outcome


def lumas(mp4: bytes) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)])


def greys(mp4: bytes) -> list[np.ndarray]:
    """Grey levels of the packed frames by FFmpeg, as OpenCV would be given them."""
    return [np.clip(np.rint((luma.astype(float) - 16) * 255 / 219), 0, 255).astype(np.uint8) for luma in lumas(mp4)]


def decoded(outcome: Outcome, form: FlowForm) -> np.ndarray:
    """[N, H, W, 2] in pixels per frame."""
    both = flow_of(form.encoding)[lumas(outcome.flow)]
    half = both.shape[2] // 2
    return np.stack([both[:, :, :half], both[:, :, half:]], axis=-1)


def error(one: np.ndarray, other: np.ndarray, edge: int = 0) -> float:
    """Mean end-point error, pixels."""
    inside = slice(edge, -edge or None)
    return float(np.linalg.norm(one - other, axis=-1)[..., inside, inside].mean())


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    return write_grey(tmp_path_factory.mktemp("moving") / "moving.mp4", sliding())


def through_the_loader(outcome: Outcome, form: FlowForm, root: Path) -> np.ndarray:
    """The view `flow` of the whole video, uncropped along its short side, [N, S, S, 2]."""
    size = (outcome.width, outcome.height)
    pack = write_pack(root, "h264", [outcome.mp4] * 2, [size] * 2, flows=[outcome.flow] * 2, form=form)
    clips = Clips(frames=outcome.frames, size=min(size))
    spec = LoaderSpec(clips, Augment(preset="none"), Loader(decode="py"), ("flow",), 1, 0)
    loader = EvalLoader(pack, spec, windows=1, device=torch.device("cpu"), instances=np.arange(1))
    (batch,) = list(loader)
    return np.moveaxis(batch.clips["flow"][0, 0].numpy(), 0, -1)


def dis_as_told():
    """OpenCV's DIS with the settings that every sample states."""
    assert DIS.facts()["made_by"] == "OpenCV DIS, preset medium with patch stride 5, 8 descent steps, 2 refinements"
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setPatchStride(5)
    dis.setGradientDescentIterations(8)
    dis.setVariationalRefinementIterations(2)
    return dis


def centre(flow: np.ndarray) -> np.ndarray:
    """The square that the loader shows."""
    side, left = flow.shape[1], (flow.shape[2] - flow.shape[1]) // 2
    return flow[:, :, left : left + side]


@pytest.mark.parametrize(("form", "frames"), [(DIS, 12), (TVL1, 4)], ids=["dis", "tvl1"])
def test_flow_through_pack_and_loader_is_that_of_opencv_and_of_the_motion(tmp_path, form, frames):
    outcome = packed(write_grey(tmp_path / "moving.mp4", sliding(frames)), form, min_frames=1)
    before = greys(outcome.mp4)
    module = cv2.optflow.DualTVL1OpticalFlow_create() if form is TVL1 else dis_as_told()
    pairs = list(itertools.pairwise(before))
    exact = np.stack([module.calc(one, other, None) for one, other in pairs])
    seen = through_the_loader(outcome, form, tmp_path / "pack")
    assert len(seen) == outcome.frames == len(exact) + 1
    assert error(seen[:-1], centre(exact)) <= 0.1
    truth = np.broadcast_to(np.float32([-1.5, 0.75]), exact.shape)
    assert error(seen[:-1], centre(truth), edge=8) <= 0.3
    assert np.abs(seen[-1] - seen[-2]).mean() < 0.02  # the last frame's is the one before it


def test_what_is_encoded_is_opencvs_own_output_bit_for_bit(moving, monkeypatch):
    """Both algorithms, held against OpenCV on the frames that come out of the packed video."""
    made: list[np.ndarray] = []
    monkeypatch.setattr(FlowMaker, "_encode", lambda self, flow: made.append(flow.copy()))
    mp4 = packed(moving, None).mp4
    before = greys(mp4)[:3]
    for form in (TVL1, DIS):
        made.clear()
        maker = FlowMaker(form, (160, 128), Target(flow=form))
        with av.open(io.BytesIO(mp4)) as container:
            for _, frame in zip(range(3), container.decode(video=0), strict=False):
                maker.add(frame)
        fresh = cv2.optflow.DualTVL1OpticalFlow_create() if form is TVL1 else dis_as_told()
        for ours, one, other in zip(made, before, before[1:], strict=False):
            assert np.array_equal(ours, fresh.calc(one, other, None))
        assert len(made) == 2


def zoomed(scale: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:128, :160].astype(np.float32)
    return scale * np.stack([x - 80, y - 64], -1), texture(128, 160, 1)


def turned(angle: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:128, :160].astype(np.float32)
    return angle * np.stack([64 - y, x - 80], -1), texture(128, 160, 2)


@pytest.mark.parametrize("motion", [zoomed(0.03), zoomed(-0.03), turned(0.03)], ids=["in", "out", "turn"])
def test_known_motions_come_back_within_a_third_of_a_pixel(tmp_path, motion):
    wanted, second = motion
    pictures = [warped(second, wanted), second] * 4
    outcome = packed(write_grey(tmp_path / "pair.mp4", pictures), DIS)
    seen = decoded(outcome, DIS)
    assert error(seen[0], wanted, edge=8) <= 0.3
    assert error(seen[0], np.zeros_like(wanted), edge=8) > 1


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("encoding", ["companded", "parity"])
def test_no_motion_is_exactly_none(tmp_path, codec, encoding):
    form = FlowForm("dis", encoding, 128, PackOptions(codec=codec, flow="dis", flow_encoding=encoding).flow_form().crf)
    still = np.full((128, 160), 90, np.float32)
    outcome = packed(write_grey(tmp_path / "still.mp4", [still] * 40), form, codec=codec, crf=30)
    values = np.unique(decoded(outcome, form))
    assert values.tolist() == ([0] if encoding == "companded" else [flow_of("parity")[128]])


def test_a_still_scene_with_texture_has_no_motion_either(tmp_path):
    outcome = packed(write_grey(tmp_path / "still.mp4", [texture(128, 160)] * 20), DIS)
    assert np.abs(decoded(outcome, DIS)).mean() < 0.01


def test_both_streams_have_as_many_frames_in_the_same_fragments(moving):
    from pipelines.dataset.fmp4 import fragment_table

    outcome = packed(moving, DIS, gop=4)
    one, other = fragment_table(outcome.mp4), fragment_table(outcome.flow)
    assert (one[0], one[2]) == (other[0], other[2]) == (12, 3)
    assert np.array_equal(one[4 + one[2] :], other[4 + other[2] :])


def test_the_same_frames_give_the_same_bytes(moving):
    assert packed(moving, DIS).flow == packed(moving, DIS).flow


def test_one_frame_alone_has_no_motion(tmp_path):
    outcome = packed(write_grey(tmp_path / "one.mp4", sliding(1)), DIS, min_frames=1)
    assert decoded(outcome, DIS).shape == (1, 128, 160, 2)
    assert not decoded(outcome, DIS).any()


def test_flow_may_be_smaller_than_the_frames_and_is_in_its_own_pixels(tmp_path):
    path = write_grey(tmp_path / "large.mp4", sliding(shift=(3, 0), size=(256, 320)))
    outcome = packed(path, DIS, size=256)
    assert (outcome.width, outcome.height) == (320, 256)
    seen = decoded(outcome, DIS)
    assert seen.shape[1:] == (128, 160, 2)
    assert error(seen[:-1], np.broadcast_to(np.float32([-1.5, 0]), seen[:-1].shape), edge=8) < 0.3


def test_the_sides_of_flow_are_even_and_those_of_the_video():
    for width, height in ((128, 128), (170, 128), (128, 340), (512, 128)):
        assert flow_sides(width, height, 128) == (width, height)
    assert flow_sides(340, 256, 128) == (170, 128)
    assert all(side % 2 == 0 for side in flow_sides(454, 256, 130))


def test_parity_is_the_published_8_bits(moving):
    form = FlowForm("dis", "parity", 128, 14)
    outcome = packed(moving, form)
    before = greys(outcome.mp4)
    exact = calculator("dis")(before[0], before[1])
    published = np.rint((np.clip(exact, -20, 20) + 20) * 255 / 40) * 40 / 255 - 20
    assert error(decoded(outcome, form)[0], published) < 0.06


def test_the_words_of_an_algorithm_are_what_it_costs():
    hour = {(170, 128): 90_000}
    assert costs(DIS, hour, 1).startswith(
        "flow=dis of 90000 frames at 128 px: about 3 min on 1 workers and 49.0 MB of flow"
    )
    assert "about 7.1 h on 1 workers" in costs(TVL1, hour, 1)
    assert costs(TVL1, hour, 8, stored=10**9).endswith("beside the 1.0 GB there are until the new shards hold both")


def test_without_opencv_a_pack_with_flow_is_refused_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"^flow=dis needs OpenCV, which is not installed; type pip install 'vidssl\[flow\]'$"
    ):
        require_opencv(DIS)
    require_opencv(None)


def test_opencv_without_its_contributed_part_makes_dis_and_no_tvl1(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    require_opencv(DIS)
    with pytest.raises(
        RecipeError, match=r"flow=tvl1 needs OpenCV with its contributed modules.*pip install 'vidssl\[flow\]'"
    ):
        require_opencv(TVL1)


def test_a_pack_without_flow_never_loads_opencv():
    code = (
        "import sys, pipelines.pack, pipelines.packing.normalise, pipelines.packing.stored; print('cv2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_codes_never_leave_what_every_decoder_gives_back():
    flow = np.linspace(-1e4, 1e4, 20001)
    for encoding in ("companded", "parity"):
        codes = luma_of(flow, encoding)
        assert codes.min() >= 16
        assert codes.max() <= 235


@pytest.mark.slow
def test_real_flow_takes_at_most_600_bytes_a_frame_and_keeps_its_hundredths(clips_root):
    errors, taken, frames = [], 0, 0
    for path in sorted((clips_root / "gestures").rglob("*.mp4"))[::25]:
        outcome = packed(path, DIS)
        before, seen = greys(outcome.mp4), decoded(outcome, DIS)
        exact = [calculator("dis")(one, other) for one, other in itertools.pairwise(before)]
        errors.append(error(seen[:-1], np.stack(exact)))
        taken, frames = taken + len(outcome.flow), frames + outcome.frames
    assert len(errors) > 5
    assert max(errors) <= 0.1
    assert taken / frames <= 600
