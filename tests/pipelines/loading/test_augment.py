from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.augment import MEAN, STD, centre_looks, drawn_looks
from pipelines.loading.cut import cut
from pipelines.loading.engine import ClipGraph
from pipelines.loading.feed import Feed
from tests.pipelines.small_packs import encode, make_pack, moving, ramp, still, write_pack
from vidssl.recipe import Augment, Clips

quick = settings(max_examples=30, deadline=None)
IDS = np.arange(4000)
SIDES = np.tile(np.array([[128, 170]], np.int16), (4000, 1))


def paper(clips=2, epoch=0):
    return drawn_looks(Augment(preset="paper"), SIDES, clips, seed=1, epoch=epoch, instance=IDS)


def run(manifest, preset, clips, plan_of):
    """Clips [B, n, 3, T, S, S] of one batch, in grey levels, and its plan."""
    feed = Feed(manifest, clips, Augment(preset=preset), 3)
    plan = plan_of(feed)
    graph = ClipGraph(
        "py", clips, group=plan.start.shape[1], rows=plan.start.size, threads=1, device=torch.device("cpu"),
        coloured=preset == "paper",
    )  # fmt: skip
    graph.start(lambda: feed.read(plan, (), True)[0])
    ran = graph.run()
    tensor = ran.clips["rgb"]
    graph.close()
    assert not any(ran.faults)
    return tensor.numpy().reshape(*plan.start.shape, *tensor.shape[1:]), plan


def grey_levels(clips):
    return clips * STD.reshape(3, 1, 1, 1) + MEAN.reshape(3, 1, 1, 1)


@quick
@given(st.sampled_from(["light", "paper"]), st.integers(16, 300), st.integers(16, 300), st.floats(0.1, 1.0))
def test_crops_lie_inside_the_frame_and_cover_the_allowed_share(preset, height, width, min_area):
    sides = np.tile(np.array([[height, width]], np.int16), (50, 1))
    augment = Augment(preset=preset, min_area=min_area)
    looks = drawn_looks(augment, sides, 2, seed=0, epoch=0, instance=np.arange(50))
    start, end = looks.roi_start * sides[:, None], looks.roi_end * sides[:, None]
    assert np.allclose(start, np.rint(start), atol=1e-3)
    assert np.allclose(end, np.rint(end), atol=1e-3)
    size = np.rint(end - start)
    assert (looks.roi_start >= 0).all()
    assert (looks.roi_end <= 1).all()
    assert (size >= 1).all()
    smallest = 0.2 if preset == "paper" else min_area
    square = (size == min(height, width)).all(-1)  # what is taken when nothing fits
    # What was drawn lies within half a pixel of what is cut.
    assert (((size + 0.5).prod(-1) / (height * width) >= smallest - 1e-3) | square).all()
    assert ((size[..., 1] + 0.5) / (size[..., 0] - 0.5) > 0.749).all()
    assert ((size[..., 1] - 0.5) / (size[..., 0] + 0.5) < 1.334).all()


def test_numbers_depend_on_the_address_alone():
    whole = drawn_looks(Augment(preset="paper"), SIDES[:6], 2, seed=1, epoch=4, instance=IDS[:6])
    part = drawn_looks(Augment(preset="paper"), SIDES[:2], 2, seed=1, epoch=4, instance=IDS[[5, 2]])
    for name, values in vars(part).items():
        assert np.array_equal(values, getattr(whole, name)[[5, 2]]), name


def test_half_of_the_videos_show_one_clip_twice_and_the_others_change_three_in_ten():
    looks = paper()
    changed = looks.coloured | (looks.sigma > 0)
    one = looks.alone >= 0
    assert abs(one.mean() - 0.5) < 0.03
    assert abs(looks.alone[one].mean() - 0.5) < 0.04
    # a base clip stays plain with p = .2 (no jitter) · .8 (no grey) · .5 (no blur) = .08
    assert not (changed[one].all(axis=1)).any()
    assert abs(changed[one].mean() - 0.5 * 0.92) < 0.03
    assert abs(changed[~one].mean() - 0.3 * 0.92) < 0.03
    assert abs((looks.sigma > 0)[~one].mean() - 0.15) < 0.03
    assert looks.sigma.max() <= 2.0


def test_one_clip_of_a_video_stands_for_both_in_the_feed(pack_of):
    feed = Feed(pack_of("moving"), Clips(frames=4), Augment(preset="paper"), 0)
    alone = 0
    for epoch in range(6):
        plan = feed.training_plan(epoch, epoch, np.arange(8))
        one = plan.looks.alone >= 0
        alone += int(one.sum())
        assert (plan.start[one, 0] == plan.start[one, 1]).all()
    assert 0 < alone < 48


def test_flips_are_half_of_the_clips_or_none_where_the_recipe_forbids_them():
    for preset in ("light", "crop", "paper"):
        on = drawn_looks(Augment(preset=preset), SIDES, 2, seed=0, epoch=0, instance=IDS).mirror
        off = drawn_looks(Augment(preset=preset, flip=False), SIDES, 2, seed=0, epoch=0, instance=IDS).mirror
        assert abs(on.mean() - 0.5) < 0.03
        assert not off.any()


@quick
@given(st.integers(16, 300), st.integers(16, 300))
def test_crop_is_a_square_of_seven_eighths_of_the_short_side_anywhere_in_the_frame(height, width):
    sides, rows = np.tile(np.array([[height, width]], np.int16), (400, 1)), np.arange(400)
    looks = drawn_looks(Augment(preset="crop"), sides, 1, seed=0, epoch=0, instance=rows)
    start, end = looks.roi_start[:, 0] * sides, looks.roi_end[:, 0] * sides
    side = round(7 / 8 * min(height, width))
    assert np.allclose(end - start, side, atol=1e-2)
    assert np.allclose(start, np.rint(start), atol=1e-3)
    room = np.array([height, width]) - side
    share = start / room
    assert (share > -1e-3).all()
    assert (share < 1 + 1e-3).all()
    assert (np.abs(share.mean(0) - 0.5) < 0.08).all()  # uniform over room + 1 places: sd of the mean .0144 to .025
    assert (np.abs(share.std(0) - np.sqrt((room + 2) / (12 * room))) < 0.05).all()
    assert not looks.coloured.any()
    assert not looks.sigma.any()


def test_a_single_clip_is_changed_three_times_in_ten_and_stands_for_nobody():
    looks = paper(clips=1)
    changed = looks.coloured | (looks.sigma > 0)
    assert (looks.alone == -1).all()
    assert abs(changed.mean() - 0.3 * 0.92) < 0.03


def test_simclr_changes_every_clip_and_crops_as_crop_does():
    looks, crops = (
        drawn_looks(Augment(preset=preset), SIDES, 2, seed=1, epoch=0, instance=IDS) for preset in ("simclr", "crop")
    )
    assert np.array_equal(looks.roi_start, crops.roi_start)
    assert np.array_equal(looks.roi_end, crops.roi_end)
    assert (looks.sigma > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert looks.coloured.mean() == pytest.approx(1 - 0.2 * 0.8, abs=0.02)
    assert (looks.alone == -1).all()  # each clip is its own


def test_the_colour_map_is_brightness_contrast_saturation_and_grey_one_after_the_other():
    looks = paper()
    rgb = np.random.default_rng(0).uniform(0, 255, (500, 3))
    weights = np.array([0.299, 0.587, 0.114])
    pivot = (rgb @ weights).mean()
    grey = 0
    for video, clip in zip(*np.nonzero(looks.coloured), strict=True):
        matrix, lift = looks.matrix[video, clip].astype(float), float(looks.lift[video, clip])
        out = rgb @ matrix.T + lift * pivot
        luma = rgb @ weights
        scale = matrix.sum(1)[0]  # brightness · contrast: what grey is multiplied by
        # Hue and saturation keep luma; so the luma of the result is that of brightness and contrast alone.
        bright = scale + lift
        contrast = scale / bright
        assert np.allclose(out @ weights, contrast * (bright * luma - bright * pivot) + bright * pivot, atol=1e-2)
        assert 0.6 - 1e-3 <= bright <= 1.4 + 1e-3
        assert 0.6 - 1e-3 <= contrast <= 1.4 + 1e-3
        grey += np.allclose(matrix[0], matrix[1]) and np.allclose(matrix[1], matrix[2])
    assert abs(grey / looks.coloured.sum() - 0.2 / 0.84) < 0.04


def test_the_graph_applies_the_colour_map_and_clamps_once(pack_of):
    manifest = pack_of("still")
    clips, plan = run(
        manifest, "paper", Clips(frames=2, size=32, per_video=2), lambda f: f.training_plan(0, 7, np.arange(8))
    )
    plain, _ = run(
        manifest, "none", Clips(frames=2, size=32, per_video=2), lambda f: f.training_plan(0, 7, np.arange(8))
    )
    got = grey_levels(clips).mean((3, 4, 5))
    colour = grey_levels(plain).mean((3, 4, 5))
    looks = plan.looks
    luma = colour @ np.array([0.299, 0.587, 0.114])
    mapped = np.einsum("bncd,bnd->bnc", looks.matrix, colour) + (looks.lift * luma)[..., None]
    wanted = np.where(looks.coloured[..., None], np.clip(mapped, 0, 255), colour)
    assert looks.coloured.any()
    assert not looks.coloured.all()
    assert np.abs(got - wanted).max() < 1.5


@pytest.mark.parametrize("preset", ["none", "light", "crop", "paper"])
def test_a_constant_video_stays_constant_in_time_and_space(pack_of, preset):
    clips, _ = run(pack_of("still"), preset, Clips(frames=5, size=48), lambda f: f.training_plan(0, 1, np.arange(8)))
    assert np.abs(clips - clips[:, :, :, :1]).max() == 0
    assert np.ptp(grey_levels(clips), axis=(4, 5)).max() <= 3.0


def test_crop_resize_and_flip_take_the_drawn_rectangle(pack_of):
    """Frames whose grey level is 20 + x tell where each output column came from."""
    size = 32
    clips, plan = run(
        pack_of("ramp"), "light", Clips(frames=1, size=size), lambda f: f.training_plan(0, 2, np.arange(8))
    )
    start, end = (corner[..., 1:] * plan_width(plan) for corner in (plan.looks.roi_start, plan.looks.roi_end))
    x = start + (np.arange(size) + 0.5) * (end - start) / size - 0.5
    x = np.where(plan.looks.mirror[..., None] == 1, x[..., ::-1], x)
    level = 20 + np.clip(x, 0, plan_width(plan) - 1)
    wanted = (level[:, :, None] - plan.looks.mean[..., None]) / plan.looks.std[..., None]
    got = clips.mean(axis=(3, 4))
    assert plan.looks.mirror.any()
    assert np.abs((got - wanted) * plan.looks.std[..., None]).max() < 2.5


def test_frames_smaller_than_the_manifest_says_are_cropped_inside_themselves(tmp_path):
    """DALI's resize corrupts the heap when it is given a crop outside the frame."""
    videos = [encode(still((90, 90, 90)), 8, 64, 48, "h264") for _ in range(4)]
    manifest = write_pack(tmp_path / "wrong", "h264", videos, [(170, 128)] * 4)
    clips, _ = run(manifest, "light", Clips(frames=2, size=32), lambda f: f.training_plan(0, 0, np.arange(4)))
    assert np.ptp(clips, axis=(3, 4, 5)).max() < 0.1


def plan_width(plan):
    return np.where(np.arange(8) % 3, 170, 128)[plan.instance][:, None, None]


def test_the_centre_crop_is_the_square_of_the_short_side():
    sides = np.array([[128, 170], [160, 128]])
    looks = centre_looks(sides, 1)
    assert np.allclose(looks.roi_start[:, 0] * sides, [[0, 21], [16, 0]])
    assert np.allclose(looks.roi_end[:, 0] * sides, [[128, 149], [144, 128]])


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 2**31))
def test_a_crop_of_whole_pixels_is_resized_as_defined_within_a_level(height, width, size, seed):
    """torch's kernel for bytes against the definition in floats: within a level, for any crop and any size."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 256, (5, height, width, 3), np.uint8)
    (top, bottom), (left, right) = (np.sort(draw.integers(0, side + 1, 2)) for side in (height, width))
    top, left = min(top, height - 1), min(left, width - 1)
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    start, end = np.float32([top / height, left / width]), np.float32([bottom / height, right / width])
    rows = np.array([4, 0, 0, 2])
    got = cut(frames, rows, start, end, size)
    part = frames[rows][:, top:bottom, left:right].astype(float)
    assert got.shape == (4, size, size, 3)
    assert np.abs(got - bilinear(part, size)).max() <= 1.01


def bilinear(frames, size):
    """[n, H, W, 3] → [n, size, size, 3]: each axis by a matrix of weights."""
    for axis in (1, 2):
        length = frames.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(length)))
        frames = np.moveaxis(np.tensordot(weight, frames, (1, axis)), 0, axis)
    return frames


def test_the_graph_constructs_for_a_gpu_too():
    from pipelines.loading.graph import build_pipeline

    for coloured, crops in ((False, 1), (True, 1), (False, 10)):
        build_pipeline(lambda: [], None, Clips(), rows=4, threads=1, device_id=0, coloured=coloured, crops=crops)  # noqa: PIE807


@pytest.fixture(scope="module")
def pack_of(tmp_path_factory):
    made = {}
    painters = {
        "still": [still((200, 60, 90)), still((30, 160, 220)), still((120, 130, 40)), still((90, 90, 90))] * 2,
        "ramp": [ramp] * 8,
        "moving": [moving(i) for i in range(8)],
    }

    def pack(name):
        if name not in made:
            made[name] = make_pack(tmp_path_factory.mktemp(name) / "pack", "h264", painters[name])
        return made[name]

    return pack


def supervised(step, rows=IDS, **augment):
    return drawn_looks(
        Augment(preset="supervised", **augment), SIDES[rows], 1, seed=1, epoch=0, instance=rows, step=step
    )


def test_supervised_crops_as_paper_colours_three_clips_in_ten_and_neither_greys_nor_blurs():
    looks, crops = supervised(0), paper(clips=1)
    assert np.array_equal(looks.roi_start, crops.roi_start)
    assert np.array_equal(looks.roi_end, crops.roi_end)
    assert looks.coloured.mean() == pytest.approx(0.3, abs=0.03)
    assert not looks.sigma.any()
    assert (looks.alone == -1).all()
    # A grey clip has three equal rows, up to the contrast; a jittered one keeps three directions of colour.
    assert (np.linalg.matrix_rank(looks.matrix, tol=1e-3) == 3).all()


def test_supervised_flips_a_whole_step_whoever_makes_its_clips_and_half_of_the_steps():
    flips = []
    for step in range(120):
        ranks = [supervised(step, IDS[:3]).mirror, supervised(step, IDS[50:54]).mirror]
        assert len(np.unique(np.concatenate(ranks))) == 1
        flips.append(int(ranks[0][0, 0]))
    assert np.mean(flips) == pytest.approx(0.5, abs=0.14)
    assert flips[:9] == [int(supervised(step, IDS[:1]).mirror[0, 0]) for step in range(9)]
    assert not any(supervised(step, IDS[:2], flip=False).mirror.any() for step in range(20))


def test_two_ranks_of_a_training_feed_draw_the_flip_of_their_step(pack_of):
    feed = Feed(pack_of("moving"), Clips(frames=4, per_video=1), Augment(preset="supervised"), 0)
    plans = [
        (feed.training_plan(step, 0, np.arange(4)), feed.training_plan(step, 0, np.arange(4, 8))) for step in range(12)
    ]
    seen = [np.unique(np.concatenate([plan.looks.mirror for plan in pair])).tolist() for pair in plans]
    assert all(len(values) == 1 for values in seen)
    assert {values[0] for values in seen} == {0, 1}
