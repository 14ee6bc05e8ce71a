from __future__ import annotations

import json
from collections import Counter

import pytest

from vidssl.evaluation.beside import Ours, _count, beside
from vidssl.evaluation.tables import PUBLISHED, dataset_of

OURS = {
    "dataset": "ucf101",
    "split": "1",
    "pretrained": "ucf101",
    "id": "p1_ref",
    "T": 32,
    "size": 128,
    "backbone": "s3d",
    "stream": "rgb",
    "windows": 20,
    "crops": "centre",
    "epochs": 300,
}


def values_of(paper, task, data="ucf101", **wanted):
    rows = [row for row in PUBLISHED if (row.paper, row.task, row.data) == (paper, task, data)]
    return [row.values for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_the_rows_of_iics_readme_are_whole():
    assert {"1": 36.5, "5": 54.1, "10": 62.9, "20": 72.4, "50": 83.4} in values_of("IIC", "retrieval", backbone="r3d10")
    assert {"1": 15.5, "5": 34.4, "10": 48.9, "20": 63.8, "50": 83.8} in values_of(
        "IIC", "retrieval", "hmdb51", backbone="r3d18", split="mean of 3"
    )
    assert {"accuracy": 74.4} in values_of("IIC", "finetune", stream="residual", backbone="r3d10")
    assert len([row for row in PUBLISHED if row.paper == "IIC" and row.split == "mean of 3"]) == 6 * 4


@pytest.mark.parametrize(
    ("paper", "task", "data", "metric", "recalled"),
    [
        ("CoCLR", "retrieval", "ucf101", "1", 53.3),
        ("CoCLR", "retrieval", "hmdb51", "1", 23.2),
        ("CoCLR", "finetune", "ucf101", "accuracy", 87.3),
        ("CoCLR", "linear", "hmdb51", "accuracy", 39.1),
        ("ViCC", "retrieval", "hmdb51", "1", 29.7),
        ("ViCC", "finetune", "ucf101", "accuracy", 84.3),
        ("ViCC", "finetune", "hmdb51", "accuracy", 47.9),
        ("ViCC", "finetune", "ucf101", "accuracy", 88.8),
    ],
)
def test_numbers_that_nobody_read_at_the_source_are_not_in_the_tables(paper, task, data, metric, recalled):
    assert all(values.get(metric) != recalled for values in values_of(paper, task, data))


def test_uberNCE_was_never_seen():
    assert not any("uber" in (row.paper + row.what).lower() for row in PUBLISHED)


def test_every_row_says_where_it_was_read_and_no_row_is_there_twice():
    seen = Counter(
        (row.paper, row.what, row.task, row.data, row.pretrained, row.backbone, row.stream, row.split, row.epochs)
        for row in PUBLISHED
    )
    assert max(seen.values()) == 1
    for row in PUBLISHED:
        assert row.source
        assert set(row.values) <= ({"accuracy"} if row.task != "retrieval" else {"1", "5", "10", "20", "50"})
        recalls = list(row.values.values())
        assert recalls == sorted(recalls)
        assert 0 < recalls[0] <= recalls[-1] < 100


def test_the_same_setting_differs_in_nothing_but_what_the_paper_does_not_say_and_its_jitter():
    first = beside("retrieval", Ours(**OURS), ["1"])[0]
    assert (first.row.what, first.row.stream, first.row.pretrained) == ("CoCLR", "rgb", "ucf101")
    assert first.differences[0] == "not stated: epochs"
    assert len(first.differences) == 2
    assert "colour jitter" in first.differences[1]


def test_every_difference_of_the_protocol_is_said_in_words():
    other = OURS | {"T": 8, "size": 64, "backbone": "tiny", "stream": "residual", "split": None, "id": "p1_strict"}
    told = next(
        one.differences
        for one in beside("retrieval", Ours(**other | {"pretrained": None}), ["1"])
        if one.row.what == "CoCLR" and one.row.stream == "rgb" and one.row.pretrained == "ucf101"
    )
    for words in (
        "frames 32, ours 8",
        "pixels 128, ours 64",
        "backbone s3d, ours tiny",
        "stream rgb, ours residual",
        "split 1, ours unknown",
        "pre-trained on UCF101, ours on unknown data",
        "ours by the training mean",
    ):
        assert any(words in one for one in told), words


def test_rows_of_p1_and_p2_are_never_compared_without_saying_so():
    for ours in ("p1_strict", "p1_ref", "p2"):
        for one in beside("retrieval", Ours(**OURS | {"id": ours}), ["1"]):
            if (one.row.protocol == "p2") != (ours == "p2"):
                assert any("P2" in words for words in one.differences)


def test_fewest_differences_come_first():
    counts = [_count(one.differences) for one in beside("finetune", Ours(**OURS), ["accuracy"])]
    assert counts
    assert counts == sorted(counts)


def test_data_that_no_paper_reports_has_no_row_beside_it():
    assert beside("retrieval", Ours(**OURS | {"dataset": None}), ["1"]) == []
    assert beside("retrieval", Ours(**OURS), ["2"]) == []


def test_a_data_set_is_known_by_its_classes_and_its_split_by_the_official_lists():
    packed = {"format": "hmdb51", "options": json.dumps({"fold": 2})}
    assert dataset_of(packed, ["brush_hair", "wave", *(f"c{i}" for i in range(49))]) == ("hmdb51", "2")
    assert dataset_of(packed, ["left", "right"]) == (None, None)  # other videos in its layout
    many = ["ApplyEyeMakeup", "YoYo", *(f"c{i}" for i in range(99))]
    assert dataset_of({"format": "folder"}, many) == ("ucf101", None)
    assert dataset_of({"format": "folder"}, many[:-1]) == (None, None)
    assert dataset_of({}, ["left", "right"]) == (None, None)


def test_squares_of_another_share_than_the_papers_are_said():
    def told(crop, task="retrieval", metric="1"):
        rows = beside(task, Ours(**OURS | {"crop": crop}), [metric])
        return {one.row.paper for one in rows if any("14/15 of the short side" in words for words in one.differences)}

    assert told(None) == told(0.93333) == set()
    assert told(0.875) == {"CoCLR", "CPR", "ViCC"}
    assert told(0.875, "finetune", "accuracy") == {"CoCLR", "CPR", "ViCC"}
    rows = beside("retrieval", Ours(**OURS | {"crop": 0.875}), ["1"])
    assert any("ours of 7/8" in words for one in rows for words in one.differences)
