"""From a published file to numbers with its own protocol, by the words that a user types; and what is refused on the way."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import vidssl
from cluster.cli import main
from pipelines.pack import pack
from pipelines.synthetic import make_motion_set
from tests.conformance.rebuilt import array, assert_same, checkpoint, load
from vidssl.encoder import build_encoder
from vidssl.methods import build_method
from vidssl.recipe import Model, Recipe
from vidssl.saved.card import read_card, read_weights
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.embeddings import load_embeddings
from vidssl.saved.published import to_coclr
from vidssl.saved.run_folder import RunFolder
from vidssl.saved.trained import artifact

VIDEOS = 20


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """20 packed videos of ten motions, without flow."""
    root = tmp_path_factory.mktemp("data")
    table = make_motion_set(root / "videos", videos=VIDEOS, frames=12, size=64, seed=1)
    pack("csv", table, root / "packed", workers=1)
    return root / "packed"


def vidssl_says(capsys, *words):
    code, said = main([str(word) for word in words]), capsys.readouterr()
    return code, said.out, said.err


def small_file(path, channels=3):
    """A file of CoCLR's layout with a small network in it."""
    model = Model.model_validate({"width": 4, "dim": 8, "flow_channels": channels})
    torch.manual_seed(3)
    encoder = build_encoder(model, "flow")
    torch.save({"state_dict": to_coclr(encoder.state_dict()), "epoch": 299}, path)
    return path, encoder


@pytest.fixture
def file(tmp_path):
    return small_file(tmp_path / "epoch299.pth.tar")


@pytest.mark.parametrize(
    ("case", "source"),
    [
        pytest.param("coclr_s3d", "cpr", marks=pytest.mark.slow),
        pytest.param("iic_r3d", "iic", marks=pytest.mark.slow),
        pytest.param("vicc_r21d", "vicc", marks=pytest.mark.slow),
    ],
)
def test_a_published_file_becomes_a_card_that_is_embedded_and_evaluated(case, source, packed, tmp_path, capsys):
    said, theirs = load(f"encoder_{case}")
    torch.save(checkpoint(said), tmp_path / "published.pth.tar")
    card = tmp_path / "card"
    small = ["clips.size=48", "clips.frames=8"]
    code, out, _ = vidssl_says(
        capsys, "import", tmp_path / "published.pth.tar", "--from", source, "--out", card, *small
    )
    assert code == 0
    assert re.search(r"\d+ loaded, 0 missing, 0 unexpected", out)

    encoder = vidssl.load_encoder(card)
    clips = array("input", *said["input"][1])
    with torch.no_grad():
        pooled = "feature" if source == "iic" else "backbone_pooled"
        assert_same(encoder(clips), theirs[pooled])
        assert_same(encoder.project(clips), theirs["feature" if source == "iic" else "embedding_unnormalised"])

    looked = [f"data={packed}", "evaluation.protocol=centre", "trainer.device=cpu"]
    code, out, error = vidssl_says(capsys, "embed", card, *looked)
    assert (code, error) == (0, "")
    store = load_embeddings(card / "embeddings.zarr")
    assert store.feature["rgb"].shape == (VIDEOS, encoder.encoder.width)
    assert store.embedding["rgb"].shape == (VIDEOS, encoder.encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(store.embedding["rgb"], axis=1), 1, rtol=1e-5)

    code, out, error = vidssl_says(capsys, "evaluate", card, *looked)
    assert (code, error) == (0, "")
    assert "R@1" in out
    assert "mining" in out
    results = json.loads((card / "eval" / "retrieval.json").read_text())
    facts = results["protocol"]
    assert facts["checkpoint"] == f"{source} file published.pth.tar"
    assert (facts["method"], facts["T"], facts["size"], facts["trained_on"]) == (source, 8, 48, None)
    assert (facts["steps"], facts["seed"], facts["epochs"]) == (None, None, None)
    assert "clips.stride=1" in facts["assumed"]
    assert "clips.size=48" not in facts["assumed"]
    assert {"trained", "untrained"} <= results["results"].keys()


def test_the_prototypes_of_vicc_are_in_the_card_beside_the_encoder(tmp_path, capsys):
    said, _ = load("encoder_vicc_r21d")
    tree = checkpoint(said)
    torch.save(tree, tmp_path / "vicc.pth.tar")
    assert main(["import", str(tmp_path / "vicc.pth.tar"), "--from", "vicc", "--out", str(tmp_path / "card")]) == 0
    kept = read_weights(tmp_path / "card")["extra.prototypes.weight"]
    assert torch.equal(kept, tree["state_dict"]["prototypes.weight"])
    assert torch.equal(artifact(tmp_path / "card", "rgb")["extra.prototypes.weight"], kept)


@pytest.mark.parametrize("source", ["coclr", "cpr"])
def test_what_a_file_does_not_say_is_the_published_protocol_and_is_named_as_assumed(source, file, tmp_path, capsys):
    code, out, _ = vidssl_says(capsys, "import", file[0], "--from", source, "--out", tmp_path / "card")
    card = read_card(tmp_path / "card")
    assert code == 0
    assert (card.clips.frames, card.clips.stride, card.clips.size) == (32, 1, 128)
    assert (card.view, card.normalization.preset, card.protocol.method) == ("rgb", "imagenet", source)
    assert {"clips.frames=32", "clips.size=128", "method.view=rgb"} <= set(card.protocol.assumed)
    assert "assumed, as published: method.view=rgb" in out


def test_the_words_of_a_user_replace_assumptions(file, tmp_path, capsys):
    words = ["clips.frames=16", "method.view=residual", "method.name=infonce", "augment.normalize=unit"]
    vidssl_says(capsys, "import", file[0], "--from", "coclr", "--out", tmp_path / "card", *words)
    card = read_card(tmp_path / "card")
    assert (card.clips.frames, card.view, card.protocol.method) == (16, "residual", "infonce")
    assert card.normalization.std == (1.0, 1.0, 1.0)
    assert set(card.protocol.assumed) == {"clips.stride=1", "clips.size=128"}


def test_a_look_writes_nothing(file, tmp_path, capsys):
    code, out, _ = vidssl_says(capsys, "import", file[0], "--from", "coclr")
    assert code == 0
    assert "nothing was written" in out
    assert [path.name for path in tmp_path.iterdir()] == [file[0].name]


def test_runs_start_from_files_and_cards_alike(file, tmp_path, capsys):
    vidssl_says(capsys, "import", file[0], "--from", "coclr", "--out", tmp_path / "card")
    wanted = file[1].state_dict()
    for source in (file[0], tmp_path / "card"):
        found = artifact(source, "rgb")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture
def run(tmp_path, packed):
    """A run folder as training leaves it."""
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "data": str(packed),
            "clips": {"frames": 4, "size": 32},
            "model": {"width": 4, "dim": 8},
            "method": {"name": "coclr", "queue": 8, "warmup_steps": 1},
            "mining": {"where": "inline", "topk": 1},
            "evaluation": {"windows": 1},
            "trainer": {"device": "cpu"},
        }
    )
    folder = RunFolder(tmp_path / "small")
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    method = build_method(recipe, seed=7)
    state = {"method": method.state_dict(), "optimizer": {}}
    save_checkpoint(folder, Meta(5, recipe.fingerprint(), "hash", 1, 0), 0, {}, state)
    return folder.path


@pytest.mark.parametrize("view", ["rgb", "residual"])
def test_an_exported_run_gives_the_same_vectors_as_the_run(view, run, packed, tmp_path, capsys):
    card = tmp_path / "card"
    words = [f"data={packed}", "evaluation.protocol=centre"]
    assert vidssl_says(capsys, "export", run, "--out", card, f"view={view}")[0] == 0
    assert vidssl_says(capsys, "embed", run, f"view={view}", *words)[0] == 0
    assert vidssl_says(capsys, "embed", card, *words)[0] == 0
    ours, theirs = (load_embeddings(folder / "embeddings.zarr") for folder in (card, run))
    np.testing.assert_array_equal(ours.feature[view], theirs.feature[view])
    np.testing.assert_array_equal(ours.embedding[view], theirs.embedding[view])
    assert ours.protocol["steps"] == 5
    assert ours.protocol["trained_on"] == "hash"
    assert ours.protocol["recipe"] == theirs.protocol["recipe"]


def test_an_export_into_a_file_or_of_spoilt_weights_is_one_sentence(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists already; give another --out" in refused(capsys, "export", run, "--out", tmp_path / "notes.txt")
    below = refused(capsys, "export", run, "--out", tmp_path / "notes.txt" / "card")
    assert "notes.txt is a file; give another --out" in below
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (run / "checkpoints" / "step-00000005" / "model.pt").write_bytes(b"")
    assert "model.pt has 0 of" in refused(capsys, "export", run, "--out", tmp_path / "card")
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize("protocol", ["p1_ref", "p2"])
def test_vectors_of_a_published_protocol_come_from_its_windows_and_crop(protocol, run, packed, capsys):
    from cluster.subject import open_subject
    from pipelines.loader import EvalLoader, LoaderSpec

    words = [f"evaluation.protocol={protocol}", "evaluation.windows=10", f"data={packed}"]
    assert vidssl_says(capsys, "embed", run, *words)[0] == 0
    store, subject = load_embeddings(run / "embeddings.zarr"), open_subject(run, words)
    spec = LoaderSpec(subject.recipe.clips, subject.recipe.augment, subject.recipe.loader, ("rgb",), 64, 0)
    one = np.array([3])
    loader = EvalLoader(
        subject.manifest,
        spec,
        instances=one,
        windows=10,
        device=torch.device("cpu"),
        rule=protocol[:2],
        crops="inner",
    )
    with torch.no_grad():
        rows = subject.encoder("rgb").features(torch.cat([batch.clips["rgb"][:, 0] for batch in loader]))
    loader.close()
    wanted = torch.nn.functional.normalize(rows, dim=1).mean(0)
    np.testing.assert_allclose(store.feature["rgb"][3], wanted, atol=1e-6)
    assert store.protocol["crops"] == "centre, 7/8 of the short side"
    assert len(rows) > 1
    assert store.protocol["windows"] == 10


def refused(capsys, *words):
    code, _, said = vidssl_says(capsys, *words)
    assert code == 2
    assert said.startswith("vidssl: ")
    assert said.count("\n") == 1
    return said


def test_wrong_files_and_words_get_one_sentence(file, tmp_path, capsys):
    path, _ = file
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    for words, sentence in [
        ([tmp_path / "none.pth", "--from", "coclr"], r"no checkpoint at .*none\.pth"),
        ([tmp_path / "text.pth", "--from", "coclr"], "is no checkpoint that can be read safely"),
        ([tmp_path / "other.pth", "--from", "coclr"], "this file is of no known layout: it has fc"),
        ([tmp_path, "--from", "coclr"], "is a folder; give the checkpoint file, or for a run: vidssl export"),
        ([path, "--from", "iic"], "has the layout of coclr, not of iic; type --from coclr"),
        ([path, "--from", "moco"], "--from moco is unknown; type --from with one of coclr, cpr, vicc, iic"),
        ([path], "nobody was named as the file's author; type --from"),
        ([path, "--from", "coclr", "optim.lr=1"], "'optim.lr=1' cannot be set for an import"),
        ([path, "--from", "coclr", "clips.frmes=1"], "unknown key 'clips.frmes'; did you mean 'clips.frames'"),
        (
            [path, "--from", "coclr", "encoder=encoder_x"],
            "encoder=encoder_x is unknown; type encoder= one of encoder_q",
        ),
        ([path, "--from", "coclr", "encoder=encoder_k"], r"no key begins with 'encoder_k\.'"),
    ]:
        assert re.search(sentence, refused(capsys, "import", *words, "--out", tmp_path / "card"))
        assert not (tmp_path / "card").exists()


def test_a_card_is_not_written_over_another(file, tmp_path, run, capsys):
    card = tmp_path / "card"
    assert vidssl_says(capsys, "import", file[0], "--from", "coclr", "--out", card)[0] == 0
    before = read_card(card)
    assert "exists already" in refused(capsys, "import", file[0], "--from", "cpr", "--out", card)
    assert "exists already" in refused(capsys, "export", run, "--out", card)
    assert read_card(card) == before


def test_wrong_exports_get_one_sentence(run, tmp_path, capsys):
    assert "no folder for the card; type --out CARD" in refused(capsys, "export", run)
    assert "is no run folder" in refused(capsys, "export", tmp_path / "nowhere", "--out", tmp_path / "card")
    assert "no encoder of view=flow; it has rgb, residual" in refused(
        capsys, "export", run, "--out", tmp_path / "card", "view=flow"
    )
    assert "'optim.lr=1' is no setting of an export" in refused(
        capsys, "export", run, "--out", tmp_path / "card", "optim.lr=1"
    )
    assert not (tmp_path / "card").exists()


def test_an_encoder_of_flow_refuses_data_without_flow(packed, tmp_path, capsys):
    path, _ = small_file(tmp_path / "flow.pth.tar", channels=2)
    assert "this encoder reads 2; type method.view=flow" in refused(
        capsys, "import", path, "--from", "coclr", "--out", tmp_path / "card", "method.view=rgb"
    )
    assert vidssl_says(capsys, "import", path, "--from", "coclr", "--out", tmp_path / "card")[0] == 0
    assert read_card(tmp_path / "card").view == "flow"
    for verb in ("embed", "evaluate"):
        assert re.search(
            "reads flow and .* holds no optical flow", refused(capsys, verb, tmp_path / "card", f"data={packed}")
        )
    assert not (tmp_path / "card" / "eval").exists()


def test_looking_at_a_card_needs_data_and_leaves_the_training_alone(file, packed, tmp_path, capsys):
    card = tmp_path / "card"
    vidssl_says(capsys, "import", file[0], "--from", "coclr", "--out", card)
    for verb in ("embed", "evaluate"):
        assert "the card card names no data; type data=FOLDER" in refused(capsys, verb, card)
        assert "is no packed data" in refused(capsys, verb, card, f"data={tmp_path}")
        assert "'clips.size=32' cannot be set" in refused(capsys, verb, card, f"data={packed}", "clips.size=32")
        assert "no encoder of view=residual" in refused(capsys, verb, card, f"data={packed}", "view=residual")
    (card / "encoder.safetensors").write_bytes(b"")
    assert "is damaged or from another card" in refused(capsys, "embed", card, f"data={packed}")
