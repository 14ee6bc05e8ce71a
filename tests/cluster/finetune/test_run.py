"""`vidssl finetune` on real packed videos: what it learns, what it writes, how it stops and goes on."""

from __future__ import annotations

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch

from cluster.finetune.run import finetune_run, finetune_table
from pipelines.dataset.manifest import load_manifest
from pipelines.pack import pack
from pipelines.synthetic import MOTIONS, make_motion_video
from vidssl.errors import CheckpointError, DataError, RecipeError, StorageError
from vidssl.evaluation.class_scores import load_scores
from vidssl.methods import build_method
from vidssl.recipe import Recipe
from vidssl.records import to_tree
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("usual_signals")

CHOSEN, EACH = 3, 14  # motions, videos of each
FAST = ["finetune.epochs=2", "finetune.batch=4", "finetune.lr=0.01", "finetune.dropout=0.2", "finetune.backbone_lr=0.5"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return packed_motions(root, EACH)


def packed_motions(root, each):
    """Videos of a few motions, every third one a test video; two videos share a group."""
    (root / "videos").mkdir(parents=True)
    rows = []
    for motion in range(CHOSEN):
        for turn in range(each):
            index = motion + len(MOTIONS) * turn
            path = root / "videos" / f"{index:05d}.mp4"
            make_motion_video((index, path), frames=20, size=64, seed=4)
            split = "test" if turn % 3 == 2 else "train"
            rows.append((f"videos/{index:05d}.mp4", list(MOTIONS)[motion], split, f"{motion}-{split}-{turn // 3}"))
    with (root / "videos.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "label", "split", "group"))
        table.writerows(rows)
    pack("csv", root / "videos.csv", root / "packed", workers=1)
    return load_manifest(root / "packed")


def make_run(path, packed, **sections):
    """A run folder as training leaves it, with random weights."""
    recipe = Recipe.model_validate(
        {
            "name": path.name,
            "data": str(packed.root),
            "clips": {"frames": 8, "stride": 2, "size": 32},
            "augment": {"preset": "crop", "flip": False, "normalize": "unit"},
            "model": {"width": 4, "dim": 8},
            "method": {"name": "infonce", "queue": 8},
            "mining": {"where": "off"},
            "evaluation": {"windows": 2, "batch": 8, "held_out": 0.2},
            "trainer": {"device": "cpu"},
        }
        | sections
    )
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.recipe.write_text(recipe.to_yaml())
    trained = build_method(recipe, seed=99)
    meta = Meta(7, recipe.fingerprint(), packed.hash, 1, 0)
    save_checkpoint(folder, meta, 0, {}, {"method": trained.state_dict(), "optimizer": {}})
    return folder


@pytest.fixture
def run(packed, tmp_path):
    return make_run(tmp_path / "one", packed)


def quiet(line):
    pass


def test_results_carry_their_protocol_and_the_probabilities_lie_beside_them(run, packed):
    lines = []
    results = finetune_run(run.path, [*FAST, "evaluation.protocol=p1_ref"], lines.append)
    assert json.loads((run.evaluation / "finetune.json").read_text()) == to_tree(results)
    about, test = results.protocol, packed.rows("test")
    wanted = {
        "init": "pretrained", "view": "rgb", "T": 8, "stride": 2, "size": 32, "window_rule": "p1", "windows": 2,
        "crops": "inner", "average": "probability", "data_hash": packed.hash, "finetune_seed": 0,
        "sides": "the data's train and test splits", "unreadable": 0, "backbone": "tiny",
    }  # fmt: skip
    assert {key: getattr(about, key) for key in wanted} == wanted
    assert about.videos.test == len(test)
    assert about.videos.train + about.videos.held_out == len(packed.rows("train"))
    scores, data = load_scores(run.evaluation / "finetune.npz")
    assert data == packed.hash
    assert np.array_equal(scores.instance, np.sort(test))
    assert np.array_equal(scores.label, packed.samples.label[scores.instance])
    assert results.results.chosen.accuracy == pytest.approx(scores.accuracy, abs=1e-6)
    assert results.results.last.epoch == 2 == len(results.history)
    assert [line[:12] for line in lines] == ["epoch    1/2", "epoch    2/2"]
    assert "held out" in lines[0]
    assert "fine-tuning (P4) from pretrained weights" in finetune_table(results)


def test_the_last_epoch_of_the_whole_split_is_taken_where_that_was_asked_for(run, packed):
    results = finetune_run(run.path, [*FAST, "finetune.choose=last"], quiet)
    about = results.protocol
    assert (about.videos.train, about.videos.held_out) == (len(packed.rows("train")), 0)
    assert about.checkpoint_rule == "last epoch: as asked for, the whole split trained"
    assert results.results.chosen.epoch == 2


def test_published_clips_and_squares_are_trained_on_tested_on_and_said(run, monkeypatch):
    from pipelines import loader

    made = []

    class Watched(loader.EvalLoader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append((self.crops, self.share))

    class WatchedTraining(loader.TrainLoader):
        def __init__(self, manifest, spec, **options):
            made.append(spec.augment.preset)
            super().__init__(manifest, spec, **options)

    monkeypatch.setattr(loader, "EvalLoader", Watched)
    monkeypatch.setattr(loader, "TrainLoader", WatchedTraining)
    words = [
        "finetune.epochs=1",
        "finetune.augment=supervised",
        "evaluation.protocol=p1_ref",
        "evaluation.crop=0.93333",
    ]
    about = finetune_run(run.path, [*FAST, *words], quiet).protocol
    assert made == ["supervised", ("inner", 0.93333), ("inner", 0.93333)]  # training, held out, test
    assert (about.augmentation.preset, about.crops, about.crop) == ("supervised", "inner", 0.93333)
    assert about.finetune.augment == "supervised"


def test_no_group_is_on_two_sides_and_the_test_split_chooses_nothing(run, packed, monkeypatch):
    from pipelines import loader

    shown = []

    class Watched(loader.EvalLoader):
        def __init__(self, *args, instances, **options):
            shown.append(instances)
            super().__init__(*args, instances=instances, **options)

    trained = []

    class WatchedTraining(loader.TrainLoader):
        def __init__(self, *args, instances, **options):
            trained.append(instances)
            super().__init__(*args, instances=instances, **options)

    monkeypatch.setattr(loader, "EvalLoader", Watched)
    monkeypatch.setattr(loader, "TrainLoader", WatchedTraining)
    finetune_run(run.path, FAST, quiet)
    (train,), held = trained, shown[0]
    group, test = packed.samples.group, packed.rows("test")
    assert len(held)
    assert not np.intersect1d(group[train], group[held]).size
    assert sorted([*train, *held]) == sorted(packed.rows("train"))
    assert all(np.array_equal(later, test) for later in shown[1:])
    assert set(packed.samples.label[train]) == set(range(CHOSEN))


def test_ctrl_c_saves_and_the_same_words_go_on_to_the_same_numbers(packed, tmp_path):
    straight = finetune_run(make_run(tmp_path / "straight", packed).path, FAST, quiet)
    run, said = make_run(tmp_path / "stopped", packed), []

    def interrupt(line):
        said.append(line)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune_run(run.path, FAST, interrupt)
    assert said[-1].startswith("stopped after step ")
    said.clear()
    resumed = finetune_run(run.path, FAST, said.append)
    assert said[0].startswith("going on after step ")
    assert resumed.history == straight.history
    assert resumed.results == straight.results
    said.clear()
    finetune_run(run.path, [*FAST, "finetune.lr=0.02"], said.append)
    assert said[0].endswith("is of other settings: training begins anew")


def test_scratch_and_linear_have_files_of_their_own_and_say_so(run):
    scratch = finetune_run(run.path, [*FAST, "init=scratch"], quiet)
    linear = finetune_run(run.path, [*FAST, "finetune.backbone_lr=0"], quiet)
    assert scratch.protocol.init == "scratch"
    assert linear.protocol.id == "linear probe, end to end (P3)"
    assert linear.protocol.finetune.dropout == 0
    names = {path.name for path in run.evaluation.iterdir()}
    assert names == {f"finetune{kind}.{end}" for kind in ("-scratch", "-linear") for end in ("json", "npz")}


def test_iics_protocol_averages_the_logits_of_ten_clips_and_ten_crop_reads_ten_rows_a_window(run, packed):
    p2 = finetune_run(run.path, [*FAST, "finetune.epochs=1", "evaluation.protocol=p2"], quiet).protocol
    test = len(packed.rows("test"))
    assert (p2.average, p2.windows, p2.rows) == ("logit", 10, 10 * test)
    words = [*FAST, "finetune.epochs=1", "evaluation.crops=ten", "evaluation.protocol=centre"]
    ten = finetune_run(run.path, words, quiet).protocol
    assert (ten.average, ten.windows, ten.rows) == ("probability", 1, 10 * test)


def test_the_other_streams_probabilities_are_fused(packed, tmp_path):
    two = {"method": {"name": "coclr", "queue": 8, "warmup_steps": 1}, "mining": {"pool": 6, "topk": 2}}
    run = make_run(tmp_path / "two", packed, **two)
    finetune_run(run.path, [*FAST, "finetune.epochs=1", "view=residual"], quiet)
    words = [*FAST, "finetune.epochs=1", f"fuse={run.evaluation / 'finetune-residual.npz'}"]
    fused = finetune_run(run.path, words, quiet).fused
    first, second = (load_scores(run.evaluation / f"finetune{end}.npz")[0] for end in ("", "-residual"))
    together = ((first.probability + second.probability) / 2).argmax(1) == first.label
    assert to_tree(fused) == {
        "first": first.accuracy,
        "second": second.accuracy,
        "both": together.mean(),
        "videos": len(first.label),
        "left_out": 0,
        "with": "finetune-residual.npz",
    }


def test_a_card_is_fine_tuned_to_the_numbers_of_its_run(run, packed, tmp_path):
    from cluster.exchange import export_card

    card = export_card(run.path, str(tmp_path / "card"))
    words = [*FAST, "finetune.epochs=1"]
    same = [*words, f"data={packed.root}", "evaluation.windows=2", "evaluation.batch=8", "augment.preset=crop"]
    of_card = finetune_run(card, [*same, "augment.flip=false", "trainer.device=cpu"], quiet)
    of_run = finetune_run(run.path, words, quiet)
    assert of_card.results == of_run.results
    assert (tmp_path / "card" / "eval" / "finetune.json").is_file()


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        (["init=imagenet"], RecipeError, "init=imagenet is unknown; type init= one of pretrained, scratch"),
        (["average=median"], RecipeError, "type average= one of probability, logit"),
        (["view=flow"], RecipeError, "no encoder of view=flow"),
        (["finetune.batch=4000"], RecipeError, r"finetune.batch=4000 is more than the \d+ videos that train"),
        (["finetune.rate=1"], RecipeError, "unknown key 'finetune.rate'"),
        (["method.queue=9"], RecipeError, "cannot be set for a run that is trained"),
        (
            ["finetune.augment=supervised", "augment.preset=none"],
            RecipeError,
            "augment.preset=none is not read with finetune.augment=supervised; type finetune.augment=as_trained beside it",
        ),
        (["fuse=nowhere.npz"], CheckpointError, "nowhere.npz holds no class scores"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(run, words, kind, sentence):
    said = []
    with pytest.raises(kind, match=sentence):
        finetune_run(run.path, [*FAST, *words], said.append)
    assert not said
    assert not run.evaluation.exists()


def test_data_without_classes_is_refused(run, packed, monkeypatch):
    from dataclasses import replace

    import pipelines.dataset.manifest as stored

    monkeypatch.setattr(stored, "load_manifest", lambda root: replace(packed, classes=("one",)))
    with pytest.raises(DataError, match="a classifier needs two classes, the data has 1"):
        finetune_run(run.path, FAST, quiet)


def test_a_folder_that_cannot_be_written_is_said_before_the_training(run):
    (run.path / "finetune").write_text("a file where the folder should be")
    said = []
    with pytest.raises(
        StorageError, match=r"finetune cannot be written \(.*\); make room, or copy the run .* type vidssl finetune"
    ):
        finetune_run(run.path, FAST, said.append)
    assert not said
    assert not run.evaluation.exists()
    assert (run.path / "finetune").read_text() == "a file where the folder should be"


def test_results_that_cannot_be_stored_are_said_and_the_training_is_not_lost(run):
    run.evaluation.write_text("a file where the folder should be")
    words, said = [*FAST, "finetune.epochs=1"], []
    with pytest.raises(
        StorageError, match=r"one cannot be written \(.*\); make room, .* it goes on from what was saved"
    ):
        finetune_run(run.path, words, said.append)
    assert said[-1].startswith("epoch    1/1")
    run.evaluation.unlink()
    said.clear()
    result = finetune_run(run.path, words, said.append)
    total = result.protocol.videos.train // 4
    assert said == [f"going on after step {total} of {total}"]
    assert json.loads((run.evaluation / "finetune.json").read_text()) == to_tree(result)


@pytest.mark.parametrize("state", [{"other": 1}, [1, 2], {"settings": "x"}, b"no torch at all", b""])
def test_a_saved_state_of_another_shape_is_said_and_training_begins_anew(run, state):
    path = run.path / "finetune" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(state) if isinstance(state, bytes) else torch.save(state, path)
    said = []
    finetune_run(run.path, [*FAST, "finetune.epochs=1"], said.append)
    assert said[0] in (
        f"{path} cannot be read: training begins anew",
        f"{path} is of other settings: training begins anew",
    )
    assert said[1].startswith("epoch    1/1")


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pretrained", "scratch"])
def test_motions_are_learnt_well_above_chance(tmp_path, init):
    torch.manual_seed(0)
    data = packed_motions(tmp_path / "data", 45)
    run = make_run(tmp_path / "run", data, model={"width": 8, "dim": 16})
    words = [
        "finetune.epochs=15",
        "finetune.batch=8",
        "finetune.lr=0.003",
        "finetune.dropout=0.2",
        "finetune.backbone_lr=1",
    ]
    results = finetune_run(run.path, [*words, f"init={init}"], quiet).results
    assert results.chance == pytest.approx(1 / 3, abs=1e-6)
    assert results.chosen.accuracy > 0.75
    assert results.last.accuracy > 0.7
