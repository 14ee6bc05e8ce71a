"""What the making of a batch takes, measured in real loaders, and which stage is named as the limit."""

import time

import pytest
import torch

from pipelines.dataset.reader import ShardReader
from pipelines.dataset.shards import RGB
from pipelines.loader import LoaderSpec, TrainLoader
from pipelines.loading.stages import Stages, limit_in_words
from tests.pipelines.small_packs import make_pack
from vidssl.recipe import Augment, Clips, Loader

BATCH, STEPS = 3, 6


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    return {codec: make_pack(root / codec, codec) for codec in ("h264", "vp9")}


def ran(manifest, **loader):
    """A loader that made some batches, and nothing since."""
    spec = LoaderSpec(
        Clips(frames=4, stride=2, size=32, per_video=2),
        Augment(preset="paper"),
        Loader(**{"prefetch": 2, "threads": 1} | loader),
        ("rgb", "residual"),
        BATCH,
        0,
    )
    made = TrainLoader(manifest, spec, rank=0, world=1, device=torch.device("cpu"))
    for _ in range(STEPS):
        made.next()
    made.close()
    return made.meter


@pytest.mark.parametrize(("codec", "decode"), [("h264", "py"), ("vp9", "dali-cpu")])
def test_stages_add_up_to_no_more_than_the_time_that_passed(packs, codec, decode):
    before = time.perf_counter()
    meter = ran(packs[codec], decode=decode)
    passed = time.perf_counter() - before
    row = meter.stages.row(Stages())
    assert meter.stages.batches >= STEPS
    assert sum(meter.stages.seconds.values()) <= passed
    assert row["data/read_ms"] > 0
    assert row["data/decode_ms"] > 0
    assert row["data/handover_ms"] > 0
    assert (row["data/augment_ms"] is None) == (decode == "dali-cpu")  # DALI's own decoder is part of one graph
    assert 0 <= row["data/queue"] <= 1


def test_bytes_are_those_of_the_samples_once_for_each_batch_and_fewer_where_windows_are_read(packs):
    manifest = packs["h264"]
    meter, reader = ran(manifest), ShardReader(manifest)
    spans = [(reader.read(instance), reader._span(instance, RGB).size)[1] for instance in range(len(manifest))]
    reader.close()
    per_batch = meter.stages.bytes_read / meter.stages.batches
    assert BATCH * min(spans) <= per_batch <= BATCH * max(spans)
    fewer = ran(manifest, read="windows").stages
    assert fewer.bytes_read / fewer.batches < per_batch


def test_bytes_go_on_growing_when_a_loader_is_put_back(packs):
    spec = LoaderSpec(Clips(frames=4, size=32), Augment(), Loader(), ("rgb",), BATCH, 0)
    made = TrainLoader(packs["h264"], spec, rank=0, world=1, device=torch.device("cpu"))
    state = made.state_dict()
    made.next(), made.next(), made.next()
    made.close()
    before = made.meter.stages.copy()
    made.load_state_dict(state)
    made.next()
    made.close()
    assert made.meter.stages.row(before)["data/read_mb"] > 0


def test_a_shard_that_answers_late_makes_reading_the_limit(packs, monkeypatch):
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda *given: (time.sleep(0.05), read(*given))[1])
    row = {name: value for name, value in ran(packs["h264"]).stages.row(Stages()).items() if value is not None}
    said = limit_in_words(row | {"wait_ratio": 0.4}, 2)
    assert said.startswith("data is the limit (40 % waiting), most of it read: a batch is made in ")
    assert "2 thread(s)" in said
    assert said.endswith("nearer data, loader.cache or a larger loader.prefetch help")


def test_a_queue_that_is_full_says_that_the_step_is_the_limit():
    row = {"wait_ratio": 0.01, "data/queue": 0.9, "data/read_ms": 1.0, "data/decode_ms": 3.0, "data/handover_ms": 0.5}
    assert limit_in_words(row, 4) == (
        "the step is the limit, not the data (queue 90 % full): a batch is made in 4.5 ms "
        "(read 1.0, decode 3.0, handover 0.5; 0.00 MB read; 4 thread(s))"
    )
    assert limit_in_words({"wait_ratio": 0.5}, 4) == ""
    assert "4 thread(s)), 70 % of it by DALI's decoder and the rest by PyAV" in limit_in_words(
        row | {"data/dali_share": 0.7}, 4
    )


def test_a_row_is_what_happened_since_the_copy():
    stages = Stages()
    with stages.graph(native=False), stages.timed("read"):
        time.sleep(0.02)
    before = stages.copy()
    assert stages.row(before) == dict.fromkeys(stages.row(before))  # nothing happened, nothing is said
    with stages.graph(native=False), stages.timed("decode"):
        time.sleep(0.02)
    row = stages.row(before)
    assert row["data/read_ms"] == 0
    assert row["data/decode_ms"] >= 20
    assert row["data/augment_ms"] < 15
