from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipelines.pack import PackOptions, pack
from pipelines.packing.catalog import read_catalog
from tests.pipelines.footage import write_video
from vidssl.errors import DataError

CLASSES = {
    "Holding something next to something": "1",
    "Approaching something with your camera": "0",
    "Throwing something": "2",
}
TRAIN = [
    {
        "id": "78687",
        "label": "holding potato",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato"],
    },
    {
        "id": "9",
        "label": "approaching a cup",
        "template": "Approaching [something] with your camera",
        "placeholders": ["cup"],
    },
]
VALIDATION = [{"id": 74225, "label": "throwing", "template": "throwing [something]"}]
TEST = [{"id": "1420"}, {"id": "1421"}]
NAMES = {
    "old": [f"something-something-v2-{word}.json" for word in ("train", "validation", "test", "labels")],
    "new": [f"{word}.json" for word in ("train", "validation", "test", "labels")],
}


def write_lists(folder: Path, names=None, train=TRAIN, validation=VALIDATION, test=TEST, labels=CLASSES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, tree in zip(names or NAMES["new"], (train, validation, test, labels), strict=True):
        (folder / name).write_text(json.dumps(tree))
    return folder


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


@pytest.fixture
def videos(tmp_path):
    return touch(tmp_path / "20bn-something-something-v2", *(f"{name}.webm" for name in (9, 74225, 78687, 1420, 1421)))


def rows(catalog):
    return [(row.path, row.label, row.split, row.group) for row in catalog.rows]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("place", ["beside", "labels beside", "within", "told"])
def test_both_generations_of_names_are_found_and_classes_have_their_official_numbers(videos, names, place):
    folder = {"beside": videos.parent, "labels beside": videos.parent / "labels", "within": videos}.get(place)
    write_lists(folder or videos.parent / "x", names)
    options = PackOptions() if folder else PackOptions(splits=str(videos.parent / "x"))
    catalog = read_catalog("ssv2", videos, options)
    assert catalog.classes == tuple(sorted(CLASSES, key=lambda name: int(CLASSES[name])))
    assert rows(catalog) == [
        ("1420.webm", None, "test", "1420.webm"),
        ("1421.webm", None, "test", "1421.webm"),
        ("74225.webm", "Throwing something", "val", "74225.webm"),
        ("78687.webm", "Holding something next to something", "train", "78687.webm"),
        ("9.webm", "Approaching something with your camera", "train", "9.webm"),
    ]
    assert catalog.notes == ()


def test_test_answers_give_the_test_split_its_labels(videos):
    write_lists(videos.parent)
    (videos.parent / "test-answers.csv").write_text(
        "1421;Throwing something\n1420;Approaching something with your camera\n"
    )
    labels = {row.path: row.label for row in read_catalog("ssv2", videos).rows if row.split == "test"}
    assert labels == {"1420.webm": "Approaching something with your camera", "1421.webm": "Throwing something"}


def test_gaps_repeats_and_broken_entries_are_sentences(videos):
    (videos / "1420.webm").unlink()
    touch(videos, "more/9.webm", "5.webm")
    broken = [{"label": "no id"}, "no object", {"id": "7", "template": "Eating [something]"}, {"id": "8"}]
    torn = {"id": "78687", "template": "Throwing [something]"}
    write_lists(videos.parent, train=[*broken, *TRAIN, TRAIN[1], torn])
    catalog = read_catalog("ssv2", videos)
    assert [row.path for row in catalog.rows] == ["1421.webm", "74225.webm", "9.webm"]
    holding, throwing = "Holding something next to something", "Throwing something"
    contradiction = f"listed as '{holding}' (train.json entry 5) and as '{throwing}' (train.json entry 8)"
    assert catalog.notes == (
        "passed over 4 broken lines, e.g. train.json entry 1: it has no id",
        "passed over 1 line that say the same again, e.g. '9' (train.json entry 6, train.json entry 7)",
        f"left out 1 video with two labels, e.g. '78687', {contradiction}; verdicts.csv names them all",
        "1 listed video of 4 (25 %; train 0 of 1, val 0 of 1, test 1 of 2) is not there and left out, e.g. '1420'; "
        "verdicts.csv names them all",
        "passed over 'more/9.webm', which is called like '9.webm'",
        "passed over 2 of 6 files that no list asks for, e.g. '5.webm'",
    )
    assert [(one.path, one.reason) for one in catalog.left_out] == [
        ("78687", contradiction),
        ("1420", "no file called ID.webm is there (test.json entry 1)"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("labels.json", None, "has no labels.json, which numbers the classes"),
        ("labels.json", "[1]", "labels.json gives no number to every class"),
        ("labels.json", '{"a": "x"}', "labels.json gives no number to every class"),
        ("labels.json", '{"a": "0", "b": "2"}', "labels.json does not number its 2 classes from 0 to 1"),
        ("train.json", "{}", "train.json is no list of videos"),
        ("train.json", '[{"id"', r"train.json cannot be read \("),
        ("something-something-v2-train.json", "[]", "holds two lists of 'train'"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_in_one_sentence(videos, name, text, sentence):
    write_lists(videos.parent)
    if text is None:
        (videos.parent / name).unlink()
    else:
        (videos.parent / name).write_text(text)
    with pytest.raises(DataError, match=sentence) as refused:
        read_catalog("ssv2", videos)
    assert "\n" not in str(refused.value)


def test_something_something_is_packed_with_official_numbers_and_test_rows_without_labels(tmp_path):
    root = tmp_path / "videos"
    for name in ("78687", "74225", "1420"):
        write_video(root / f"{name}.webm", frames=10, codec="libvpx", options={"deadline": "realtime"})
    write_lists(tmp_path)
    manifest = pack("ssv2", root, tmp_path / "out", workers=1)
    labels = dict(zip(manifest.samples.name.tolist(), manifest.samples.label.tolist(), strict=True))
    assert labels == {"78687.webm": 1, "74225.webm": 2, "1420.webm": -1}
    assert (manifest.splits, manifest.rejected) == (("train", "val", "test"), 0)
    with (manifest.root / "verdicts.csv").open() as stream:
        verdicts = {row["path"]: row["verdict"] for row in csv.DictReader(stream)}
    assert verdicts == {
        "1420.webm": "packed",
        "74225.webm": "packed",
        "78687.webm": "packed",
        "9": "left out",
        "1421": "left out",
    }
