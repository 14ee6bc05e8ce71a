from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from pipelines.loading.augment import MEAN, STD
from pipelines.loading.engine import ClipGraph
from pipelines.loading.feed import Feed
from pipelines.loading.windows import spread_starts
from tests.pipelines.small_packs import LENGTHS, damaged_copy, make_pack, stored_video, whole_decode
from vidssl.errors import CheckpointError, DataError, DeviceError
from vidssl.recipe import Augment, Clips, Loader
from vidssl.views import make_views

CPU = torch.device("cpu")
T, STRIDE, SIZE = 4, 2, 32
LEVELS = torch.from_numpy(STD).view(3, 1, 1, 1)  # from normalised values to grey levels


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    return {codec: make_pack(root / codec, codec) for codec in ("h264", "vp9")}


@pytest.fixture
def pack(packs):
    return packs["h264"]


@pytest.fixture
def opened():
    """Makes loaders and closes them."""
    made = []

    def make(manifest, *, rank=0, world=1, state=None, **changes):
        loader = TrainLoader(manifest, spec(**changes), rank=rank, world=world, device=CPU)
        made.append(loader)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    yield make
    for loader in made:
        loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vidssl-loader"]


def spec(
    *, preset="light", batch=3, seed=0, views=("rgb",), decode="auto", budget=20, prefetch=2, threads=1, per_video=2
):
    return LoaderSpec(
        Clips(frames=T, stride=STRIDE, size=SIZE, per_video=per_video),
        Augment(preset=preset),
        Loader(decode=decode, threads=threads, prefetch=prefetch, bad_floor=budget, bad_rate=0.0),
        views,
        batch,
        seed,
    )


def same(one, other):
    return (
        torch.equal(one.instance, other.instance)
        and torch.equal(one.start, other.start)
        and (one.step, one.epoch) == (other.step, other.epoch)
        and all(torch.equal(one.clips[view], other.clips[view]) for view in one.clips)
    )


def centre_crop(frames):
    """Square of the short side, resized by torch; a second opinion on geometry and normalisation."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(frames[:, top : top + side, left : left + side]).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=False, align_corners=False)
    normal = (small - torch.from_numpy(MEAN).view(3, 1, 1)) / torch.from_numpy(STD).view(3, 1, 1)
    return normal.permute(1, 0, 2, 3)


@pytest.mark.parametrize(("codec", "decode"), [("h264", "py"), ("vp9", "dali-cpu"), ("vp9", "py")])
def test_a_row_is_what_its_instance_and_starts_say(packs, opened, codec, decode):
    manifest = packs[codec]
    loader = opened(manifest, preset="none", decode=decode)
    for _ in range(4):
        batch = loader.next()
        assert batch.clips["rgb"].shape == (3, 2, 3, T, SIZE, SIZE)
        assert batch.group.tolist() == (batch.instance // 2).tolist()
        assert batch.label.tolist() == (batch.instance % 3).tolist()
        for row, instance in enumerate(batch.instance.tolist()):
            frames = whole_decode(stored_video(manifest, instance))
            for clip, start in enumerate(batch.start[row].tolist()):
                numbers = np.minimum(start + STRIDE * np.arange(T), LENGTHS[instance] - 1)
                levels = (batch.clips["rgb"][row, clip] - centre_crop(frames[numbers])) * LEVELS
                assert levels.abs().mean() < 1.2  # grey levels: DALI converts colours a little differently
                assert levels.abs().max() < 9


def test_upcoming_batches_are_the_ones_delivered_later(pack, opened):
    loader = opened(pack)
    promised = {}
    for step in range(7):
        for ahead in (1, 2, 3):
            promised.setdefault(step + ahead - 1, []).append(loader.upcoming(ahead).tolist())
        batch = loader.next()
        assert batch.step == step
        assert (
            batch.epoch == 3 * step // 8
        )  # of its first row: a step may bring the end of one epoch and the start of the next
        assert all(ids == batch.instance.tolist() for ids in promised[step])


@pytest.mark.parametrize("preset", ["light", "paper"])
def test_a_resumed_loader_goes_on_as_the_straight_one_did(pack, opened, preset):
    straight = opened(pack, preset=preset, prefetch=3)
    batches, states = [], []
    for _ in range(9):
        batches.append(straight.next())
        states.append(json.loads(json.dumps(straight.state_dict())))
    for done in (1, 2, 5):
        resumed = opened(pack, preset=preset, state=states[done - 1])
        assert all(same(resumed.next(), batches[step]) for step in range(done, 9))


def test_one_loader_can_be_put_back_to_an_earlier_state(pack, opened):
    loader = opened(pack)
    first = loader.next()
    state = loader.state_dict()
    second = loader.next()
    loader.upcoming(3)
    loader.load_state_dict(state)
    assert loader.upcoming(1).tolist() == second.instance.tolist()
    again = loader.next()
    assert same(second, again)
    assert not same(first, again)


def test_workers_split_the_batches_of_a_single_one_pixel_for_pixel(pack, opened):
    alone, pair = opened(pack, batch=4), [opened(pack, batch=2, rank=rank, world=2) for rank in range(2)]
    for _ in range(5):
        whole, parts = alone.next(), [loader.next() for loader in pair]
        assert torch.equal(whole.instance, torch.cat([part.instance for part in parts]))
        assert torch.equal(whole.clips["rgb"], torch.cat([part.clips["rgb"] for part in parts]))


def test_threads_and_prefetch_change_nothing(pack, opened):
    one, other = opened(pack, threads=1, prefetch=1), opened(pack, threads=2, prefetch=4)
    assert all(same(one.next(), other.next()) for _ in range(4))


def test_delivered_clips_are_never_written_to_again(packs, opened):
    for codec in packs:
        loader = opened(packs[codec])
        batches = [loader.next() for _ in range(3)]
        copies = [batch.clips["rgb"].clone() for batch in batches]
        for _ in range(6):
            loader.next()
        assert all(torch.equal(batch.clips["rgb"], copy) for batch, copy in zip(batches, copies, strict=True))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_loaders_that_are_closed_leave_no_thread_of_dali_and_their_clips_stay(packs, opened, codec):
    """DALI has a dozen threads for each graph: an evaluation after each of 500 epochs would have thousands."""

    def threads():
        return len(os.listdir("/proc/self/task"))

    before, kept = threads(), []
    for _ in range(3):
        loader = opened(packs[codec])
        batch = loader.next()
        loader.close()
        kept.append((batch, {view: clips.clone() for view, clips in batch.clips.items()}))
        shown = EvalLoader(packs[codec], spec(batch=4), windows=1, device=CPU)
        assert sum(len(one.instance) for one in shown) == len(packs[codec])
        shown.close()
    gc.collect()
    assert threads() <= before + 2
    assert all(torch.equal(batch.clips[view], copy) for batch, copies in kept for view, copy in copies.items())


def test_views_show_the_same_frames_crop_and_flip(pack, opened):
    batch = opened(pack, views=("residual", "rgb"), preset="paper").next()
    assert tuple(batch.clips) == ("residual", "rgb")
    assert torch.equal(batch.clips["residual"], make_views(batch.clips["rgb"], ["residual"])["residual"])


def clips_by_video(batches, manifest_rows=8):
    """(pass over the data, video) → its clips: the n-th time that a video comes is the n-th pass."""
    found, times = {}, dict.fromkeys(range(manifest_rows), 0)
    for batch in batches:
        for row, video in enumerate(batch.instance.tolist()):
            found[times[video], video] = batch.clips["rgb"][row]
            times[video] += 1
    return found


def test_other_workers_and_batches_go_on_with_the_same_epoch_and_the_same_pixels(pack, opened):
    """8 videos: 2x2 for one step, 1x3 for two, 3x1 for two: the middle of an epoch, and over its end."""
    batches, state, seen = [], None, 0
    for world, batch, steps in ((2, 2, 1), (1, 3, 2), (3, 1, 2)):
        ranks = [opened(pack, batch=batch, rank=rank, world=world, state=state) for rank in range(world)]
        for _ in range(steps):
            parts = [loader.next() for loader in ranks]
            assert len({part.epoch for part in parts}) == len({part.step for part in parts}) == 1
            batches += parts
        seen += steps * world * batch
        assert {loader.seen for loader in ranks} == {seen}
        states = [json.loads(json.dumps(loader.state_dict())) for loader in ranks]
        assert all(one == states[0] for one in states)  # so that any rank may go on from any rank's
        state = states[0]
    assert state["step"] == 5
    found, straight = clips_by_video(batches), opened(pack, batch=8)
    assert set(found) == {(0, video) for video in range(8)} | {(1, video) for _, video in found if (1, video) in found}
    assert len(found) == seen == 16
    wanted = clips_by_video([straight.next() for _ in range(2)])
    assert all(torch.equal(found[key], wanted[key]) for key in found)


def test_a_state_of_another_order_is_refused(pack, opened):
    state = opened(pack).state_dict()
    with pytest.raises(CheckpointError, match="the loader's state has seed=0, this run has 1"):
        opened(pack, state=state, seed=1)


def test_a_state_without_a_cursor_goes_on_where_its_run_stood(pack, opened):
    """8 videos, 3 a step, the last two of an epoch left out: three steps are one epoch and one step of the next."""
    old = {"data": pack.hash, "split": None, "seed": 0, "batch": 3, "world": 1, "step": 3}
    for world in (1, 2):
        ranks = [opened(pack, rank=rank, world=world, state=old) for rank in range(world)]
        assert [loader.seen for loader in ranks] == [11] * world
        both = [
            opened(pack, rank=rank, world=world, state=old | {"epoch": 1, "taken": 3, "owed": []})
            for rank in range(world)
        ]
        for one, other in zip(ranks, both, strict=True):
            assert same(one.next(), other.next())
        assert ranks[0].state_dict()["step"] == 4


def test_a_state_of_other_data_is_refused(packs, opened):
    state = opened(packs["h264"]).state_dict()
    with pytest.raises(CheckpointError, match="the loader's state has data="):
        opened(packs["vp9"], state=state)


def test_too_few_videos_and_unknown_splits_are_refused(pack, opened):
    with pytest.raises(DataError, match=r"8 videos are fewer than one step needs \(9 on each of 1 workers\)"):
        opened(pack, batch=9)
    with pytest.raises(DataError, match="has no split 'train'"):
        TrainLoader(pack, spec(), rank=0, world=1, device=CPU, split="train")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(pack):
    with pytest.raises(DeviceError, match=r"this machine has no usable GPU; type trainer\.device=cpu"):
        TrainLoader(pack, spec(), rank=0, world=1, device=torch.device("cuda", 0))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("where", ["head", "body"])
def test_a_bad_video_gives_its_row_to_the_next_one_and_is_named_once(packs, opened, tmp_path, codec, where):
    manifest = damaged_copy(packs[codec], tmp_path / "bad", [5], where)
    good, loader = opened(packs[codec], batch=4), opened(manifest, batch=4)
    rows = 0
    for _ in range(6):  # three epochs
        wanted, batch = good.next(), loader.next()
        bad = wanted.instance == 5
        donor = torch.roll(torch.arange(4), -1)
        taken = torch.where(bad, donor, torch.arange(4))
        assert torch.equal(batch.instance, wanted.instance[taken])
        assert torch.equal(batch.start, wanted.start[taken])
        assert (batch.clips["rgb"] - wanted.clips["rgb"][taken]).abs().mean() < 0.05  # PyAV stands in for DALI
        rows += int(bad.sum())
    assert rows == 3
    assert [(bad.instance, bad.key) for bad in loader.meter.bad] == [(5, "00000005")]
    assert loader.meter.bad[0].reason.startswith("videos/5.mp4: ")


def test_a_resumed_loader_tries_the_bad_videos_again_and_delivers_what_the_straight_one_did(packs, opened, tmp_path):
    manifest = damaged_copy(packs["vp9"], tmp_path / "bad", [2, 5], "body")
    straight = opened(manifest, batch=4, decode="py")
    batches, states = [], []
    for _ in range(8):
        batches.append(straight.next())
        states.append(json.loads(json.dumps(straight.state_dict())))
    assert {bad.instance for bad in straight.meter.bad} == {2, 5}
    for done in (1, 3, 5):
        resumed = opened(manifest, batch=4, decode="py", state=states[done - 1])
        assert all(same(resumed.next(), batches[step]) for step in range(done, 8))
        assert resumed.state_dict() == states[-1]
        assert {bad.instance for bad in resumed.meter.bad} == {2, 5}


def test_the_error_budget_stops_the_run_with_the_last_reason(packs, opened, tmp_path):
    manifest = damaged_copy(packs["h264"], tmp_path / "bad", [1, 3, 6], "body")
    loader = opened(manifest, batch=8, budget=2)
    with pytest.raises(
        DataError,
        match=r"3 of 8 videos tried so far are bad, loader\.bad_floor=2 or loader\.bad_rate=0 of them are allowed; .*0000000\d",
    ):
        loader.next()


def test_a_batch_without_one_good_video_is_an_error(packs, opened, tmp_path):
    manifest = damaged_copy(packs["h264"], tmp_path / "bad", range(8), "head")
    with pytest.raises(DataError, match="none of the 4 videos of a batch can be read"):
        opened(manifest, batch=4).next()


def test_a_native_failure_that_pyav_does_not_share_costs_budget_and_no_clip(packs, opened, monkeypatch):
    wanted = [opened(packs["vp9"], decode="py").next()]
    run, failed = ClipGraph.run, []

    def flaky(graph):
        if graph.decode == "dali-cpu" and not failed:
            failed.append(run(graph))
            raise RuntimeError("decoder\nout of sorts")
        return run(graph)

    monkeypatch.setattr(ClipGraph, "run", flaky)
    loader = opened(packs["vp9"], decode="dali-cpu")
    batches = [loader.next() for _ in range(3)]
    assert same(batches[0], wanted[0])
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert [(bad.instance, bad.key) for bad in loader.meter.bad] == [(-1, "step 0")]
    assert loader.meter.bad[0].reason == "dali-cpu failed, PyAV did not: out of sorts"


def test_an_exception_of_the_loader_thread_reaches_next_as_it_is(pack, opened, monkeypatch):
    class Odd(Exception):
        pass

    def broken(*_):
        raise Odd("in the feed")

    monkeypatch.setattr(Feed, "training_plan", broken)
    with pytest.raises(Odd, match="in the feed"):
        opened(pack).next()


def test_the_meter_counts_batches_and_waiting(pack, opened):
    loader = opened(pack)
    for _ in range(3):
        loader.next()
    first = loader.meter.read_wait()
    assert loader.meter.batches == 3
    assert first == loader.meter.wait_s > 0
    assert loader.meter.read_wait() == 0


def windows_of(manifest, *, batch=5, windows=3, instances=None, decode="auto"):
    loader = EvalLoader(manifest, spec(batch=batch, decode=decode), windows=windows, device=CPU, instances=instances)
    batches = list(loader)
    return loader, {
        (int(batch.instance[row]), int(batch.start[row, 0])): batch.clips["rgb"][row, 0]
        for batch in batches
        for row in range(batch.size)
    }


def test_evaluation_shows_each_spread_window_once_in_order(pack):
    wanted = np.array([6, 0, 5, 3])
    loader, shown = windows_of(pack, instances=wanted)
    expected = [(int(i), int(s)) for i in wanted for s in spread_starts(LENGTHS[i], T, STRIDE, 3)]
    assert list(shown) == expected
    assert len(loader) == -(-len(expected) // 5)
    for (instance, start), clip in shown.items():
        frames = whole_decode(stored_video(pack, instance))
        numbers = np.minimum(start + STRIDE * np.arange(T), LENGTHS[instance] - 1)
        assert ((clip - centre_crop(frames[numbers])) * LEVELS).abs().max() < 2


def test_evaluation_does_not_depend_on_the_batch_size(packs):
    for codec in packs:
        _, one = windows_of(packs[codec], batch=1)
        _, many = windows_of(packs[codec], batch=7)
        assert list(one) == list(many)
        assert all(torch.equal(one[key], many[key]) for key in one)


@pytest.mark.parametrize(
    ("codec", "where", "batch"), [("h264", "head", 1), ("h264", "body", 4), ("vp9", "head", 4), ("vp9", "body", 1)]
)
def test_evaluation_leaves_bad_videos_out_and_names_them(packs, tmp_path, codec, where, batch):
    manifest = damaged_copy(packs[codec], tmp_path / "bad", [2, 7], where)
    _, whole = windows_of(packs[codec], decode="py")
    loader, shown = windows_of(manifest, batch=batch)
    assert list(shown) == [key for key in whole if key[0] not in (2, 7)]
    assert [bad.instance for bad in loader.meter.bad] == [2, 7]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_an_evaluation_that_is_left_half_way_ends_its_thread(pack, closed):
    loader = EvalLoader(pack, spec(batch=1), windows=4, device=CPU)
    for _ in loader:
        assert "vidssl-windows" in [thread.name for thread in threading.enumerate()]
        break  # the iterator is dropped here, and with it its thread ends
    if closed:
        loader.close()
    assert "vidssl-windows" not in [thread.name for thread in threading.enumerate()]


LARGE_BLOCKS = """
import ctypes, sys, torch
from pipelines.dataset.manifest import load_manifest
from pipelines.loader import LoaderSpec, TrainLoader
from vidssl.recipe import Augment, Clips, Loader
spec = LoaderSpec(Clips(frames=4, stride=2, size=32), Augment(), Loader(decode=sys.argv[2]), ("rgb",), batch=3, seed=0)
loader = TrainLoader(load_manifest(sys.argv[1]), spec, rank=0, world=1, device=torch.device("cpu"))
next(loader)
loader.close()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(2**24))  # glibc keeps blocks up to the largest that was freed
block = libc.malloc(2**22)
print("mapped" if ctypes.c_size_t.from_address(block - 8).value & 2 else "kept")
"""


@pytest.mark.parametrize(("codec", "decode", "freed"), [("vp9", "dali-cpu", "mapped"), ("h264", "py", "kept")])
def test_what_dalis_cpu_decoder_frees_goes_back_to_the_system(packs, codec, decode, freed):
    """Else resident memory goes up and down by a tenth from batch to batch, and looks as if it grew."""
    words = [sys.executable, "-W", "ignore", "-c", LARGE_BLOCKS, str(packs[codec].root), decode]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1] == freed
