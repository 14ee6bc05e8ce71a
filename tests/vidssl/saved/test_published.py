"""Importing published checkpoints: names, prefixes, aliases, architectures, and what is refused."""

import fractions
import os
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from vidssl.backbones import build_backbone
from vidssl.encoder import Encoder, build_encoder
from vidssl.errors import CheckpointError, RecipeError
from vidssl.recipe import Model
from vidssl.saved.published import (
    KeyReport,
    from_coclr,
    from_iic,
    from_vicc,
    import_published,
    read_published,
    recognise,
    to_coclr,
)
from vidssl.saved.published.fit import compare
from vidssl.saved.published.layouts import translate
from vidssl.saved.published.shapes import encoder_in


def model_of(source, state):
    return encoder_in(translate(source, state).artifact).model


def report_of(encoder, state, which="encoder_q"):
    """What becomes of the keys of a published state where it is held against an encoder."""
    return compare(translate(recognise(state), state, which), encoder.state_dict())


PUBLISHED = ("tiny", "s3d", "s3dg", "r21d10", "r21d18", "r3d10", "r3d18", "c3d", "r2d3d50", "r18_2d3d")


class Block(nn.Module):
    features = 4

    def __init__(self):
        super().__init__()
        self.block1 = nn.Conv3d(3, 4, 1)

    def forward(self, clips):
        return self.block1(clips)


@pytest.fixture
def file():
    """A published-looking checkpoint of an encoder, with an alias, a key encoder and a queue."""
    torch.manual_seed(0)
    encoder = Encoder(Block(), 5)
    state = to_coclr(encoder.state_dict())
    state["encoder_q.0.Conv_1a.weight"] = torch.full((4, 3, 1, 1, 1), 9.0)
    state |= {key.replace("encoder_q", "encoder_k"): 2 * value for key, value in to_coclr(encoder.state_dict()).items()}
    return encoder, state | {"queue": torch.zeros(5, 8)}


def test_export_and_import_are_inverse_and_heads_are_pointwise_convolutions(file):
    encoder, state = file
    assert state["encoder_q.2.weight"].shape == (4, 4, 1, 1, 1)
    back = from_coclr(state)
    assert back.keys() == encoder.state_dict().keys()
    for key, value in encoder.state_dict().items():
        assert torch.equal(back[key], value), key


def test_either_encoder_can_be_read_with_or_without_the_prefix_of_ddp(file):
    encoder, state = file
    prefixed = {f"module.{key}": value for key, value in state.items()}
    assert torch.equal(from_coclr(prefixed, "encoder_k")["head.0.bias"], 2 * encoder.head[0].bias)
    report = report_of(encoder, prefixed, "encoder_k")
    assert "module.queue" in report.ignored
    assert set(report.loaded) == set(encoder.state_dict())


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: s])
def test_files_are_read_in_all_published_wrappings(file, tmp_path, wrap):
    _, state = file
    torch.save(wrap({f"module.{key}": value for key, value in state.items()}), tmp_path / "epoch299.pth.tar")
    found = read_published(tmp_path / "epoch299.pth.tar")
    assert found.keys() == state.keys()


def test_another_encoder_is_refused(file):
    _, state = file
    with pytest.raises(CheckpointError, match=r"2 have another shape \(first: head\.2\.bias\); set model\.backbone"):
        report_of(Encoder(Block(), 6), state)
    del state["encoder_q.4.bias"]
    state["encoder_q.0.block9.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 layers are missing in it, 1 are unknown"):
        report_of(Encoder(Block(), 5), state)


def test_a_file_without_such_an_encoder_is_refused_with_what_it_has():
    with pytest.raises(CheckpointError, match=r"no key begins with 'encoder_q\.'; this file has backbone, queue"):
        from_coclr({"queue": torch.zeros(1), "backbone.x": torch.zeros(1)})


def test_files_that_are_no_safe_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_published(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="is no checkpoint that can be read safely"):
        read_published(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_published(tmp_path / "list.pth")


@pytest.fixture
def tiny():
    """A small encoder, and its weights under CoCLR's names beside all that CoCLR's two-stream training saves."""
    torch.manual_seed(1)
    encoder = build_encoder(Model(backbone="tiny", width=4, dim=6))
    state = to_coclr(encoder.state_dict())
    for other in ("encoder_k", "sampler"):
        state |= {key: rows + 1 for key, rows in to_coclr(encoder.state_dict(), other).items()}
    queues = {"queue": torch.zeros(6, 8), "queue_second": torch.zeros(6, 8), "queue_label": torch.zeros(8).long()}
    return encoder, state | queues


def test_a_file_says_itself_what_it_is_and_every_key_is_accounted_for(tiny, tmp_path):
    encoder, state = tiny
    torch.save({"state_dict": state, "epoch": 99}, tmp_path / "file.pth")
    found = import_published(tmp_path / "file.pth")
    assert found.source == "coclr"
    assert found.model == Model(backbone="tiny", width=4, dim=6, flow_channels=3)
    build_encoder(found.model).load_state_dict(found.artifact)
    assert all(torch.equal(rows, found.artifact[key]) for key, rows in encoder.state_dict().items())
    report = found.report
    assert len(report.loaded) + len(report.ignored) + len(report.doubles) == len(state)
    assert not report.missing
    assert not report.unexpected
    n = len(encoder.state_dict())
    assert report.lines() == [
        f"loaded {n} tensors: backbone {n - 4}, head 4",
        f"not part of the encoder, left out: encoder_k {n} (the momentum twin)",
        f"not part of the encoder, left out: sampler {n} (the frozen second stream)",
        "not part of the encoder, left out: queue 1 (queue of the run)",
        "not part of the encoder, left out: queue_second 1 (queue of the run)",
        "not part of the encoder, left out: queue_label 1 (queue of the run)",
    ]


def test_importing_draws_nothing_from_the_callers_generator(tiny, tmp_path):
    torch.save({"state_dict": tiny[1]}, tmp_path / "file.pth")
    before = torch.get_rng_state()
    import_published(tmp_path / "file.pth")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_frozen_second_stream_of_a_file_can_be_read_as_well(tiny, tmp_path):
    encoder, state = tiny
    torch.save({"state_dict": state}, tmp_path / "file.pth")
    found = import_published(tmp_path / "file.pth", "cpr", encoder="sampler")
    assert found.source == "cpr"
    assert torch.equal(found.artifact["head.2.bias"], encoder.head[2].bias + 1)
    assert "encoder_q.4.bias" in found.report.ignored


def test_prototypes_of_vicc_stand_beside_the_encoder_and_its_second_stream_is_left_out(tiny):
    encoder, _ = tiny
    own, other = to_coclr(encoder.state_dict()), to_coclr(encoder.state_dict(), "second")
    state = own | other | {"prototypes.weight": torch.ones(30, 6), "prototypes_second.weight": torch.zeros(30, 6)}
    assert recognise(state) == "vicc"
    artifact = from_vicc(state)
    assert artifact.keys() == encoder.state_dict().keys() | {"extra.prototypes.weight"}
    assert artifact["extra.prototypes.weight"].sum() == 180
    assert to_coclr(artifact).keys() == own.keys() | {"prototypes.weight"}
    assert "extra.prototypes.weight" not in from_vicc(state, "second")  # they belong to the trained stream
    assert set(report_of(encoder, state).ignored) == other.keys() | {"prototypes_second.weight"}


@pytest.mark.parametrize("name", ["r3d10", "r21d10", "c3d"])
def test_iics_bare_networks_are_recognised_and_their_classifier_is_left_out(name):
    with torch.device("meta"):
        bare = build_backbone(Model(backbone=name)).state_dict()
    state = {f"module.{key}": rows for key, rows in bare.items()} | {"module.linear.weight": torch.zeros(101, 512)}
    assert recognise(state) == "iic"
    assert from_iic(state).keys() == {f"backbone.{key}" for key in bare}
    assert model_of("iic", state) == Model(backbone=name, head="none", dim=512, flow_channels=3)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("channels", [2, 3])
def test_backbone_dim_and_channels_are_read_from_names_and_shapes(name, channels):
    told = Model(backbone=name, dim=48, flow_channels=channels)
    with torch.device("meta"):
        state = to_coclr(build_encoder(told, "flow").state_dict())
    assert model_of("coclr", state) == told


def test_clips_of_another_number_of_channels_are_refused():
    state = {f"encoder_q.0.{key}": rows for key, rows in build_backbone(Model(), in_channels=5).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"sees clips of 5 channels; a stream has 3, or 2"):
        model_of("coclr", state)


def test_counters_of_batch_norm_may_be_missing_and_start_at_zero(tiny, tmp_path):
    encoder, state = tiny
    old = {key: rows for key, rows in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "file.pth")
    found = import_published(tmp_path / "file.pth")
    assert len(found.report.missing) == 5
    assert "missing 5, left as they start: backbone.block1.1.num_batches_tracked, " in found.report.lines()[1]
    build_encoder(found.model).load_state_dict(found.artifact)
    assert report_of(encoder, old).missing == found.report.missing


@pytest.mark.parametrize("gone", ["encoder_q.0.block2.1.running_mean", "encoder_q.2.bias"])
def test_a_file_with_a_layer_missing_or_too_many_is_refused(tiny, tmp_path, gone):
    _, state = tiny
    for broken in ({k: v for k, v in state.items() if k != gone}, state | {"encoder_q.6.weight": torch.ones(1)}):
        torch.save({"state_dict": broken}, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=r"of another encoder: .* \(first: (backbone|head|encoder_q\.6)"):
            import_published(tmp_path / "file.pth")


def test_files_of_other_layouts_and_unknown_sources_are_refused(tiny):
    with pytest.raises(CheckpointError, match=r"of no known layout: it has backbone, final_fc; coclr and cpr have"):
        recognise({"backbone.block1.0.conv1.weight": torch.ones(1), "final_fc.1.weight": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"no key begins with 'conv1\.'; this file has encoder_k, encoder_q, queue"
    ):
        from_iic(tiny[1])
    with pytest.raises(CheckpointError, match=r"the backbone in this file is none of ours: it has patch_embed"):
        model_of("coclr", {"encoder_q.0.patch_embed.weight": torch.ones(1)})
    with pytest.raises(
        RecipeError, match=r"--from colcr is unknown; use one of coclr, .*; did you mean '--from coclr'\?"
    ):
        model_of("colcr", tiny[1])


@pytest.mark.parametrize("zipped", [True, False])
def test_options_and_numpy_numbers_beside_the_weights_are_read_over(tiny, tmp_path, zipped):
    besides = {"opt": Namespace(lr=0.1, steps=[1, 2]), "best_acc": np.float64(0.5), "optimizer": {"state": {}}}
    whole = besides | {"model": tiny[1]}
    torch.save(whole, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    assert read_published(tmp_path / "file.pth").keys() == tiny[1].keys()


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function, *given):
        self.call = function, given

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["posix.system", "eval", "fractions.Fraction", "torch.serialization.load"])
def test_a_file_that_needs_code_is_refused_in_one_sentence_without_running_it(tiny, tmp_path, name):
    trap = tmp_path / "ran"
    bait = {
        "posix.system": Runs(os.system, f"touch {trap}"),
        "eval": Runs(eval, f"open({str(trap)!r}, 'w')"),
        "fractions.Fraction": fractions.Fraction(1, 2),
        "torch.serialization.load": Runs(torch.load, str(trap)),
    }[name]
    torch.save({"state_dict": tiny[1], "extra": bait}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"and only tensors, numbers and options are read; where you") as caught:
        read_published(tmp_path / "file.pth")
    assert f"the code of {name}, " in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own text advises to switch the check off
    assert not trap.exists()
    if name == "posix.system":
        torch.load(tmp_path / "file.pth", weights_only=False)
        assert trap.exists()  # the trap works


def test_a_report_names_second_names_and_what_it_does_not_know():
    report = KeyReport(("head.0.bias",), doubles=("encoder_q.0.Conv_1a.bn1.bias",), ignored=("teacher.x",))
    assert report.lines()[1:] == [
        "second names of the same layers, left out: 1 (encoder_q.0.Conv_1a.bn1.bias)",
        "not part of the encoder, left out: teacher 1 (unknown here)",
    ]
