"""Ours beside published: the right row beside the right split, the mean of the splits, and in what the two differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.keywords import ReproduceWords
from cluster.reproduce.lines import lines_of, verdict_of
from cluster.reproduce.names import reproduction
from cluster.reproduce.steps import Task, results_folder
from cluster.reproduce.table import table_text, write_table
from cluster.reproduce.verb import settle

ABOUT = {
    "run": "first-2", "method": "cpr", "backbone": "s3d", "recipe": None, "checkpoint_sha256": "aaaa", "seed": 0,
    "steps": 300, "epochs": 100.0, "checkpoint": "last", "dataset": "ucf101", "split": "1", "pretrained": "ucf101",
    "data_hash": "0123", "trained_on": "0123", "T": 32, "stride": 1, "size": 128, "normalize": "unit", "windows": 0,
    "window_rule": "p1", "crops": "ten", "augmentation": "none", "decode": "py", "device": "cuda", "view": "rgb",
    "stream": "rgb", "unreadable": 0, "id": "p1_ref",
}  # fmt: skip
OF_FEATURES = {
    "centring": "own", "feature": "pooled", "similarity": "cosine", "search": "test → train", "query_split": "test",
    "gallery_split": "train", "groups_in_both_splits": 0, "baselines": "untrained, histogram",
}  # fmt: skip
OF_TRAINING = {
    "id": "P4, fine-tuned end to end", "init": "pretrained", "sides": "splits", "unreadable": 0, "finetune": {}, "finetune_seed": 0,
    "videos": {"train": 9537, "held_out": 0, "test": 3783}, "precision": "fp32", "residual": ["wrap", "none"], "rows": 1,
    "checkpoint_rule": "last", "held_out_share": 0.2, "average": "probability",
}  # fmt: skip


def put(task: Task, step: str, name: str, tree: object) -> None:
    path = results_folder(task.home, step) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def retrieval(r1: float, **about: object) -> dict[str, object]:
    row = {"recall": {"1": r1, "5": 0.7}, "r1_interval95": [r1 - 0.01, r1 + 0.01], "queries": 3783}
    rivals = {"untrained": {"recall": {"1": 0.1, "5": 0.2}}, "chance": {"recall": {"1": 0.01, "5": 0.05}}}
    return {"protocol": ABOUT | OF_FEATURES | about, "classes": [], "results": {"trained": row, **rivals}}


def linear(accuracy: float, **about: object) -> dict[str, object]:
    return {
        "protocol": ABOUT | OF_FEATURES | about,
        "results": {"trained": {"accuracy": accuracy}, "chance": {"accuracy": 0.02}},
    }


def finetuned(accuracy: float, **about: object) -> dict[str, object]:
    one = {
        "epoch": 500, "accuracy": accuracy, "interval95": [accuracy - 0.01, accuracy + 0.01], "mean_class_accuracy": 0.5,
        "held_out_accuracy": None, "train_accuracy": 0.9, "videos": 3783,
    }  # fmt: skip
    epochs = {"chosen": one, "last": one, "chance": 0.01, "largest_class": 0.02}
    return {"protocol": ABOUT | OF_TRAINING | about, "results": epochs, "per_class": {}, "history": []}


def task_of(name: str, home: Path, **words: str) -> Task:
    return settle(reproduction(name), home, ReproduceWords.model_validate(words), [])


@pytest.fixture
def cpr(tmp_path) -> Task:
    task = task_of("cpr-ucf101", tmp_path)
    put(task, "features-first-ucf101-1", "retrieval.json", retrieval(0.551))
    for fold, accuracy in ((1, 0.80), (2, 0.83), (3, 0.86)):
        # Shown another split, a result does not know where its network was trained, nor for how long.
        about = {} if fold == 1 else {"pretrained": None, "epochs": None, "split": str(fold)}
        put(task, f"finetune-first-ucf101-{fold}", "finetune.json", finetuned(accuracy, **about))
        put(task, f"features-first-ucf101-{fold}", "linear.json", linear(0.5 + fold / 10, **about))
    return task


def test_a_published_row_stands_beside_the_value_of_the_split_that_it_states(cpr):
    by = {(line.task, line.split): line for line in lines_of(cpr)}
    assert by["retrieval", "1"].published == {"1": 56.7}
    assert by["retrieval", "1"].ours["1"] == 55.1
    assert by["retrieval", "1"].rivals == {"untrained": 10.0, "chance": 1.0}
    assert by["finetune", "1"].published == {"accuracy": 83.8}
    assert by["finetune", "1"].ours == {"accuracy": 80.0}
    assert by["finetune", "1"].source == "CPR abstract"


def test_the_mean_is_that_of_all_splits_and_has_no_row_where_none_is_published(cpr):
    lines = [line for line in lines_of(cpr) if line.split == "mean of 3"]
    assert [(line.task, line.ours["accuracy"], line.each) for line in lines] == [
        ("linear", 70.0, (60.0, 70.0, 80.0)),
        ("finetune", 83.0, (80.0, 83.0, 86.0)),
    ]
    assert {line.verdict for line in lines} == {"nothing published"}
    assert [line.split for line in lines_of(cpr)] == ["1", "mean of 3", "1", "mean of 3"]


def test_what_is_not_measured_yet_has_no_line_and_no_mean_is_made_of_one_split(tmp_path):
    task = task_of("cpr-ucf101", tmp_path)
    assert lines_of(task) == []
    put(task, "finetune-first-ucf101-1", "finetune.json", finetuned(0.8))
    assert [line.split for line in lines_of(task)] == ["1"]


def test_iics_mean_of_three_splits_stands_beside_ours(tmp_path):
    task = task_of("iic-ucf101-c3d", tmp_path)
    for fold, accuracy in ((1, 0.69), (2, 0.70), (3, 0.74)):
        about = {"backbone": "c3d", "stream": "residual", "T": 16, "size": 112, "split": str(fold), "epochs": 240.0}
        put(task, f"finetune-second-ucf101-{fold}", "finetune.json", finetuned(accuracy, **about))
    (line,) = lines_of(task)
    assert (line.split, line.ours, line.published) == ("mean of 3", {"accuracy": 71.0}, {"accuracy": 70.0})
    assert line.what.startswith("IIC repeat")


def test_kinetics_weights_stand_beside_rows_of_kinetics_alone(tmp_path):
    task = task_of("coclr-k400", tmp_path)
    about = {"pretrained": None, "epochs": None, "data_hash": "other"}
    for role, accuracy in (("first", 0.879), ("second", 0.84)):
        stream = {"first": "rgb", "second": "flow"}[role]
        put(task, f"finetune-{role}-ucf101-1", "finetune.json", finetuned(accuracy, stream=stream, **about))
    both = {"first": 0.87, "second": 0.84, "both": 0.9, "videos": 3783, "left_out": 0, "with": "scores.npz"}
    put(task, "finetune-both-ucf101-1", "fused.json", both)
    found = [(line.stream, line.ours["accuracy"], line.published["accuracy"]) for line in lines_of(task)]
    assert found == [("rgb", 87.9, 87.9), ("flow", 84.0, 85.3), ("rgb + flow", 90.0, 90.6)]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((), "same protocol"),
        (("not stated: backbone, stream",), "same protocol as far as it is stated"),
        (("pixels 128, ours 112",), "differs in 1 thing"),
        (("not stated: backbone", "pixels 128, ours 112", "split 1, ours 2"), "differs in 2 things"),
    ],
)
def test_whether_two_numbers_may_be_compared_is_a_plain_word(differences, verdict):
    assert verdict_of(differences) == verdict


def test_the_differences_are_those_of_the_comparison(cpr):
    """Another size of the clips is one more thing in which the same two numbers differ."""
    before = next(line for line in lines_of(task_of("vicc-ucf101", cpr.home)) if line.task == "retrieval")
    put(cpr, "features-first-ucf101-1", "retrieval.json", retrieval(0.551, size=112))
    after = next(line for line in lines_of(task_of("vicc-ucf101", cpr.home)) if line.task == "retrieval")
    assert set(after.differences) - set(before.differences) == {"pixels 128, ours 112"}


def test_what_is_as_published_is_no_difference(cpr):
    (line,) = [line for line in lines_of(cpr) if line.task == "retrieval"]
    assert "colour jitter at the test, ours none" in line.differences  # and all windows, as published
    put(cpr, "features-first-ucf101-1", "retrieval.json", retrieval(0.551, windows=5))
    (line,) = [line for line in lines_of(cpr) if line.task == "retrieval"]
    assert "all windows of a video and colour jitter at the test, ours at most 5 windows, none" in line.differences
    put(cpr, "finetune-first-ucf101-1", "finetune.json", finetuned(0.8, finetune={"choose": "last"}))
    (line,) = [line for line in lines_of(cpr) if (line.task, line.split) == ("finetune", "1")]
    assert "epoch chosen on videos of the test split, ours the last epoch" in line.differences


def test_the_table_is_one_in_text_markdown_page_and_json(cpr):
    found = write_table(cpr, ["seed=3"])
    text = table_text(found, 100)
    for written in (text, (cpr.home / "table.md").read_text(), (cpr.home / "table.html").read_text()):
        for word in (
            "56.7 (CPR abstract)",
            "55.1/70.0" if "R@1/5" in written else "55.1",
            "83.0 (80.0, 83.0, 86.0)",
            "seed=3",
        ):
            assert word in written
    assert [line["ours"] for line in json.loads((cpr.home / "table.json").read_text())["lines"]] == [
        dict(line.ours) for line in found.lines
    ]
    assert max(map(len, text.splitlines())) <= 160
    assert any("split 1 as published" in note for note in found.notes)


def test_a_twin_stands_beside_nobody(tmp_path):
    task = task_of("iic-tiny", tmp_path)
    about = {"dataset": None, "pretrained": None, "backbone": "tiny", "stream": "rgb + residual"}
    put(task, "features-both-ucf101-1", "retrieval.json", retrieval(0.5, **about))
    (line,) = lines_of(task)
    assert (line.data, line.published, line.verdict) == ("motions", {}, "nothing published")
