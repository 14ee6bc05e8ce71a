from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.embed import embed_run
from cluster.evaluation.evaluate import evaluate_run, results_table
from cluster.evaluation.retrieval import search_videos
from cluster.evaluation.sides import sides_of
from cluster.report.write import write_report
from cluster.subject import open_subject
from pipelines.dataset.manifest import load_manifest, write_manifest
from pipelines.pack import pack
from pipelines.synthetic import make_motion_set
from vidssl.batch import Embeddings
from vidssl.errors import BusyError, CheckpointError, DataError, RecipeError, StorageError
from vidssl.methods import build_method
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import save_snapshot
from vidssl.recipe import Recipe, load_recipe
from vidssl.records import to_tree
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.embeddings import Embedded, load_embeddings
from vidssl.saved.run_folder import RunFolder

VIDEOS = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    table = make_motion_set(root / "videos", videos=VIDEOS, frames=20, size=64, seed=1)
    pack("csv", table, root / "packed", workers=1)
    return load_manifest(root / "packed")


def make_run(path, packed, **method):
    """A run folder as training leaves it, with random weights and a bank of random rows."""
    recipe = Recipe.model_validate(
        {
            "name": path.name,
            "data": str(packed.root),
            "clips": {"frames": 4, "stride": 2, "size": 32},
            "model": {"width": 4, "dim": 8},
            "method": {"name": "cpr", "queue": 8, "warmup_steps": 1} | method,
            "mining": {"pool": 6, "topk": 2},
            "evaluation": {"windows": 2, "batch": 4},
            "trainer": {"device": "cpu"},
        }
    )
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.recipe.write_text(recipe.to_yaml())
    folder.facts.write_text(json.dumps({"data_hash": packed.hash, "command": "vidssl train x"}))
    trained = build_method(recipe, seed=99)
    meta = Meta(7, recipe.fingerprint(), packed.hash, 1, 0)
    save_checkpoint(folder, meta, 0, {}, {"method": trained.state_dict(), "optimizer": {}})
    if recipe.method.name != "infonce":
        bank = EmbeddingBank(len(packed), 8, recipe.views, packed.samples.group.astype(np.int64))
        rng, train = np.random.default_rng(0), packed.rows("train")
        rows = {view: rng.normal(size=(len(train), 8)) for view in recipe.views}
        unit = {view: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for view, x in rows.items()}
        bank.push(Embeddings(unit, train, 6, 0))
        save_snapshot(bank, folder.bank, 7, extra={"data_hash": packed.hash})
    return folder


@pytest.fixture(scope="module")
def run(packed, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one", packed)


def keys_of(protocol):
    """The keys of a protocol in a file."""
    return set(to_tree(protocol))


@pytest.fixture(scope="module")
def results(run):
    return evaluate_run(run.path)


def test_embed_stores_unit_embeddings_features_and_the_protocol_of_every_video(run, packed, tmp_path):
    store = load_embeddings(embed_run(run.path, ["view=all", f"out={tmp_path / 'e.zarr'}"]))
    assert store.instance.tolist() == list(range(VIDEOS))
    np.testing.assert_array_equal(store.label, packed.samples.label)
    assert set(store.split) == {"train", "test"}
    for view in ("rgb", "residual"):
        assert store.feature[view].shape[0] == VIDEOS
        np.testing.assert_allclose(np.linalg.norm(store.embedding[view], axis=1), 1, atol=1e-5)
    needed = {
        "run",
        "steps",
        "checkpoint_sha256",
        "data_hash",
        "T",
        "stride",
        "size",
        "windows",
        "crops",
        "views",
        "seed",
    }
    assert needed | {"versions"} <= set(store.protocol)


def test_embeddings_equal_those_of_the_encoder_run_by_hand_on_the_same_windows(run, packed, tmp_path):
    from pipelines.loader import EvalLoader, LoaderSpec
    from vidssl.saved.trained import load_method

    store = load_embeddings(embed_run(run.path, [f"out={tmp_path / 'e.zarr'}"]))
    method, recipe, _ = load_method(run)
    spec = LoaderSpec(recipe.clips, recipe.augment, recipe.loader, ("rgb",), 1, 0)
    rows = []
    with torch.no_grad():
        for batch in EvalLoader(packed, spec, windows=2, device=torch.device("cpu"), instances=np.array([5])):
            rows.append(method.encoder("rgb").features(batch.clips["rgb"][:, 0])[0].numpy())
    assert len(rows) == 2
    expected = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
    np.testing.assert_allclose(store.feature["rgb"][5], expected, atol=1e-5)


def test_the_json_carries_its_protocol(results):
    needed = {"data_hash", "query_split", "gallery_split", "T", "stride", "size", "view", "windows", "crops", "seed"}
    assert needed | {"epochs", "steps", "checkpoint", "centring", "id"} <= keys_of(results["retrieval"].protocol)
    assert {"plan", "last_pool", "k", "bank_step", "data_hash"} <= keys_of(results["mining"].protocol)
    assert results["retrieval"].protocol.checkpoint == "last"


def test_trained_untrained_histogram_and_chance_are_reported_side_by_side(results):
    table = results["retrieval"].results
    assert list(table) == ["trained", "untrained", "histogram", "chance"]
    assert table["trained"].queries == 10
    assert table["trained"].gallery == 20
    assert table["chance"].recall["1"] == pytest.approx(0.1)
    assert table["trained"].omitted_k == (20, 50)
    lines = results_table(results)
    assert "histogram" in lines
    assert "cascade" in lines


def test_the_files_hold_what_was_returned(run, results):
    for name in ("retrieval", "mining"):
        assert json.loads((run.evaluation / f"{name}.json").read_text()) == to_tree(results[name])


def test_two_evaluations_write_the_same_bytes_and_another_batch_the_same_numbers(run, results):
    before = {p.name: p.read_bytes() for p in run.evaluation.glob("*.json")}
    evaluate_run(run.path)
    assert {p.name: p.read_bytes() for p in run.evaluation.glob("*.json")} == before
    evaluate_run(run.path, ["evaluation.batch=7"])
    for name in ("retrieval", "mining"):
        again = json.loads((run.evaluation / f"{name}.json").read_text())
        assert again["results"] == to_tree(results[name])["results"]


def test_the_untrained_rival_is_the_network_before_training(run, packed, tmp_path):
    recipe = run.read_recipe()
    fresh = make_run(tmp_path / "fresh", packed)
    start = build_method(recipe, recipe.seed).state_dict()
    meta = Meta(7, recipe.fingerprint(), packed.hash, 1, 0)
    save_checkpoint(fresh, meta, 0, {}, {"method": start, "optimizer": {}})
    table = evaluate_run(fresh.path)["retrieval"].results
    assert table["trained"] == table["untrained"]


def test_baseline_off_leaves_out_the_untrained_network(run, packed, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(run.path, other)
    assert "untrained" not in evaluate_run(other, ["baseline=off"])["retrieval"].results


def test_the_funnel_starts_with_the_allowed_bank_and_ends_with_k(results):
    stages, mined = results["mining"].stages, results["mining"].results
    assert [stage.left for stage in stages] == [19.0, pytest.approx(10, abs=1), 6.0, 2.0]
    assert stages[0].purity == pytest.approx(1 / 19, abs=1e-6)  # 20 training videos, 2 of each class
    assert {"cascade", "single", "sum", "random"} <= set(mined)
    assert stages[-1].purity == pytest.approx(mined["cascade"].precision, abs=1e-6)


def test_class_mining_recall_is_kept_by_class_and_counts_only_videos_that_could_be_mined(results, packed):
    mined = results["mining"].results
    for one in mined.values():
        assert one.per_class.keys() == set(packed.classes)
        assert one.coverage_median == pytest.approx(np.median(list(one.per_class.values())), abs=1e-6)
        assert one.coverage_least == min(one.per_class.values())
    # two training videos of each class, of two sources: each is the other's mate, and test videos have no row
    assert set(mined["oracle"].per_class.values()) == {1.0}
    said = "\n".join(results_table({"mining": results["mining"]}).splitlines())
    assert (
        "class mining recall: share of a class's videos that another video of the class mined, median over classes"
        in said
    )


def test_infonce_has_no_mining_to_measure_and_says_so(packed, tmp_path):
    folder = make_run(tmp_path / "plain", packed, name="infonce", warmup_steps=0)
    results = evaluate_run(folder.path, ["baseline=off"])
    assert results["mining"].results is None
    assert results["mining"].reason == "infonce does not mine"
    assert "does not mine" in results_table(results)
    assert "This run does not mine" in write_report(folder.path).read_text()


def test_without_labels_there_are_no_numbers_but_embeddings(packed, tmp_path, monkeypatch):
    import cluster.subject

    folder = make_run(tmp_path / "blind", packed)
    opened = cluster.subject.open_subject(folder.path, [])
    monkeypatch.setattr("cluster.evaluation.evaluate.open_subject", lambda *_: opened)
    opened.manifest.samples.label[:] = -1
    results = evaluate_run(folder.path, ["baseline=off"])
    assert results["retrieval"].results is None
    assert results["mining"].reason == "the labels are unknown"
    assert "labels are unknown" in results_table(results)
    assert len(load_embeddings(folder.evaluation / "embeddings.zarr")) == VIDEOS
    assert "No score: the labels are unknown" in write_report(folder.path).read_text()


def test_data_without_splits_leaves_one_group_out():
    n = 12
    store = Embedded({}, {}, np.arange(n), np.arange(n) // 2, np.arange(n) // 4, np.full(n, "all"), np.full(n, "x"), {})
    rows = np.eye(3)[store.label] + 0.01 * np.random.default_rng(0).normal(size=(n, 3))
    assert sides_of([rows], store)[1] is None
    found = search_videos({"trained": [rows]}, store, "p1_strict", (1, 2), ["a", "b", "c"])
    assert found.results["trained"].recall["1"] == 1.0
    assert found.results["chance"].recall["1"] == pytest.approx(2 / 10)
    for example in found.examples:
        assert all(i // 2 != example.query // 2 for i in example.neighbours)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["evaluation.protocol=p9"],
            "evaluation.protocol='p9': input should be 'p1_strict', 'p1_ref', 'p2' or 'centre'",
        ),
        (["clips.frames=8"], "'clips.frames=8' cannot be set for a run that is trained"),
        (["baseline=random"], "baseline=random is unknown; type baseline= one of untrained, off"),
        (["view=flow"], "no encoder of view=flow; type view= one of rgb, residual"),
    ],
)
def test_words_that_cannot_be_are_refused(run, words, sentence):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        evaluate_run(run.path, words)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        evaluate_run(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "young", ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        evaluate_run(tmp_path / "young")


def test_other_data_is_refused_unless_it_is_named(run, packed, tmp_path):
    make_motion_set(tmp_path / "videos", videos=10, frames=12, size=64, seed=5)
    other = pack("csv", tmp_path / "videos" / "videos.csv", tmp_path / "packed", workers=1)
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    recipe = (moved / "recipe.yaml").read_text().replace(str(packed.root), str(tmp_path / "packed"))
    (moved / "recipe.yaml").write_text(recipe)
    with pytest.raises(DataError, match=r"holds other data \(hash .*\) than this run was trained on .*type data="):
        evaluate_run(moved)
    found = evaluate_run(moved, [f"data={tmp_path / 'packed'}", "baseline=off"])
    assert found["retrieval"].protocol.data_hash == other.hash
    assert found["retrieval"].protocol.trained_on == packed.hash
    assert found["mining"].results is None


def test_data_that_is_gone_is_named(run, packed, tmp_path):
    shutil.copytree(run.path, tmp_path / "lost")
    recipe = (tmp_path / "lost" / "recipe.yaml").read_text().replace(str(packed.root), str(tmp_path / "nowhere"))
    (tmp_path / "lost" / "recipe.yaml").write_text(recipe)
    with pytest.raises(DataError, match=r"is not at .*nowhere; if it has moved, type data=FOLDER"):
        embed_run(tmp_path / "lost")


@pytest.fixture(scope="module")
def everything(packed, tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "all", packed)
    words = ["what=knn,linear,fewshot", "evaluation.probe_epochs=3", "evaluation.probe_lr=[0.3,1.0]"]
    alone = evaluate_run(folder.path, [*words, "evaluation.neighbours=4"])
    return folder, alone, evaluate_run(folder.path, ["what=retrieval,linear", "view=joint", *words[1:]])


def test_only_what_was_asked_for_is_measured_and_written(everything, run, results):
    folder, alone, both = everything
    assert list(alone) == ["knn", "linear", "fewshot"]
    assert list(both) == ["retrieval", "linear"]
    assert {p.name for p in folder.evaluation.glob("*.json")} == {
        "knn.json",
        "linear.json",
        "fewshot.json",
        "retrieval-joint.json",
        "linear-joint.json",
    }
    assert list(results) == ["retrieval", "mining"]  # the usual evaluation did not get longer
    for name, result in alone.items():
        assert json.loads((folder.evaluation / f"{name}.json").read_text()) == to_tree(result)


def test_every_number_of_a_classifier_stands_beside_its_rivals_and_carries_its_protocol(everything):
    _, alone, _ = everything
    for name, own in (
        ("knn", {"neighbours", "vote"}),
        ("linear", {"probe", "probe_epochs", "chosen_on", "train_videos", "test_videos", "sides"}),
        ("fewshot", {"draws", "classifier", "interval"}),
    ):
        assert list(alone[name].results) == ["trained", "untrained", "histogram", "chance"]
        assert own | {"data_hash", "T", "size", "view", "seed", "checkpoint", "crops"} <= keys_of(alone[name].protocol)
    assert alone["knn"].protocol.neighbours == 4
    linear = alone["linear"].results["trained"]
    assert linear.queries == 10
    assert linear.streams[0].lr in (0.3, 1.0)
    assert len(linear.streams[0].tried) == 4
    assert 0 < linear.streams[0].held_out_videos < 20
    assert len(alone["fewshot"].results["trained"]["1"].draws) == 10


def test_shots_that_a_class_does_not_have_are_said_beside_the_interval(everything):
    _, alone, _ = everything  # two training videos of each class
    assert alone["fewshot"].results["trained"]["5"].classes_with_fewer == 10
    text = results_table(alone)
    assert "for n = 5, 10 classes have fewer training videos, and all of theirs were taken in every draw" in text
    assert "for n = 1" not in text
    assert all(line == line.rstrip() for line in text.splitlines() if "chance" in line)


def test_the_knn_of_an_evaluation_equals_votes_counted_by_hand(everything):
    folder, alone, _ = everything
    store = load_embeddings(folder.evaluation / "embeddings.zarr")
    rows = store.feature["rgb"].astype(np.float64)
    train, test = store.split == "train", store.split == "test"
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    score = unit(rows[test] - rows[train].mean(0)) @ unit(rows[train] - rows[train].mean(0)).T
    right = 0.0
    for own, line in zip(store.label[test], score, strict=True):
        near = np.argsort(-line)[:4]
        votes = np.bincount(store.label[train][near], np.exp(line[near] / 0.07), minlength=10)
        right += votes.argmax() == own
    assert alone["knn"].results["trained"].accuracy == pytest.approx(right / test.sum(), abs=1e-6)


def test_two_streams_are_shown_together_and_each_alone(everything):
    _, _, both = everything
    assert list(both["retrieval"].results) == [
        "trained",
        "untrained",
        "rgb alone",
        "residual alone",
        "histogram",
        "chance",
    ]
    assert both["retrieval"].protocol.view == "rgb + residual"
    assert both["retrieval"].protocol.fusion == "sum of the two similarity matrices"
    assert both["linear"].protocol.fusion == "mean of the two probability vectors"
    assert len(both["linear"].results["trained"].streams) == 2


def test_p2_looks_at_ten_clips_and_puts_the_streams_side_by_side(packed, tmp_path):
    folder = make_run(tmp_path / "p2", packed)
    words = ["what=retrieval", "evaluation.protocol=p2", "baseline=off", "view=joint"]
    found = evaluate_run(folder.path, words)["retrieval"]
    about = found.protocol
    assert (about.id, about.windows, about.centring) == ("p2", 10, "none")
    assert about.fusion == "features side by side"
    assert about.crops == "centre, 7/8 of the short side"
    assert {"rgb alone", "residual alone"} <= set(found.results)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluation.protocol=p1_ref", "evaluation.crop=0.93333"], ("centre, 14/15 of the short side", 0.93333)),
        (["evaluation.protocol=p2"], ("centre, 7/8 of the short side", 0.875)),
        (["evaluation.crop=0.5"], ("centre", 1.0)),
    ],
)
def test_every_number_says_which_square_of_the_frame_was_shown(run, words, told):
    from cluster.subject import open_subject

    about = open_subject(run.path, words).protocol()
    assert (about.crops, about.crop) == told


def test_features_are_those_of_the_square_that_was_asked_for(run, packed):
    from cluster.embed import describe
    from cluster.subject import open_subject
    from pipelines.loader import EvalLoader, LoaderSpec
    from vidssl.evaluation.encode import EncoderReader

    subject = open_subject(run.path, ["evaluation.protocol=p1_ref", "evaluation.crop=0.5", "evaluation.windows=1"])
    encoder, recipe = subject.encoder("rgb"), subject.recipe
    found = describe(subject, [EncoderReader(encoder, "rgb")], ("rgb",), np.array([5]))
    spec = LoaderSpec(recipe.clips, recipe.augment, recipe.loader, ("rgb",), 4, 0)
    ways = {"windows": 1, "device": torch.device("cpu"), "instances": np.array([5]), "rule": "p1", "crops": "inner"}
    by_hand = {}
    for share in (0.5, 0.875):
        batch = next(iter(EvalLoader(packed, spec, share=share, **ways)))
        with torch.no_grad():
            by_hand[share] = torch.nn.functional.normalize(encoder.features(batch.clips["rgb"][:, 0]), dim=1).numpy()
    np.testing.assert_allclose(found.rows["feature/rgb"], by_hand[0.5], atol=1e-5)
    assert np.abs(by_hand[0.5] - by_hand[0.875]).max() > 1e-3


def test_ten_crops_average_the_probabilities_of_all_windows_and_crops(packed, tmp_path):
    from cluster.evaluation.evaluator import Seen
    from cluster.evaluation.linear import Linear, ten_crops
    from cluster.subject import open_subject
    from pipelines.loader import EvalLoader, LoaderSpec
    from vidssl.evaluation.probe import linear_probe

    folder = make_run(tmp_path / "ten", packed)
    words = ["evaluation.crops=ten", "evaluation.probe_epochs=2", "evaluation.probe_lr=[0.3]"]
    subject = open_subject(folder.path, [*words, "evaluation.probe_weight_decay=[0.001]"])
    looked = Seen(subject, ("rgb",), untrained=False)
    assert Linear().measure(subject, looked).protocol.crops.startswith("ten")
    seen = looked.features
    rows, store, recipe = seen.pooled["trained"][0], seen.store, subject.recipe
    options = {"classes": 10, "rates": (0.3,), "decays": (1e-3,), "epochs": 2, "held_out": 0.2}
    probe = linear_probe(rows, store.label, store.group, rows, **options)
    found = ten_crops(subject, seen, {"trained": [probe]}, np.array([5]))["trained"][0]
    spec = LoaderSpec(recipe.clips, recipe.augment, recipe.loader, ("rgb",), 20, 0)
    loader = EvalLoader(packed, spec, windows=2, device=torch.device("cpu"), instances=np.array([5]), crops="ten")
    with torch.no_grad():
        clips = torch.cat([batch.clips["rgb"][:, 0] for batch in loader])
        unit = torch.nn.functional.normalize(subject.encoder("rgb").features(clips))
        expected = torch.softmax(probe.layer(unit), 1).mean(0)
    assert len(clips) == 20
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_a_card_is_evaluated_and_has_no_mining(run, packed, tmp_path):
    from vidssl.saved.card import Facts, card_of, export
    from vidssl.saved.trained import load_method

    method, recipe, step = load_method(run)
    card = card_of(recipe, "rgb", Facts(method="cpr", source="a run", steps=step, seed=0))
    export(tmp_path / "card", method.encoder("rgb").state_dict(), card)
    found = evaluate_run(tmp_path / "card", [f"data={packed.root}", "baseline=off"])
    assert found["mining"].results is None
    assert "a card has no bank" in results_table(found)
    assert (tmp_path / "card" / "eval" / "retrieval.json").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["what=magic"], "what=magic is unknown; type what= some of retrieval,mining,knn,linear,fewshot, or what=all"),
        (["what="], "what= is unknown"),
        (["view=all"], "an evaluation looks at one view; type view= one of rgb, residual, joint"),
    ],
)
def test_unknown_words_of_what_and_view_are_one_sentence(run, words, sentence):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        evaluate_run(run.path, words)


def test_one_stream_cannot_be_joined(packed, tmp_path):
    folder = make_run(tmp_path / "single", packed, name="infonce", warmup_steps=0)
    with pytest.raises(RecipeError, match="view=joint needs two streams, single has an encoder of rgb only"):
        evaluate_run(folder.path, ["view=joint"])


def test_a_collapsed_encoder_raises_the_alarm_in_what_is_printed(packed, tmp_path):
    folder = make_run(tmp_path / "flat", packed)
    recipe = folder.read_recipe()
    state = build_method(recipe, 99).state_dict()
    state = {key: value * 0 if "head.2.weight" in key else value for key, value in state.items()}
    meta = Meta(7, recipe.fingerprint(), packed.hash, 1, 0)
    save_checkpoint(folder, meta, 0, {}, {"method": state, "optimizer": {}})
    found = evaluate_run(folder.path, ["what=knn", "baseline=off"])
    assert "ALARM, embeddings collapsed: all clips have nearly the same embedding" in results_table(found)
    assert found["knn"].health.alignment == pytest.approx(0, abs=1e-5)


class Loads(HTMLParser):
    """Collects everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


def test_the_report_shows_real_frames_and_loads_nothing(run, results):
    text = write_report(run.path).read_text()
    page = Loads()
    page.feed(text)
    assert all(target.startswith(("data:", "#")) for target in page.found)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    pictures = [target for target in page.found if target.startswith("data:image")]
    assert len(pictures) == 8 * 6
    for uri in pictures:
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).std() > 5


def test_the_numbers_are_said_before_it_is_found_that_they_cannot_be_stored(run, packed, tmp_path):
    folder = tmp_path / "full"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("eval"))
    (folder / "eval").write_text("a file where the folder should be")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = []
    with pytest.raises(
        StorageError, match=r"what was measured is not stored: .*/eval cannot be written .* copy the run"
    ) as error:
        evaluate_run(folder, ["baseline=off"], said.append)
    assert "retrieval p1_strict on data" in said[0]
    assert "mining on the bank of step 7" in said[0]
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_two_evaluations_do_not_write_into_one_folder_at_once(run, packed, tmp_path):
    folder = tmp_path / "busy"
    shutil.copytree(run.path, folder)
    code = (
        "import sys, time; from pathlib import Path; from vidssl.lock import held\n"
        "with held(Path(sys.argv[1]), 'evaluate'): print('held', flush=True); time.sleep(120)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder / "eval")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        said = []
        with pytest.raises(BusyError, match=rf"eval is in use by `vidssl evaluate` \(process {other.pid} on "):
            evaluate_run(folder, ["baseline=off", "what=mining"], said.append)
        assert "mining on the bank" in said[0]
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    said.clear()
    evaluate_run(folder, ["baseline=off", "what=mining"], said.append)  # the lock of the dead one is taken over
    assert "is taken over" in said[1]


def test_a_run_of_phases_names_its_phases(run, packed, tmp_path):
    recipe = load_recipe("cpr-cycles-tiny", [f"data={packed.root}"])
    folder = RunFolder(tmp_path / "cycles")
    for phase in recipe.phases[:2]:
        shutil.copytree(run.path, folder.path / phase.name)
    folder.recipe.write_text(recipe.to_yaml())
    names = ", ".join(str(folder.path / phase.name) for phase in reversed(recipe.phases[:2]))
    for look in (evaluate_run, embed_run, write_report):
        with pytest.raises(CheckpointError, match="each is a run of its own; give one of them: ") as error:
            look(folder.path)
        assert str(error.value).endswith(names)
    assert not folder.report.exists()
    assert write_report(folder.path / recipe.phases[0].name).is_file()


def test_a_page_about_unlabelled_data_advises_nothing_that_needs_labels(packed, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(packed.root, bare)
    data = load_manifest(bare)
    data.samples.label[:] = -1
    write_manifest(data)
    data = load_manifest(bare)
    folder = make_run(tmp_path / "blind", data)
    found = evaluate_run(folder.path, ["baseline=off"])
    assert found["retrieval"].reason == "the labels are unknown, so there is no R@k"
    text = re.sub(r"<[^>]+>", "", write_report(folder.path).read_text())
    assert "what=knn" not in text
    assert (
        "The labels are unknown, and every one of them needs labels: pack a folder with one sub-folder per class"
        in text
    )
    assert "No pictures: the labels are unknown, so there is no R@k." in text
    assert "no query has a label" not in text
    evaluate_run(folder.path, ["what=all", "baseline=off"])
    text = re.sub(r"<[^>]+>", "", write_report(folder.path).read_text())
    assert text.count("No score: the labels are unknown, so there is no accuracy") == 3


def test_a_run_trained_on_a_gpu_says_that_it_is_looked_at_on_a_cpu(packed, tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = make_run(tmp_path / "run", packed)
    for trained_on, told in (("cpu", []), ("cuda", ["this run was trained on a GPU and this machine has none"])):
        folder.facts.write_text(json.dumps({"device": trained_on}))
        caplog.clear()
        assert open_subject(folder.path, ["trainer.device=auto"]).device.type == "cpu"
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == told
