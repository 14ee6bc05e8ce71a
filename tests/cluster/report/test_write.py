from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from cluster.evaluation.kept import read_results
from cluster.report.results import neighbours_part
from cluster.report.write import write_report
from vidssl.errors import CheckpointError, StorageError
from vidssl.recipe import load_recipe
from vidssl.saved.embeddings import Embedded, load_embeddings, save_embeddings
from vidssl.saved.run_folder import RunFolder


class Words(HTMLParser):
    """The text of a page, and whether every element that was opened was closed."""

    VOID = frozenset({"meta", "link", "img", "line", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.unbalanced = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


ABOUT = {
    "run": "some-run", "method": "cpr", "backbone": "s3d", "recipe": None, "checkpoint_sha256": "aaaa", "seed": 0,
    "steps": 300, "epochs": 2.0, "checkpoint": "last", "dataset": "ucf101", "split": "1", "pretrained": "ucf101",
    "data_hash": "0123", "trained_on": "0123", "T": 32, "stride": 2, "size": 128, "normalize": "unit", "windows": 5,
    "window_rule": "spread", "crops": "centre", "augmentation": "none", "decode": "py", "device": "cpu", "view": "rgb",
    "stream": "rgb", "unreadable": 0, "id": "p1_strict", "centring": "gallery", "feature": "pooled",
    "similarity": "cosine", "search": "leave one group out", "query_split": "all", "gallery_split": "all",
    "groups_in_both_splits": 0, "baselines": "untrained, histogram",
}  # fmt: skip
HEALTH = {
    "rows": 9, "dim": 4, "rankme": 3.2, "std": 0.9, "dead": 0, "uniformity": -2.0, "alignment": None,
    "verdict": "healthy: fine", "collapsed": False,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "some-run")
    folder.evaluation.mkdir(parents=True)
    folder.recipe.write_text(load_recipe("cpr-tiny").to_yaml())
    return folder


def fill(folder, classes, videos=220):
    """Results of an evaluation with that many classes, made up but of the right form."""
    names = [f"class <{i}>" for i in range(classes)]
    rng, label = np.random.default_rng(0), np.arange(videos) % classes
    store = Embedded(
        feature={"rgb": rng.normal(size=(videos, 6)).astype(np.float32)},
        embedding={"rgb": rng.normal(size=(videos, 4)).astype(np.float32)},
        instance=np.arange(videos),
        group=np.arange(videos),
        label=label,
        split=np.full(videos, "all"),
        name=np.array([f"{i}.mp4" for i in range(videos)]),
        protocol={"classes": names},
    )
    save_embeddings(store, folder.evaluation / "embeddings.zarr")
    about = ABOUT | {"T": 8, "size": 64, "data_hash": "0123456789abcdef", "dataset": None}
    row = {"recall": {"1": 0.4321, "5": 0.8}, "r1_interval95": [0.4, 0.47], "queries": videos}
    retrieval = {
        "protocol": about,
        "classes": names,
        "reason": None,
        "results": {"trained": row, "untrained": row, "histogram": row, "chance": {"recall": {"1": 0.1, "5": 0.4}}},
        "per_class": {name: {"queries": 2, "trained": i / classes, "untrained": 0.1} for i, name in enumerate(names)},
        "examples": [{"query": 0, "neighbours": [1, 2], "similarity": [0.9, 0.8]}],
        "health": HEALTH,
    }
    one = (
        {
            "precision": 0.6,
            "hit": 0.9,
            "coverage_median": 0.5,
            "coverage_q1": 0.4,
            "coverage_q3": 0.7,
            "sibling_rate": 0.0,
        }
        | dict.fromkeys(("precision_median", "hit_median", "coverage_least", "distinct"), 0.5)
        | {"last_pool": 20}
    )
    mining = {
        "protocol": about
        | {"plan": "cascade S=3 last pool p=20", "k": 5, "bank_step": 300, "filled": 200, "slots": 220},
        "reason": None,
        "stages": [
            {"name": "the bank", "left": 199.0, "purity": 0.1},
            {"name": "stage 1: rgb", "left": 5.0, "purity": 0.6},
        ],
        "results": {"cascade": one, "single": one, "random": one},
    }
    (folder.evaluation / "retrieval.json").write_text(json.dumps(retrieval))
    (folder.evaluation / "mining.json").write_text(json.dumps(mining))
    rows = [
        {"step": s, "epoch": 0, "loss": 5 - s / 9, "lr": 1e-3, "bank_age_steps": -1.0, "odd/tag": 1.0}
        for s in range(30)
    ]
    folder.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.facts.write_text(
        json.dumps({"command": "vidssl train cpr-tiny data=P", "machine": "a box", "versions": {"torch": "9"}})
    )


def test_a_run_that_only_began_says_what_is_missing_and_what_to_type(run):
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    assert f"vidssl evaluate {run.path}" in page.text
    assert "Nothing was logged" in page.text
    assert "No pictures: not evaluated yet" in page.text


@pytest.mark.parametrize("classes", [2, 10, 101])
def test_the_page_is_whole_for_few_and_many_classes(run, classes):
    fill(run, classes)
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    assert not page.open
    assert f"class <{classes - 1}>" in page.text  # escaped in the file, a word on the page
    assert ("all 101 classes" in page.text) == (classes == 101)


def test_the_page_states_the_numbers_the_protocol_and_the_commands(run):
    fill(run, 10)
    text = Words(write_report(run.path).read_text()).text
    for words in ("43.2 %", "p1_strict", "0123456789abcdef", "vidssl train cpr-tiny data=P", "torch", "healthy: fine"):
        assert words in text
    assert "last pool p=20" in text
    assert "odd/tag" in text


def test_an_unknown_age_is_not_drawn_as_minus_one(run):
    fill(run, 3)
    text = write_report(run.path).read_text()
    after = text[text.index("Age of mined positives") :]
    assert after[:200].count("Nothing was logged") == 1


def test_pictures_that_cannot_be_read_are_explained(run):
    fill(run, 3)
    assert "No pictures: the run names no data" in Words(write_report(run.path).read_text()).text
    gone = write_report(run.path, data=run.path / "nowhere").read_text()
    assert "No pictures: the data cannot be read" in Words(gone).text


def test_evaluated_without_labels_says_so(run):
    fill(run, 3)
    for name in ("retrieval", "mining"):
        path = run.evaluation / f"{name}.json"
        tree = json.loads(path.read_text()) | {
            "results": None,
            "reason": "the labels are unknown",
            "per_class": {},
            "examples": [],
        }
        path.write_text(json.dumps(tree))
    text = Words(write_report(run.path).read_text()).text
    assert "No score: the labels are unknown" in text
    assert "No score: the labels are unknown" in text


def test_a_damaged_result_is_named(run):
    (run.evaluation / "mining.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"mining.json is damaged .* remove it and type vidssl evaluate .* what=mining"
    ):
        write_report(run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("trained", "interval", "sentence"),
    [
        (0.9, [0.85, 0.95], "beats all the others"),
        (0.45, [0.4, 0.5], "ahead of all the others, but the intervals overlap"),
        (0.4, [0.35, 0.45], "does not beat: untrained encoder"),
    ],
)
def test_the_page_says_plainly_whether_training_helped(run, trained, interval, sentence):
    fill(run, 3)
    path = run.evaluation / "retrieval.json"
    tree = json.loads(path.read_text())
    tree["results"]["trained"] |= {"recall": {"1": trained}, "r1_interval95": interval}
    path.write_text(json.dumps(tree))
    assert sentence in Words(write_report(run.path).read_text()).text


def put(run, name, results, health=None, more=(), **about):
    """One result file of an evaluation."""
    tree = {"protocol": ABOUT | about, "reason": None, "results": results, "health": health} | dict(more)
    (run.evaluation / f"{name}.json").write_text(json.dumps(tree))


def scores(trained, *more):
    one = {"accuracy": trained, "interval95": [trained - 0.05, trained + 0.05], "queries": 99, "majority": 0.3}
    one |= {"per_class_mean": 0.41, "streams": [STREAM]}
    rival = one | {"accuracy": 0.2, "interval95": [0.15, 0.25]}
    return {"trained": one, **dict.fromkeys(more, rival), "untrained": rival, "chance": {"accuracy": 0.1}}


STREAM = {"lr": 0.3, "weight_decay": 1e-3, "held_out_accuracy": 0.44, "held_out_videos": 12, "train_accuracy": 0.9}
LINEAR = {"train_videos": 80, "test_videos": 40, "sides": "the data's train and test splits"}


def test_what_was_not_measured_is_named_with_what_to_type(run):
    put(run, "knn", scores(0.5), neighbours=20)
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    assert "Nearest neighbours vote" in page.text
    assert f"vidssl evaluate {run.path} what=linear,fewshot" in page.text
    assert "Two streams together" not in page.text


def test_a_linear_probe_shows_the_setting_it_chose_and_where(run):
    put(run, "linear", scores(0.5), **LINEAR)
    text = Words(write_report(run.path).read_text()).text
    assert "rate 0.3, decay 0.001 (44.0 % on 12 held-out videos)" in text
    assert "The trained encoder beats all the others" in text


@pytest.mark.parametrize(
    ("trained", "sentence"),
    [(0.5, "Both streams together beat all"), (0.24, "overlap"), (0.1, "Both streams together do not beat: rgb alone")],
)
def test_two_streams_are_judged_against_each_alone(run, trained, sentence):
    put(run, "linear-joint", scores(trained, "rgb alone"), **LINEAR, view="rgb + residual", fusion="mean of the two")
    text = Words(write_report(run.path).read_text()).text
    assert "Two streams together" in text
    assert sentence in text


def test_published_rows_stand_beside_ours_with_what_differs(run):
    put(run, "linear", scores(0.5), **LINEAR)
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    text = page.text
    for words in ("Linear probe on UCF101, rgb", "70.2", "CoCLR README", "ten crops at the test, ours the centre"):
        assert words in text
    assert "epochs 500, ours 2" in text


def test_data_that_no_paper_reports_gets_no_row_of_a_paper(run):
    put(run, "linear", scores(0.5), **LINEAR, dataset=None)
    text = Words(write_report(run.path).read_text()).text
    assert "No published row is for this data (0123)" in text
    assert "CoCLR" not in text


def test_a_collapse_is_the_first_thing_the_page_says(run):
    bad = HEALTH | {"rankme": 1.0, "std": 0.0, "uniformity": 0.0, "collapsed": True}
    put(run, "knn", scores(0.5), neighbours=5, health=bad | {"verdict": "collapsed: all clips have nearly the same"})
    text = write_report(run.path).read_text()
    assert text.index("The embeddings have collapsed: all clips") < text.index("<h2>")
    fill(run, 3)
    (run.evaluation / "knn.json").unlink()
    assert 'class="alarm"' not in write_report(run.path).read_text()


def log(run, rows):
    run.log.write_text("".join(json.dumps({"step": s, "epoch": 0, **row}) + "\n" for s, row in enumerate(rows)))


def test_a_vicc_run_shows_its_prototypes_and_says_when_it_is_stuck(run):
    words = ["method.name=vicc", "method.warmup_steps=0", "method.vicc.prototypes=48"]
    run.recipe.write_text(load_recipe("cpr-tiny", words).to_yaml())
    rows = [{"loss": 3.87, "prototypes/used": 0.5, "prototypes/entropy": 0.9, "vicc/ln_p_gap": 0.0}] * 900
    log(run, rows)
    text = write_report(run.path).read_text()
    assert text.index("Prototypes stuck: the loss has stayed") < text.index("<h2>")
    assert "Prototypes in use</figcaption>" in text
    assert "Below ln P</figcaption>" in text
    assert "90.0 % of ln P" in text
    assert "ViCC assigns clips to prototypes" in Words(text).text
    log(run, [{"loss": 2.0, "prototypes/used": 0.5, "prototypes/entropy": 0.9}] * 900)
    healthy = write_report(run.path).read_text()
    assert 'class="alarm"' not in healthy
    assert "healthy: the loss 2.00 is below ln P = 3.87" in healthy


def test_the_margin_of_iic_is_drawn_below_zero_too(run):
    words = ["method.name=iic", "method.warmup_steps=0", "mining.where=off"]
    run.recipe.write_text(load_recipe("cpr-tiny", words).to_yaml())
    log(run, [{"loss": 1.0, "iic/intra_margin": m} for m in (-0.4, -0.1, 0.3)])
    text = write_report(run.path).read_text()
    after = text[text.index("Margin over its own broken clip") :]
    assert len(after[after.index('points="') + 8 :].split('"')[0].split()) == 3
    assert "contrasted with its residual view" in text


def test_a_run_that_was_taught_with_labels_says_so(run):
    fill(run, 3)
    run.recipe.write_text(load_recipe("cpr-tiny", ["method.name=ubernce", "method.warmup_steps=0"]).to_yaml())
    text = Words(write_report(run.path).read_text()).text
    assert "No label was used in training" not in text
    assert "upper bound, no self-supervised result" in text


def test_a_card_has_a_report_too(tmp_path):
    from vidssl.encoder import build_encoder
    from vidssl.saved.card import Facts, card_of, export

    recipe = load_recipe("cpr-tiny")
    card = card_of(recipe, "rgb", Facts(method="cpr", source="some run, step 7"))
    export(tmp_path / "card", build_encoder(recipe.model).state_dict(), card)
    text = Words(write_report(tmp_path / "card").read_text()).text
    assert "taken from some run, step 7" in text
    assert "This run does not mine" in text


def test_results_of_different_checkpoints_are_not_mixed_in_silence(run):
    put(run, "knn", scores(0.5), neighbours=5, checkpoint_sha256="aaaa")
    put(run, "linear", scores(0.5), **LINEAR, checkpoint_sha256="aaaa")
    assert "different checkpoints" not in write_report(run.path).read_text()
    put(run, "linear", scores(0.5), **LINEAR, checkpoint_sha256="bbbb")
    text = Words(write_report(run.path).read_text()).text
    assert "results of different checkpoints (knn of aaaa; linear of bbbb)" in text
    assert f"vidssl evaluate {run.path} what=all" in text


def test_a_fine_tuning_stands_beside_fine_tunings_and_scratch_beside_scratch(run):
    put(run, "linear", scores(0.5), **LINEAR)
    one = {"epoch": 3, "accuracy": 0.7, "interval95": [0.6, 0.8], "mean_class_accuracy": 0.7}
    one |= {"held_out_accuracy": None, "train_accuracy": 0.9, "videos": 40}
    both = {"chosen": one, "last": one, "chance": 0.1, "largest_class": 0.1}
    own = {"init": "pretrained", "crops": "ten", "checkpoint_rule": "best on held-out groups", "id": "fine-tuning (P4)"}
    own |= {"sides": "splits", "videos": {"train": 9, "held_out": 2, "test": 4}, "finetune": {}, "finetune_seed": 0}
    own |= {"precision": "fp32", "residual": ["wrap", "none"], "held_out_share": 0.2, "rows": 9, "average": "logit"}
    more = {"per_class": {}, "history": [[1, 0.5, 0.5, None, None]]}
    put(run, "finetune", both, more=more, **own)
    put(run, "finetune-scratch", both, more=more, **own | {"init": "scratch"})
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    assert "chosen epoch (3)" in page.text
    after = page.text[page.text.index("Fine-tuning on UCF101, rgb, from random weights") :]
    assert "supervised from random weights" in after[:400]
    assert "pre-trained on nothing" not in after[:400]


def test_a_page_that_cannot_be_written_is_one_sentence_and_leaves_nothing(run):
    fill(run, 3)
    run.report.mkdir()
    before = sorted(run.path.rglob("*"))
    with pytest.raises(
        StorageError, match=r"report.html cannot be written \(.*\); make room, or copy the run to a folder"
    ):
        write_report(run.path)
    assert sorted(run.path.rglob("*")) == before


def test_other_rows_in_the_log_are_said_and_the_rest_is_drawn(run):
    fill(run, 3)
    run.log.write_text('[1]\n"x"\n{"loss": 3}\n' + run.log.read_text())
    page = Words(write_report(run.path).read_text())
    assert not page.unbalanced
    assert "3 lines of log.jsonl are no logged steps and were left out." in page.text
    assert "odd/tag" in page.text


def test_vectors_of_other_videos_are_not_taken_for_the_neighbours(run):
    fill(run, 3)
    (found,) = [one for name, one in read_results(run.evaluation, "RUN").items() if name == "retrieval"]
    store = load_embeddings(run.evaluation / "embeddings.zarr")
    others = replace(store, instance=store.instance + 1000)
    shown = [neighbours_part(found, NoStrips(), one, "").body for one in (store, others)]
    assert "this video could not be read" in shown[0]
    assert "the stored embeddings are of other videos than retrieval.json; evaluate again" in shown[1]


class NoStrips:
    """A reader of frames for videos that cannot be read."""

    def strip(self, instance):
        return None


def test_facts_that_are_empty_take_no_line_of_the_protocol(run):
    put(run, "knn", scores(0.5), neighbours=5)
    text = write_report(run.path).read_text()
    assert "<dt>epochs</dt>" in text
    assert "<dt>assumed</dt>" not in text
    put(run, "knn", scores(0.5), neighbours=5, assumed=["the seed", "the steps"])
    assert "<dt>assumed</dt><dd>the seed, the steps</dd>" in write_report(run.path).read_text()


def test_the_protocol_says_of_every_evaluation_what_is_not_as_in_the_first(run):
    put(run, "knn", scores(0.5), neighbours=5)
    put(run, "linear", scores(0.5), **LINEAR)
    put(run, "linear-joint", scores(0.5, "rgb alone"), **LINEAR, view="rgb + residual", fusion="mean of the two")
    text = write_report(run.path).read_text()
    cards = {part.partition("</figcaption>")[0]: part for part in text.split("<figcaption>") if "<dl" in part}
    lines = {name: re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part) for name, part in cards.items()}
    assert ("view", "rgb") in lines["knn"]
    assert ("view", "rgb") not in lines["linear"]
    assert ("view", "rgb + residual") in lines["linear-joint"]
    assert ("train_videos", "80") in lines["linear-joint"]  # the first card does not say it for this one
    assert not {"run", "seed", "T", "data_hash"} & dict(lines["linear-joint"]).keys()


def test_a_section_of_the_recipe_is_words_and_no_code(run):
    one = {"epoch": 3, "accuracy": 0.7, "interval95": [0.6, 0.8], "mean_class_accuracy": 0.7}
    one |= {"held_out_accuracy": None, "train_accuracy": 0.9, "videos": 40}
    own = {"init": "pretrained", "checkpoint_rule": "best", "id": "fine-tuning (P4)", "finetune": {"epochs": 7}}
    own |= {"sides": "splits", "videos": {"train": 9, "held_out": 2, "test": 4}, "finetune_seed": 0, "rows": 9}
    own |= {"precision": "fp32", "residual": ["wrap", "none"], "held_out_share": 0.2, "average": "logit"}
    more = {"per_class": {}, "history": []}
    put(run, "finetune", {"chosen": one, "last": one, "chance": 0.1, "largest_class": 0.1}, more=more, **own)
    text = write_report(run.path).read_text()
    assert "<dt>videos</dt><dd>train 9, held_out 2, test 4</dd>" in text
    assert "<dt>finetune</dt><dd>epochs 7, batch 32, optimizer adam" in text


def test_class_mining_recall_is_drawn_class_by_class_with_the_main_view_as_a_tick(run):
    fill(run, 3)
    path = run.evaluation / "mining.json"
    tree = json.loads(path.read_text())
    assert "Class mining recall, class by class" not in write_report(run.path).read_text()  # of an earlier version
    tree["results"]["cascade"]["per_class"] = {"jump": 0.25, "wave <b>": 0.75, "walk": 0.5}
    tree["results"]["single"]["per_class"] = {"jump": 0.5, "wave <b>": 0.125, "walk": 0.5}
    path.write_text(json.dumps(tree))
    text = write_report(run.path).read_text()
    part = text.partition("<h3>Class mining recall, class by class</h3>")[2].partition("</section>")[0]
    bars = re.findall(r'<span title="(.*?)">.*?width:(.*?)%.*?left:(.*?)%.*?<b>(.*?)</b>', part)
    assert bars == [
        ("wave &lt;b&gt;", "75.0", "12.5", "75"),
        ("walk", "50.0", "50.0", "50"),
        ("jump", "25.0", "50.0", "25"),
    ]
    assert "Class mining recall: share of a class&#x27;s videos that another video of the class mined" in part


def test_of_many_classes_the_best_and_the_worst_stand_on_the_page_and_all_are_folded_away(run):
    fill(run, 3)
    path = run.evaluation / "mining.json"
    tree = json.loads(path.read_text())
    for one in tree["results"].values():
        one["per_class"] = {f"class {i:02}": i / 40 for i in range(40)}
    path.write_text(json.dumps(tree))
    part = write_report(run.path).read_text().partition("<h3>Class mining recall, class by class</h3>")[2]
    assert "<h3>best 12</h3>" in part
    assert "<h3>worst 12</h3>" in part
    assert "all 40 classes" in part
