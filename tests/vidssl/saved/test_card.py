"""Model cards and `load_encoder`: what was trained is what is read back, and damage is named."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch

import vidssl
from vidssl.encoder import build_encoder
from vidssl.errors import CheckpointError, DataError, StorageError
from vidssl.methods import build_method
from vidssl.recipe import Recipe, load_recipe
from vidssl.saved.card import CARD, WEIGHTS, Card, Facts, card_of, export, read_card, read_weights
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.pretrained import read_encoder
from vidssl.saved.run_folder import RunFolder
from vidssl.saved.trained import artifact, encoder_state, load_method


def recipe_of(**method):
    return Recipe.model_validate(
        {
            "name": "small",
            "clips": {"frames": 4, "size": 16},
            "model": {"width": 4, "dim": 8},
            "method": {"name": "coclr", "queue": 8, "warmup_steps": 1} | method,
            "trainer": {"device": "cpu"},
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, and the method in it."""
    folder, recipe = RunFolder(tmp_path_factory.mktemp("runs") / "small"), recipe_of()
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    method = build_method(recipe, seed=7).eval()
    meta = Meta(12, recipe.fingerprint(), "data-hash", 1, 3)
    save_checkpoint(folder, meta, 0, {}, {"method": method.state_dict(), "optimizer": {}})
    return folder.path, method


def exported(run, folder):
    card, state = read_encoder(run[0])
    return export(folder, state, card)


@pytest.fixture
def card(run, tmp_path):
    return exported(run, tmp_path / "card")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_exported_weights_are_read_back_bit_for_bit(run, card):
    assert same(read_weights(card), run[1].artifact("rgb"))


def test_the_card_says_what_a_stranger_needs(run, card):
    found = json.loads((card / CARD).read_text())
    assert found["view"] == "rgb"
    assert found["clips"] | {"frames": 4, "size": 16} == found["clips"]
    assert found["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert found["normalization"]["std"] == [0.229, 0.224, 0.225]
    facts = found["protocol"]
    assert (facts["method"], facts["steps"], facts["epoch"], facts["seed"]) == ("coclr", 12, 3, 0)
    assert (facts["data_hash"], facts["recipe"]) == ("data-hash", recipe_of().fingerprint())
    assert facts["assumed"] == []
    assert len(facts["source_sha256"]) == len(found["weights_sha256"]) == 64
    assert str(card.parent) not in json.dumps(found)


def test_what_stands_beside_the_encoder_stays_in_the_card_but_not_in_the_encoder(run, tmp_path):
    card, state = read_encoder(run[0])
    prototypes = {"extra.prototypes.weight": torch.arange(12.0).reshape(3, 4)}
    folder = export(tmp_path / "with", state | prototypes, card)
    assert same(read_weights(folder), state | prototypes)
    assert same(artifact(folder, "rgb"), state | prototypes)
    assert same(encoder_state(folder, "rgb"), state)
    vidssl.load_encoder(folder)


def test_runs_and_cards_give_the_same_features_and_projections(run, card):
    clips = torch.randn(2, 3, 4, 16, 16)
    query = run[1].encoder("rgb")
    for source in (run[0], card):
        encoder = vidssl.load_encoder(source)
        assert not encoder.training
        assert torch.equal(encoder(clips), query.backbone(clips).mean((2, 3, 4)))
        assert torch.equal(encoder.project(clips), query(clips))
        assert encoder.project(clips).norm(dim=1).sub(1).abs().min() > 1e-3, "projections are not normalised"


def test_another_view_of_a_run_is_its_own_encoder(run):
    clips = torch.randn(2, 3, 4, 16, 16)
    second = vidssl.load_encoder(run[0], view="residual")
    assert torch.equal(second.project(clips), run[1].encoder("residual")(clips))
    assert not torch.equal(second(clips), vidssl.load_encoder(run[0])(clips))
    assert second.card["view"] == "residual"
    assert "differences of frames" in second.card["normalization"]["words"]


def test_an_encoder_shows_itself_in_one_line_and_its_facts_as_a_plain_dict(card):
    encoder = vidssl.load_encoder(card)
    line = repr(encoder)
    assert "\n" not in line
    assert "tiny of rgb clips 3x4x16x16" in line
    assert "run small, step 12" in line
    assert json.loads(json.dumps(encoder.card)) == encoder.card


def test_one_shared_network_is_read_for_each_of_its_streams(tmp_path):
    recipe = recipe_of(name="iic", second_view="residual").model_copy(
        update={"model": recipe_of().model.model_copy(update={"head": "none", "dim": 32})}
    )
    encoder = build_encoder(recipe.model)
    made = card_of(recipe, "rgb", Facts(method="iic", source="test"))
    folder = export(tmp_path / "card", encoder.state_dict(), made)
    assert read_card(folder).views == ("rgb", "residual")
    loaded = vidssl.load_encoder(folder, view="residual")
    clips = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(loaded(clips), loaded.project(clips))
    assert "differences of frames" in loaded.card["normalization"]["words"]
    assert "differences" not in vidssl.load_encoder(folder).card["normalization"]["words"]
    with pytest.raises(CheckpointError, match=r"no encoder of view=flow; it has rgb, residual"):
        vidssl.load_encoder(folder, view="flow")


@pytest.mark.parametrize(
    ("clips", "sentence"),
    [
        (torch.zeros(1, 2, 4, 16, 16), r"shape \(1, 2, 4, 16, 16\) were given; this encoder of rgb reads .* C=3"),
        (torch.zeros(3, 4, 16, 16), r"shape \(3, 4, 16, 16\) were given"),
        (torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8), "type torch.uint8 were given; .*reads float clips"),
    ],
)
def test_clips_of_another_shape_get_one_sentence(card, clips, sentence):
    encoder = vidssl.load_encoder(card)
    for look in (encoder, encoder.project):
        with pytest.raises(DataError, match=sentence):
            look(clips)


def test_a_card_is_never_written_over_something(run, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match=r"exists already; give another --out"):
        exported(run, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_weights_of_another_network_are_refused_and_leave_nothing_behind(run, tmp_path):
    card, state = read_encoder(run[0])
    del state["head.2.bias"]
    with pytest.raises(CheckpointError, match=r"1 layers are missing, 0 are unknown.*first: head\.2\.bias"):
        export(tmp_path / "card", state, card)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_neither_a_card_nor_a_rest(run, small_disk):
    disk = small_disk(0.008)
    said = r"card cannot be written: the disk .*disk-0 is full \(.* needed, .* free\); give another --out"
    with pytest.raises(StorageError, match=said):
        exported(run, disk / "card")
    assert list(disk.iterdir()) == []


def test_a_read_only_disk_is_said_before_anything_is_made(run, small_disk):
    disk = small_disk(1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match=r"card cannot be written \(Read-only file system\); give another --out"):
        exported(run, disk / "card")


def test_a_card_below_a_file_is_refused(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be made: .*notes\.txt is a file; give another --out"):
        exported(run, tmp_path / "notes.txt" / "deep" / "card")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_become_no_card(run, tmp_path, bad):
    card, state = read_encoder(run[0])
    state["head.2.bias"] = torch.full_like(state["head.2.bias"], bad)
    with pytest.raises(
        CheckpointError, match=rf"head\.2\.bias \({bad}\) is not a finite number, so no card is written"
    ):
        export(tmp_path / "card", state, card)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_of_a_card_may_be_read_by_whom_the_user_lets(run, tmp_path, mask):
    before = os.umask(mask)
    try:
        made = exported(run, tmp_path / "card")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o666 & ~mask}


def damaged_byte(card):
    raw = bytearray((card / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (card / WEIGHTS).write_bytes(raw)


def edited(card, **changes):
    tree = json.loads((card / CARD).read_text())
    (card / CARD).write_text(json.dumps(tree | changes))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (damaged_byte, r"encoder\.safetensors is damaged or from another card"),
        (lambda card: (card / WEIGHTS).unlink(), r"encoder\.safetensors cannot be read .*import the card again"),
        (lambda card: (card / CARD).unlink(), "is no run folder"),
        (lambda card: (card / CARD).write_text("{"), r"card\.json is damaged .*export or import the card again"),
        (lambda card: (card / CARD).write_text("[]"), "is a card of format None, this version reads 1"),
        (lambda card: edited(card, format=2), "is a card of format 2, this version reads 1"),
        (lambda card: edited(card, view="depth"), r"card\.json is damaged \(view: "),
        (lambda card: edited(card, colour="blue"), r"card\.json is damaged \(colour: "),
    ],
)
def test_damage_is_named_in_one_sentence(card, harm, sentence):
    harm(card)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        vidssl.load_encoder(card)
    assert "\n" not in str(caught.value)


def test_numbers_that_the_loader_would_not_use_are_refused(card):
    tree = json.loads((card / CARD).read_text())
    edited(card, normalization=tree["normalization"] | {"mean": [0.5, 0.5, 0.5]})
    with pytest.raises(CheckpointError, match="not those of preset imagenet"):
        read_card(card)


def test_a_card_starts_only_runs_of_its_own_view(card):
    with pytest.raises(CheckpointError, match="trained rgb, not residual; give a run or card that trained residual"):
        artifact(card, "residual")


def test_a_card_as_a_recipe_is_the_network_and_the_clips_that_were_trained(card):
    made = read_card(card)
    recipe = Recipe.model_validate(made.recipe())
    assert (recipe.model, recipe.clips) == (recipe_of().model, recipe_of().clips)
    assert not recipe.mines
    for view in ("rgb", "residual", "flow"):
        for method in ("coclr", "cpr", "vicc", "iic", "infonce", "ubernce"):
            facts = made.protocol.model_copy(update={"method": method})
            other = Card.model_validate(made.model_dump() | {"view": view, "protocol": facts})
            assert Recipe.model_validate(other.recipe()).method.view == view


def test_the_package_itself_stays_light():
    code = "import sys, vidssl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_of_phases_names_the_ones_that_can_be_given(run, tmp_path):
    recipe = load_recipe("cpr-cycles-tiny")
    folder = RunFolder(tmp_path / "cycles")
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    with pytest.raises(CheckpointError, match=r"no phase of .*cycles has a checkpoint yet; train it first"):
        vidssl.load_encoder(folder.path)
    names = [phase.name for phase in recipe.phases[:2]]
    for name in names:
        save_checkpoint(RunFolder(folder.path / name), Meta(1, "r", "d", 1, 0), 0, {}, {})
    said = rf"was trained in phases and each is a run of its own; give one of them: .*/{names[1]}, .*/{names[0]}$"
    with pytest.raises(CheckpointError, match=said):
        vidssl.load_encoder(folder.path)


def test_a_damaged_newest_checkpoint_is_never_passed_over_in_silence(tmp_path):
    folder, recipe = RunFolder(tmp_path / "run"), recipe_of()
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    state = {"method": build_method(recipe, seed=7).state_dict()}
    for step in (3, 6):
        save_checkpoint(folder, Meta(step, "r", "d", 1, 0), 0, {}, state)
    model = folder.checkpoints / "step-00000006" / "model.pt"
    model.write_bytes(model.read_bytes()[:-9])
    with pytest.raises(
        CheckpointError, match=r"model\.pt has \d+ of .* bytes; remove that folder to use the one of step 3"
    ):
        load_method(folder)
    said = []
    assert load_method(folder, say=said.append)[2] == 3
    assert "step 6: model.pt has" in said[0]


@pytest.mark.parametrize("shared", [{}, {"method": 3}, {"method": {"x": 1}}, {"other": {}}])
def test_a_checkpoint_of_another_shape_is_one_sentence(tmp_path, shared):
    folder, recipe = RunFolder(tmp_path / "run"), recipe_of()
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    save_checkpoint(folder, Meta(3, "r", "d", 1, 0), 0, {}, shared)
    with pytest.raises(
        CheckpointError, match=r"of step 3 in .* is of another network than its recipe\.yaml says \([^\n]+$"
    ):
        load_method(folder)
