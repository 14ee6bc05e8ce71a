"""Evaluation's rows: which windows, which part of the frame, in which order; against frames that say where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from pipelines.loading.augment import MEAN, STD
from pipelines.loading.crops import crop_looks
from pipelines.loading.windows import padded_in_front, window_starts
from tests.pipelines.small_packs import LENGTHS, damaged_copy, make_pack, moving
from vidssl.errors import CheckpointError, RecipeError
from vidssl.recipe import Augment, Clips, Loader
from vidssl.views import residual

CPU = torch.device("cpu")
T, SIZE = 4, 28


def place(number, height, width):
    """Red says x, green says y, blue says when."""
    y, x = np.mgrid[:height, :width]
    return np.stack([20 + x, 20 + y, np.full_like(x, 80 + 10 * (number % 5))], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    painters = {"place": [place] * 8, "moving": [moving(i) for i in range(8)]}
    made = {name: make_pack(root / name, "h264", paint) for name, paint in painters.items()}
    return made | {"native": make_pack(root / "native", "vp9", painters["moving"])}


def spec(*, batch=5, views=("rgb",), stride=1, decode="auto", augment=None, **clips):
    form = Clips(frames=T, stride=stride, size=SIZE, **clips)
    return LoaderSpec(form, augment or Augment(preset="none"), Loader(decode=decode), views, batch, 0)


def rows_of(loader):
    """Every row's clip [3, T, S, S] with (instance, start), in order."""
    return [
        (int(batch.instance[r]), int(batch.start[r, 0]), batch.clips["rgb"][r, 0])
        for batch in loader
        for r in range(batch.size)
    ]


def levels(clip):
    return clip.numpy() * STD.reshape(3, 1, 1, 1) + MEAN.reshape(3, 1, 1, 1)


def shown(corner, flipped, side):
    """The grey level of each output column (or row) of a square that starts at `corner`."""
    x = corner + (np.arange(SIZE) + 0.5) * side / SIZE - 0.5
    return 20 + (x[::-1] if flipped else x)


def test_ten_crops_are_four_corners_and_the_centre_then_the_same_flipped(packs):
    manifest = packs["place"]
    loader = EvalLoader(manifest, spec(batch=23), windows=1, device=CPU, crops="ten")
    rows = rows_of(loader)
    assert len(rows) == 80
    assert loader.crop.tolist() == list(range(10)) * 8
    for row, (instance, start, clip) in enumerate(rows):
        assert (instance, start) == (loader.instance[row], loader.start[row])
        height, width = manifest.samples.height[instance], manifest.samples.width[instance]
        side = 0.875 * min(height, width)
        down, right = height - side, width - side
        top, left = [(0, 0), (0, right), (down, 0), (down, right), (down / 2, right / 2)][loader.crop[row] % 5]
        got = levels(clip)
        assert np.abs(got[0].mean((0, 1)) - shown(left, loader.crop[row] >= 5, side)).max() < 3
        assert np.abs(got[1].mean((0, 2)) - shown(top, False, side)).max() < 3


@pytest.mark.parametrize(
    ("rule", "crops", "share"), [("p1", "centre", 1), ("p1", "inner", 7 / 8), ("p2", "centre", 7 / 8)]
)
def test_the_centre_is_the_short_side_and_under_p2_seven_eighths_of_it(packs, rule, crops, share):
    manifest = packs["place"]
    loader = EvalLoader(manifest, spec(), windows=1, device=CPU, crops=crops, rule=rule, instances=np.array([1]))
    _, _, clip = rows_of(loader)[0]
    side = share * 128
    assert np.abs(levels(clip)[0].mean((0, 1)) - shown((170 - side) / 2, False, side)).max() < 3
    assert np.abs(levels(clip)[1].mean((0, 2)) - shown((128 - side) / 2, False, side)).max() < 3


@pytest.mark.parametrize(("rows", "share", "side"), [(240, 0.93333, 224), (256, 7 / 8, 224), (128, 7 / 8, 112)])
def test_the_papers_squares_are_cut_to_the_pixel(rows, share, side):
    sides = np.array([[rows, 320], [320, rows]])
    for crops in ("inner", "ten"):
        looks = crop_looks(sides, crops, share=share)
        size = (looks.roi_end - looks.roi_start) * sides[:, None]
        assert np.allclose(size, side, atol=1e-3)


def test_a_share_is_shown_by_the_loader_and_moves_the_corners(packs):
    loader = EvalLoader(
        packs["place"], spec(batch=10), windows=1, device=CPU, crops="ten", share=0.5, instances=np.array([1])
    )
    for (_, _, clip), (top, left) in zip(
        rows_of(loader), [(0, 0), (0, 106), (64, 0), (64, 106), (32, 53)], strict=False
    ):
        assert np.abs(levels(clip)[0].mean((0, 1)) - shown(left, False, 64)).max() < 3
        assert np.abs(levels(clip)[1].mean((0, 2)) - shown(top, False, 64)).max() < 3


@pytest.mark.parametrize("name", ["moving", "native"])
def test_ten_crops_show_the_window_of_the_single_one_in_any_batch(packs, name):
    wanted = np.array([5, 0, 2])
    centre = rows_of(EvalLoader(packs[name], spec(), windows=3, device=CPU, crops="inner", instances=wanted))
    for batch in (1, 10, 34):
        loader = EvalLoader(packs[name], spec(batch=batch), windows=3, device=CPU, crops="ten", instances=wanted)
        many = rows_of(loader)
        assert len(loader) == -(-len(centre) // max(batch // 10, 1))
        assert [row[:2] for row in many[::10]] == [row[:2] for row in centre]
        for window, (_, _, clip) in enumerate(centre):
            assert torch.equal(many[10 * window + 4][2], clip)
            assert torch.equal(many[10 * window + 9][2], clip.flip(-1))


def test_a_bad_video_loses_all_its_crops_and_shifts_nobody_elses(packs, tmp_path):
    manifest = damaged_copy(packs["moving"], tmp_path / "bad", [1], "body")
    good = rows_of(EvalLoader(packs["moving"], spec(batch=20), windows=2, device=CPU, crops="ten"))
    left = rows_of(EvalLoader(manifest, spec(batch=20), windows=2, device=CPU, crops="ten"))
    kept = [row for row in good if row[0] != 1]
    assert [row[:2] for row in left] == [row[:2] for row in kept]
    assert all(torch.equal(one[2], other[2]) for one, other in zip(left, kept, strict=True))


def test_p1_windows_are_every_half_clip_from_the_first_frame_with_the_tail_dropped():
    assert window_starts("p1", 64, 32, 1).tolist() == [0, 15, 30]
    assert window_starts("p1", 64, 32, 1, 0).tolist() == [0, 15, 30]
    assert len(window_starts("p1", 300, 32, 1)) == 18
    assert window_starts("p1", 20, 32, 1).tolist() == [0]
    assert window_starts("p1", 40, 32, 1).tolist() == [0]  # `spread` puts this one in the centre
    assert window_starts("spread", 40, 32, 1, 5).tolist() == [4]
    assert window_starts("p1", 300, 32, 1, 3).tolist() == [0, 134, 268]


@pytest.mark.parametrize("length", [5, 16, 17, 25, 64, 101, 300])
def test_p2_windows_are_ten_with_their_centres_evenly_spread(length):
    centres = np.linspace(8, max(length - 8, 8), 10)
    assert window_starts("p2", length, 16, 1).tolist() == [int(centre - 8) for centre in centres]


def test_an_unknown_rule_or_crop_is_refused_with_the_ones_there_are(packs):
    with pytest.raises(RecipeError, match="the window rule 'p3' is unknown; use one of spread, p1, p2"):
        window_starts("p3", 64, 32, 1)
    with pytest.raises(RecipeError, match="crops='five' is unknown; use one of centre, inner, ten"):
        crop_looks(np.array([[128, 170]]), "five")


def test_a_short_video_repeats_its_first_frame_in_front():
    clips, lengths, stride = torch.randn(4, 2, 3, 6, 2, 2), np.array([3, 7, 5, 11]), 2
    got = padded_in_front(clips, lengths, stride)
    for row, length in enumerate(lengths):
        real = len(range(0, length, stride))
        order = [0] * max(6 - real, 0) + list(range(min(real, 6)))
        assert torch.equal(got[row], clips[row][:, :, order])
    assert padded_in_front(clips, np.full(4, 11), stride) is clips


def test_only_p1_pads_a_short_video_in_front(packs):
    first = {}
    for rule in ("spread", "p1"):
        loader = EvalLoader(packs["place"], spec(stride=2), windows=0, device=CPU, rule=rule, instances=np.array([0]))
        ((_, _, clip),) = rows_of(loader)
        first[rule] = [round((level - 80) / 10) for level in levels(clip)[2].mean((1, 2))]
    assert LENGTHS[0] == 5  # frames 0, 2, 4 and one too few
    assert first == {"spread": [0, 2, 4, 4], "p1": [0, 0, 2, 4]}


@pytest.mark.parametrize(("boundary", "scale", "frames"), [("wrap", "half_shift", T), ("drop", "none", T - 1)])
def test_the_residual_has_the_form_that_the_recipe_gives_in_training_and_evaluation(packs, boundary, scale, frames):
    made = spec(views=("rgb", "residual"), residual_boundary=boundary, residual_scale=scale, batch=3)
    train = TrainLoader(packs["moving"], made, rank=0, world=1, device=CPU)
    batch, seen = train.next(), next(iter(EvalLoader(packs["moving"], made, windows=1, device=CPU)))
    train.close()
    for one in (batch, seen):
        assert one.clips["residual"].shape[3] == frames
        assert torch.equal(one.clips["residual"], residual(one.clips["rgb"], boundary, scale))


@pytest.mark.parametrize("preset", ["none", "light", "crop", "paper"])
def test_unit_colours_are_grey_levels_over_255_and_imagenets_are_their_affine_image(packs, preset):
    clips = {}
    for form in ("imagenet", "unit"):
        augment = Augment(preset=preset, normalize=form)
        loader = TrainLoader(packs["moving"], spec(augment=augment, batch=8), rank=0, world=1, device=CPU)
        clips[form] = loader.next().clips["rgb"]
        loader.close()
    mean, std = (torch.from_numpy(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(clips["unit"] * 255, clips["imagenet"] * std + mean, atol=1e-2)
    if preset in ("none", "crop"):
        assert 0.05 < clips["unit"].min() < clips["unit"].max() <= 1


@pytest.mark.parametrize("preset", ["light", "crop", "paper"])
@pytest.mark.parametrize("per_video", [1, 2])
def test_a_video_gives_one_clip_or_two(packs, preset, per_video):
    made = spec(augment=Augment(preset=preset), per_video=per_video, batch=8)
    loader = TrainLoader(packs["moving"], made, rank=0, world=1, device=CPU)
    batch = loader.next()
    loader.close()
    assert batch.clips["rgb"].shape == (8, per_video, 3, T, SIZE, SIZE)
    assert batch.start.shape == (8, per_video)


def test_training_can_be_limited_to_some_videos_and_a_state_of_others_is_refused(packs):
    chosen = np.array([1, 4, 5, 7])
    loader = TrainLoader(packs["moving"], spec(batch=2), rank=0, world=1, device=CPU, instances=chosen)
    assert loader.steps_per_epoch == 2
    seen = torch.cat([loader.next().instance for _ in range(2)])
    state = loader.state_dict()
    loader.close()
    assert sorted(seen.tolist()) == chosen.tolist()
    other = TrainLoader(packs["moving"], spec(batch=2), rank=0, world=1, device=CPU, instances=np.array([1, 4, 5, 6]))
    with pytest.raises(CheckpointError, match="the loader's state has instances=4 videos"):
        other.load_state_dict(state)
