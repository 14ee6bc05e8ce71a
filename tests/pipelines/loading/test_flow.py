"""Flow through the loader: the frames of its RGB, the same crop, the mirror rule, colours, damage, and packs without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def

from pipelines.dataset.flow import FlowForm, flow_of, luma_of, picture_of
from pipelines.dataset.fmp4 import fragment_table
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.shards import read_index
from pipelines.dataset.verify import verify
from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from pipelines.loading.augment import MEAN, STD
from pipelines.loading.decode import decode_clips
from pipelines.loading.engine import ClipGraph
from pipelines.loading.feed import Feed
from pipelines.loading.graph import build_pipeline
from tests.pipelines.small_packs import encode as encoded
from tests.pipelines.small_packs import encode_luma, make_pack, ramp, write_pack
from vidssl.errors import DataError
from vidssl.flow import decode, encode, to_picture
from vidssl.recipe import Augment, Clips, Loader

CPU = torch.device("cpu")
COMPANDED, PARITY = FlowForm("dis", "companded", 128, 18), FlowForm("dis", "parity", 128, 18)
LENGTHS = (60, 64, 47, 33, 21, 50)
STEP = 3  # grey levels and codes from one frame to the next


def numbered(number: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 20 + STEP * number, np.uint8)


def numbered_flow(number: int, height: int, width: int) -> np.ndarray:
    """u says which frame it is, v is the same code counted from the other end."""
    u = np.full((height, width), 22 + STEP * number, np.uint8)
    return np.concatenate([u, 255 - u], axis=1)


def flow_pack(root, codec, paint, paint_flow, form, sides=(170, 128), lengths=LENGTHS) -> Manifest:
    width, height = sides
    videos = [encoded(paint, n, width, height, codec) for n in lengths]
    flows = [encode_luma([paint_flow(i, height, width) for i in range(n)], codec) for n in lengths]
    return write_pack(root, codec, videos, [sides] * len(lengths), flows=flows, form=form)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    made = {}

    def pack(codec, form=COMPANDED):
        key = (codec, form)
        if key not in made:
            root = tmp_path_factory.mktemp("numbered") / "pack"
            made[key] = flow_pack(root, codec, numbered, numbered_flow, form)
        return made[key]

    return pack


def spec(views=("rgb", "flow"), decode="py", batch=5, preset="none", channels=2, flip=True, **clips) -> LoaderSpec:
    form = Clips(**({"frames": 4, "stride": 2, "size": 32} | clips))
    return LoaderSpec(form, Augment(preset=preset, flip=flip), Loader(decode=decode), views, batch, 0, channels)


def batches(manifest, wanted, count=1):
    loader = TrainLoader(manifest, wanted, rank=0, world=1, device=CPU)
    try:
        return [loader.next() for _ in range(count)]
    finally:
        loader.close()


@pytest.mark.parametrize(
    ("codec", "decode"),
    [("h264", "py"), *(pytest.param("vp9", how, marks=pytest.mark.slow) for how in ("py", "dali-cpu"))],
)
def test_rgb_and_flow_show_the_same_frames_in_500_random_windows(packs, codec, decode):
    table, seen = flow_of("companded"), 0
    for batch in batches(packs(codec), spec(decode=decode, batch=5, per_video=4, size=16), 25):
        rgb = batch.clips["rgb"][:, :, 0, :, 8, 8].numpy() * STD[0] + MEAN[0]
        u = batch.clips["flow"][:, :, 0, :, 8, 8].numpy()
        code = np.abs(table - u[..., None]).argmin(-1)
        assert np.array_equal(np.rint((rgb - 20) / STEP), np.rint((code - 22) / STEP))
        last = np.array(LENGTHS)[batch.instance.numpy()][:, None, None] - 1
        wanted = np.minimum(batch.start.numpy()[..., None] + 2 * np.arange(4), last)
        assert np.array_equal(np.rint((code - 22) / STEP), wanted)
        seen += u.shape[0] * u.shape[1]
    assert seen == 500


def test_both_decoders_give_the_same_flow(packs):
    wanted = spec(views=("flow",), preset="light", batch=6)
    one, other = (batches(packs("vp9"), replace(wanted, loader=Loader(decode=how)))[0] for how in ("py", "dali-cpu"))
    assert torch.equal(one.start, other.start)
    torch.testing.assert_close(one.clips["flow"], other.clips["flow"], atol=1e-5, rtol=0)


def test_grey_levels_that_dali_makes_of_luma_give_the_flow_of_the_luma():
    """Every code once, through DALI's own decoder and colours."""
    lumas = np.arange(128 - 107, 128 + 108)
    video = np.frombuffer(encode_luma([np.full((128, 128), luma, np.uint8) for luma in lumas], "vp9"), np.uint8)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph():
        stored = fn.external_source(source=lambda: [video], batch=True)
        return fn.decoders.video(stored, device="cpu", sequence_length=len(lumas))

    pipeline = graph()
    pipeline.build()
    grey = np.asarray(pipeline.run()[0][0])[:, 64, 64, 0]
    luma = decode_clips(video, fragment_table(video.tobytes()), [0], len(lumas), 1, picture="luma")[0, :, 64, 64, 0]
    assert len(set(luma.tolist())) > 200
    for encoding in ("companded", "parity"):
        assert np.array_equal(flow_of(encoding, "grey")[grey], flow_of(encoding, "luma")[luma])
    assert np.array_equal(picture_of("grey")[grey], picture_of("luma")[luma])


def run(manifest, clips, augment, plan_of=None, views=("rgb", "flow")):
    """The plan of a training step and its decoded streams, [B, n, C, T, S, S] each."""
    feed = Feed(manifest, clips, augment, 3, streams=views)
    plan = feed.training_plan(0, 0, np.arange(len(manifest)))
    plan = plan if plan_of is None else plan_of(plan)
    graph = ClipGraph(
        "py", clips, group=plan.start.shape[1], rows=plan.start.size, threads=1, device=CPU,
        coloured=augment.preset == "paper", streams=views, flow=manifest.flow,
    )  # fmt: skip
    graph.start(lambda: feed.read(plan, (), True)[0])
    ran = graph.run()
    graph.close()
    assert not any(ran.faults)
    return plan, {name: one.numpy().reshape(*plan.start.shape, *one.shape[1:]) for name, one in ran.clips.items()}


def ramp_flow(number, height, width):
    """Code 30 + x in both halves."""
    half = np.broadcast_to(30 + np.arange(width), (height, width)).astype(np.uint8)
    return np.concatenate([half, half], axis=1)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    def pack(form):
        root = tmp_path_factory.mktemp("ramp") / "pack"
        return flow_pack(root, "h264", ramp, ramp_flow, form, lengths=(20,) * 4)

    return {form.encoding: pack(form) for form in (COMPANDED, PARITY)}


def test_rgb_and_flow_show_the_same_part_of_the_frame(ramps):
    """Grey is 20 + x, the code of u and v 30 + x: where a pixel comes from can be read off both."""
    clips, table = Clips(frames=2, size=32), flow_of("companded")
    plan, made = run(ramps["companded"], clips, Augment(preset="light", flip=False))
    plain = replace(
        plan.looks, mean=np.broadcast_to(MEAN, plan.looks.mean.shape), std=np.broadcast_to(STD, plan.looks.std.shape)
    )
    _, made = run(ramps["companded"], clips, Augment(preset="light", flip=False), lambda _: replace(plan, looks=plain))
    x_rgb = made["rgb"][:, :, 0] * STD[0] + MEAN[0] - 20
    x_flow = np.interp(made["flow"], table[21:236], np.arange(21, 236)) - 30
    apart = np.abs(x_rgb[:, :, None] - x_flow)
    assert np.median(apart) < 1  # a decoded ramp is good to a level or two, and where it is cut off at the edge to four
    assert apart.max() < 5
    assert x_rgb.max() - x_rgb.min() > 100


@pytest.mark.parametrize("encoding", ["companded", "parity"])
def test_a_mirror_reverses_columns_and_negates_u_unless_parity(ramps, encoding):
    clips, augment = Clips(frames=2, size=32), Augment(preset="light", flip=False)

    def mirrored(plan):
        return replace(plan, looks=replace(plan.looks, mirror=np.ones_like(plan.looks.mirror)))

    _, plain = run(ramps[encoding], clips, augment)
    _, turned = run(ramps[encoding], clips, augment, mirrored)
    assert np.array_equal(turned["rgb"], plain["rgb"][..., ::-1])
    expected = plain["flow"][..., ::-1].copy()
    if encoding == "companded":
        expected[:, :, 0] *= -1
        assert np.abs(expected[:, :, 0]).max() > 1
    assert np.array_equal(turned["flow"], expected)


@pytest.mark.parametrize("encoding", ["companded", "parity"])
def test_the_last_five_of_ten_crops_are_the_first_five_in_a_mirror(ramps, encoding):
    loader = EvalLoader(
        ramps[encoding], spec(batch=10, frames=2), windows=1, device=CPU, crops="ten", instances=np.arange(1)
    )
    (batch,) = list(loader)
    flow = batch.clips["flow"][:, 0]
    sign = torch.tensor([-1.0 if encoding == "companded" else 1.0, 1.0]).view(2, 1, 1, 1)
    assert flow.shape == (10, 2, 2, 32, 32)
    assert torch.equal(flow[5:], flow[:5].flip(-1) * sign)


def test_colours_and_blur_touch_flow_under_parity_alone(ramps):
    """Every clip is coloured and blurred; the oracle multiplies the matrix itself."""
    clips, augment = Clips(frames=2, size=32), Augment(preset="paper", flip=False)
    matrix = np.array([[0.5, 0.2, 0.0], [0.1, 0.6, 0.1], [0.0, 0.3, 0.7]], np.float32)

    def changed(plan, coloured):
        shape, looks = plan.looks.mirror.shape, plan.looks
        looks = replace(
            looks,
            matrix=np.broadcast_to(matrix, (*shape, 3, 3)),
            lift=np.zeros(shape, np.float32),
            coloured=np.full(shape, coloured),
            sigma=np.zeros(shape, np.float32),
        )
        return replace(plan, looks=looks)

    for encoding in ("companded", "parity"):
        _, plain = run(ramps[encoding], clips, augment, lambda plan: changed(plan, False))
        _, coloured = run(ramps[encoding], clips, augment, lambda plan: changed(plan, True))
        assert not np.allclose(plain["rgb"], coloured["rgb"], atol=0.1)
        if encoding == "companded":
            assert np.array_equal(plain["flow"], coloured["flow"])
            continue
        levels = [one * STD.reshape(3, 1, 1, 1) + MEAN.reshape(3, 1, 1, 1) for one in (plain["flow"], coloured["flow"])]
        expected = np.clip(np.einsum("oc,bnc...->bno...", matrix, levels[0]), 0, 255)
        assert np.abs(expected - levels[1]).max() < 1.01


def test_parity_is_the_published_picture_and_companded_the_same_order_in_pixels(packs):
    mean, std = (torch.tensor(one).view(3, 1, 1, 1) for one in (MEAN, STD))
    for form in (COMPANDED, PARITY):
        three = batches(packs("h264", form), spec(channels=3))[0].clips["flow"]
        two = batches(packs("h264", form), spec(channels=2))[0].clips["flow"]
        assert torch.equal(two, three[:, :, [2, 1]])
        if form is COMPANDED:
            assert not three[:, :, 0].any()
            continue
        codes = three * std + mean
        assert torch.allclose(codes[:, :, 0], torch.tensor(128.0))
        stored = codes[:, :, [2, 1]] * 40 / 255 - 20
        assert torch.allclose(codes / 255, to_picture(stored.flatten(0, 1), 3).view_as(codes), atol=1e-3)


def test_u_and_v_are_grey_pictures_of_the_flow_of_the_same_clips(packs):
    for form in (COMPANDED, PARITY):
        (batch,) = batches(packs("h264", form), spec(views=("rgb", "u", "v", "flow")))
        for number, view in enumerate("uv"):
            assert batch.clips[view].shape == batch.clips["rgb"].shape
            for channel in range(3):
                assert torch.equal(batch.clips[view][:, :, channel], batch.clips["flow"][:, :, number])


def test_frames_before_a_short_video_are_repeated_in_both_streams(tmp_path):
    pack = flow_pack(tmp_path / "pack", "h264", numbered, numbered_flow, COMPANDED, lengths=(5, 5))
    (batch,) = list(EvalLoader(pack, spec(batch=2, frames=8, stride=1), windows=1, device=CPU, rule="p1"))
    rgb = batch.clips["rgb"][:, 0, 0, :, 16, 16].numpy() * STD[0] + MEAN[0]
    assert np.array_equal(np.rint((rgb - 20) / STEP)[0], [0, 0, 0, 0, 1, 2, 3, 4])
    code = np.abs(flow_of("companded") - batch.clips["flow"][:, 0, 0, :, 16, 16].numpy()[..., None]).argmin(-1)
    assert np.array_equal(np.rint((code - 22) / STEP)[0], [0, 0, 0, 0, 1, 2, 3, 4])


def place(manifest: Manifest, instance: int, member: str) -> tuple[int, int, int]:
    shard = int(manifest.samples.shard[instance])
    index = read_index(manifest.shard_path(shard))
    row = instance - manifest.first_of(shard)
    return shard, int(index.offset[member][row]), int(index.size[member][row])


def flip(manifest: Manifest, instance: int, member: str) -> tuple[str, int]:
    shard, offset, size = place(manifest, instance, member)
    byte = offset + size // 2
    with manifest.shard_path(shard).open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 16]))
    return manifest.shards[shard].name, byte


@pytest.mark.parametrize("member", ["flow.mp4", "flow.gop", "flow.json"])
def test_a_flipped_bit_in_the_flow_is_a_bad_sample_for_who_reads_flow_and_named_by_verify(tmp_path, member):
    pack = flow_pack(tmp_path / "pack", "h264", numbered, numbered_flow, COMPANDED, lengths=(21,) * 4)
    name, byte = flip(pack, 2, member)
    (damage,) = verify(pack.root, workers=1).damages
    ((first, stop),) = damage.ranges
    assert (damage.instance, damage.file) == (2, name)
    assert first <= byte < stop
    loaders = {
        views: TrainLoader(pack, spec(views, batch=4), rank=0, world=1, device=CPU)
        for views in (("rgb",), ("rgb", "flow"))
    }
    for loader in loaders.values():
        loader.next()
        loader.close()
    assert loaders["rgb",].meter.bad == []
    (bad,) = loaders["rgb", "flow"].meter.bad
    assert bad.instance == 2
    assert f"bytes {first}-{stop - 1} of {name} are not what was packed (crc32)" in bad.reason


def test_who_wants_flow_alone_reads_no_rgb(tmp_path):
    pack = flow_pack(tmp_path / "pack", "h264", numbered, numbered_flow, COMPANDED, lengths=(21,) * 4)
    flip(pack, 2, "mp4")
    loader = TrainLoader(pack, spec(("flow",), batch=4, preset="paper"), rank=0, world=1, device=CPU)
    (batch, meter) = loader.next(), loader.meter
    loader.close()
    assert list(batch.clips) == ["flow"]
    assert meter.bad == []


def test_a_pack_without_flow_is_refused_with_the_words_that_add_it(tmp_path):
    pack = replace(make_pack(tmp_path / "pack", "h264"), source={"format": "folder", "path": "my videos"})
    words = rf"{pack.root} holds no optical flow, which the view 'u' is made of; type vidssl pack folder 'my videos' {pack.root} add=flow, or"
    with pytest.raises(DataError, match=words):
        TrainLoader(pack, spec(("rgb", "u")), rank=0, world=1, device=CPU)
    with pytest.raises(DataError, match=words):
        EvalLoader(pack, spec(("u",)), windows=1, device=CPU)


def test_a_manifest_keeps_what_its_flow_is_and_an_index_without_it_is_refused(tmp_path):
    pack = flow_pack(tmp_path / "pack", "h264", numbered, numbered_flow, PARITY, lengths=(8, 8))
    assert load_manifest(pack.root).flow == PARITY
    path = pack.index_path(1)
    path.write_text("\n".join(line.split(" flow.")[0] for line in path.read_text().splitlines()) + "\n")
    with pytest.raises(DataError, match=r"shard-00001.idx names no optical flow, which the manifest says there is"):
        load_manifest(pack.root)


def test_the_graph_with_flow_constructs_for_a_gpu_too():
    for form, coloured, crops, streams in (
        (COMPANDED, False, 1, ("rgb", "flow")),
        (COMPANDED, True, 1, ("rgb", "flow")),
        (PARITY, True, 1, ("rgb", "flow")),
        (PARITY, False, 10, ("flow",)),
        (COMPANDED, False, 10, ("flow",)),
    ):
        kind = {"rows": 4, "threads": 1, "device_id": 0, "coloured": coloured, "crops": crops}
        build_pipeline(lambda: [], None, Clips(), **kind, streams=streams, flow=form)  # noqa: PIE807


def test_codes_are_the_formulas_and_no_motion_is_none():
    flow = np.linspace(-25, 25, 5001)
    cut = np.clip(flow, -20, 20)
    back = flow_of("companded")[luma_of(flow, "companded")]
    step = 20 / 107 * (2 * np.sqrt(np.abs(cut) / 20) + 1 / 107)  # from one code to the next
    assert (np.abs(back - cut) <= step / 2 + 20 / (4 * 107**2) + 1e-6).all()
    assert flow_of("companded")[luma_of(np.zeros(3), "companded")].tolist() == [0, 0, 0]
    published = encode(torch.from_numpy(cut)).numpy()
    codes = picture_of()[luma_of(flow, "parity")]
    assert np.array_equal(codes[np.abs(flow) < 13.4], published[np.abs(flow) < 13.4])
    assert np.abs(codes.astype(int) - published).max() == 1
    assert np.allclose(flow_of("parity")[luma_of(flow, "parity")], decode(torch.from_numpy(codes)).numpy(), atol=1e-5)
    assert picture_of()[luma_of(np.zeros(1), "parity")].tolist() == [128]
