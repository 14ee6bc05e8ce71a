"""Two decoders for one batch: whose pixels a row has, what happens to bad videos, and how the share finds its place."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from pipelines.loading.decode import resolve_decode
from pipelines.loading.engine import ClipGraph
from pipelines.loading.mixed import BATCHES, Share
from tests.pipelines.small_packs import damaged_copy, make_pack
from vidssl.errors import DataError, RecipeError
from vidssl.recipe import Augment, Clips, Loader, load_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_pack(tmp_path_factory.mktemp("packs") / "vp9", "vp9")


@pytest.fixture
def opened():
    made = []

    def make(manifest, decode, *, batch=4, preset="light", threads=1):
        spec = LoaderSpec(
            Clips(frames=4, stride=2, size=32),
            Augment(preset=preset),
            Loader(decode=decode, threads=threads, bad_floor=20, bad_rate=0.0),
            ("rgb",),
            batch,
            0,
        )
        made.append(TrainLoader(manifest, spec, rank=0, world=1, device=CPU))
        return made[-1]

    yield make
    for loader in made:
        loader.close()
    names = ("vidssl-loader", "decode", "decode-mixed")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.mark.parametrize("preset", ["light", "paper"])
def test_the_first_rows_are_dalis_and_the_rest_pyavs_pixel_for_pixel(pack, opened, preset):
    mixed, dali, py = (opened(pack, decode, preset=preset) for decode in ("mixed", "dali-cpu", "py"))
    by_dali = []
    for _ in range(6):
        batch, first, rest = mixed.next(), dali.next(), py.next()
        assert torch.equal(batch.instance, first.instance)
        assert torch.equal(batch.start, first.start)
        theirs = [torch.equal(batch.clips["rgb"][row], first.clips["rgb"][row]) for row in range(4)]
        ours = [torch.equal(batch.clips["rgb"][row], rest.clips["rgb"][row]) for row in range(4)]
        assert all(one or other for one, other in zip(theirs, ours, strict=True))
        assert theirs == sorted(theirs, reverse=True)
        by_dali.append(sum(theirs))
    assert all(1 <= rows <= 3 for rows in by_dali)


def test_what_the_loader_says_of_the_share_is_in_its_row_and_its_sentence(pack, opened):
    loader = opened(pack, "mixed")
    before = loader.meter.stages.copy()
    for _ in range(3):
        loader.next()
    row = loader.meter.stages.copy().row(before)
    assert 0.25 <= row["data/dali_share"] <= 0.75
    assert "data/dali_share" not in opened(pack, "py").meter.stages.copy().row(before)


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_bad_video_gives_its_row_to_the_next_one_whoever_decodes_it(pack, opened, tmp_path, where):
    loader, good = opened(damaged_copy(pack, tmp_path / "bad", [5], where), "mixed"), opened(pack, "mixed")
    rows = 0
    for _ in range(6):
        wanted, batch = good.next(), loader.next()
        bad = wanted.instance == 5
        taken = torch.where(bad, torch.roll(torch.arange(4), -1), torch.arange(4))
        assert torch.equal(batch.instance, wanted.instance[taken])
        assert (batch.clips["rgb"] - wanted.clips["rgb"][taken]).abs().mean() < 0.05
        rows += int(bad.sum())
    assert rows == 3
    assert [bad.instance for bad in loader.meter.bad] == [5]


def test_a_batch_of_one_video_is_decoded_too(pack, opened):
    mixed, dali = opened(pack, "mixed", batch=1), opened(pack, "dali-cpu", batch=1)
    for _ in range(3):
        one, other = mixed.next(), dali.next()
        assert torch.equal(one.instance, other.instance)
        assert torch.equal(one.clips["rgb"], other.clips["rgb"])


def test_a_failure_of_dali_costs_budget_and_no_clip(pack, opened, monkeypatch):
    wanted, run, failed = opened(pack, "py").next(), ClipGraph.run, []

    def flaky(graph):
        if graph.decode == "dali-cpu" and not failed:
            failed.append(run(graph))
            raise RuntimeError("decoder\nout of sorts")
        return run(graph)

    monkeypatch.setattr(ClipGraph, "run", flaky)
    loader = opened(pack, "mixed")
    batches = [loader.next() for _ in range(3)]
    assert torch.equal(batches[0].clips["rgb"], wanted.clips["rgb"])
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert [bad.reason for bad in loader.meter.bad] == ["mixed failed, PyAV did not: out of sorts"]


def test_what_is_measured_is_decoded_by_one(pack):
    spec = LoaderSpec(Clips(frames=4, stride=2, size=32), Augment(), Loader(decode="mixed"), ("rgb",), 4, 0)
    assert EvalLoader(pack, spec, windows=1, device=CPU).decode == "dali-cpu"
    assert resolve_decode("mixed", "h264", CUDA) == "nvdec"
    assert resolve_decode("mixed", "h264", CUDA, training=True) == "mixed"


def test_it_is_refused_where_there_is_one_decoder_or_a_run_is_to_repeat():
    with pytest.raises(
        DataError, match=r"needs two decoders, and DALI does not decode h264 on a CPU; type loader\.decode=py"
    ):
        resolve_decode("mixed", "h264", CPU, training=True)
    with pytest.raises(RecipeError, match=r"loader\.decode=mixed gives each decoder .* type loader\.decode=auto"):
        load_recipe("cpr-tiny", ["loader.decode=mixed", "trainer.deterministic=true"])


@given(st.integers(2, 128), st.floats(0.05, 20))
def test_the_share_comes_to_where_both_take_as_long(rows, faster):
    share = Share(rows)
    for _ in range(BATCHES * 40):
        first = share.of(rows)
        share.told(first / faster, float(rows - first))
    ideal = min(max(rows * faster / (1 + faster), 1), rows - 1)
    assert abs(share.of(rows) - ideal) <= 2 * max(rows // 16, 1)


@given(st.integers(2, 64), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=60))
def test_each_decoder_has_a_video_of_every_batch_whatever_it_takes(most, part, told):
    share = Share(most)
    for pair in told:
        share.told(*pair)
    rows = 2 + round(part * (most - 2))
    assert share.of(rows) in range(1, rows)
