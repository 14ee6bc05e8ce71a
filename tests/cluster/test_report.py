from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from cluster.report import write_report
from vidssl.embeddings import Embedded, save_embeddings
from vidssl.errors import CheckpointError
from vidssl.recipe import load_recipe
from vidssl.run_folder import RunFolder


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
    about = {"id": "p1_strict", "search": "leave one group out", "windows": 5, "T": 8, "stride": 2, "size": 64}
    about |= {"view": "rgb", "steps": 300, "seed": 0, "data_hash": "0123456789abcdef"}
    row = {"recall": {"1": 0.4321, "5": 0.8}, "r1_interval95": [0.4, 0.47], "queries": videos}
    retrieval = {
        "protocol": about,
        "classes": names,
        "reason": None,
        "results": {"trained": row, "untrained": row, "histogram": row, "chance": {"recall": {"1": 0.1, "5": 0.4}}},
        "per_class": {name: {"queries": 2, "trained": i / classes, "untrained": 0.1} for i, name in enumerate(names)},
        "examples": [{"query": 0, "neighbours": [1, 2], "similarity": [0.9, 0.8]}],
        "health": {"rows": 9, "dim": 4, "rankme": 3.2, "std": 0.9, "uniformity": -2.0, "verdict": "healthy: fine"},
    }
    one = {
        "precision": 0.6,
        "hit": 0.9,
        "coverage_median": 0.5,
        "coverage_q1": 0.4,
        "coverage_q3": 0.7,
        "sibling_rate": 0.0,
    }
    mining = {
        "protocol": {"plan": "cascade S=3 last pool p=20", "k": 5, "bank_step": 300, "filled": 200, "slots": 220},
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
    assert "No numbers: the labels are unknown" in text


def test_a_damaged_result_is_named(run):
    (run.evaluation / "mining.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"mining.json is damaged .* remove it and evaluate again"):
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
