"""The plan of every reproduction without data, and what is refused before anything is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.reproduce.names import REPRODUCTIONS
from vidssl.evaluation.tables import PUBLISHED
from vidssl.recipe import load_recipe, phase_recipe

OFFICIAL = [name for name, one in REPRODUCTIONS.items() if not one.twin]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(capsys, *words) -> tuple[int, str]:
    code = main(["reproduce", *words])
    streams = capsys.readouterr()
    return code, streams.out + streams.err


def ucf101(root: Path, folds=(1, 2, 3)) -> Path:
    """Empty files in the layout of UCF101: 2 classes of 3 groups, one of which is each split's test."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for c in ("Archery", "YoYo") for g in (1, 2, 3)]
    for name in names:
        path = root / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for fold in folds:
        (lists / f"testlist0{fold}.txt").write_text("".join(f"{n}\n" for n in names if f"_g0{fold}_" in n))
        (lists / f"trainlist0{fold}.txt").write_text("".join(f"{n} 1\n" for n in names if f"_g0{fold}_" not in n))
    return root / "UCF-101"


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_dry_run_without_data_says_every_step_and_what_is_missing_and_makes_nothing(name, capsys, tmp_path):
    code, text = said(capsys, name, "--dry-run")
    entry = REPRODUCTIONS[name]
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    for word in (
        f"pack-{entry.trains}",
        "features-first-ucf101-1",
        "-ucf101-2",
        "finetune-",
        "clips/s",
        "disk: ",
    ):
        assert word in text
    for phase in load_recipe(entry.recipe).phases:
        assert f"\n    {phase.name} " in text
    missing = [line for line in text.splitlines() if line.startswith("missing: ")]
    if entry.twin:
        assert missing == []
        assert "nothing is missing" in text
    else:
        assert missing[0].startswith("missing: the videos of ")
        assert "type videos=FOLDER (" in missing[0]
        assert any("type ucf101=FOLDER" in line for line in missing) == name.endswith("k400")


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_number_of_the_paper_on_its_data_has_a_step(name):
    """All rows of the paper itself, on its own network and data, fit one of the things that are measured."""
    entry = REPRODUCTIONS[name]
    backbone = load_recipe(entry.recipe).model.backbone
    rows = [
        r
        for r in PUBLISHED
        if r.paper == entry.paper and r.pretrained == entry.trains and r.backbone in (None, backbone)
    ]
    measured = {(one.task, what) for one in entry.measured for what in one.what}
    left = {
        (row.task, row.what)
        for row in rows
        if not any(row.task == task and row.what.startswith(what) for task, what in measured)
    }
    shuffled = {one for one in left if one[1].startswith(("IIC shuffle", "IIC repeat, views rgb and u"))}
    longer = {("linear", "InfoNCE")}  # 500 and 800 epochs, which the recipe does not train
    assert rows
    assert left - shuffled - longer == set()


def test_hours_are_clips_by_rate(capsys):
    """3 hours of InfoNCE at the rate at which 9537 videos × 2 clips × 300 epochs take just that."""
    recipe = phase_recipe(load_recipe("coclr-ucf101-s3d"), load_recipe("coclr-ucf101-s3d").phases[0])
    clips = 9537 * recipe.clips.per_video * recipe.trainer.epochs
    _, text = said(capsys, "coclr-ucf101", "--dry-run", f"clips_s={clips / (3 * 3600)}")
    (line,) = [line for line in text.splitlines() if line.startswith("    first-0 ")]
    assert line.split()[-2:] == ["3.0", "h"]
    assert "(as typed)" in text


def test_with_the_videos_and_lists_nothing_is_missing_and_gaps_are_told(capsys, tmp_path):
    videos = ucf101(tmp_path / "data", folds=(1, 2))
    (videos / "YoYo" / "v_YoYo_g03_c01.avi").unlink()
    code, text = said(capsys, "iic-ucf101", f"videos={videos}", "--dry-run")
    assert code == 0
    assert "nothing is missing" in text
    assert "note: 1 of 6 videos of UCF101 are listed and not there" in text
    assert "note: UCF101 without split 3: no lists of it" in text
    assert "finetune-second-ucf101-2" in text
    assert "finetune-second-ucf101-3" not in text


def test_lists_elsewhere_are_found_behind_splits(capsys, tmp_path):
    videos = ucf101(tmp_path / "data")
    (tmp_path / "data" / "ucfTrainTestlist").rename(tmp_path / "lists")
    code, text = said(capsys, "iic-ucf101", f"videos={videos}", "--dry-run")
    assert code == 0
    assert "missing: UCF101: no trainlist01.txt in the source or beside it; type splits=FOLDER" in text
    code, text = said(capsys, "iic-ucf101", f"videos={videos}", f"splits={tmp_path / 'lists'}", "--dry-run")
    assert "nothing is missing" in text


def test_without_flow_in_the_recipe_none_is_packed_and_dis_may_stand_for_tvl1(capsys):
    assert "size=240 flow=tvl1 flow_encoding=parity\n" in said(capsys, "cpr-ucf101", "--dry-run")[1]
    assert "size=240 flow_encoding=parity flow=dis\n" in said(capsys, "cpr-ucf101", "--dry-run", "flow=dis")[1]
    text = said(capsys, "cpr-ucf101", "--dry-run", "method.second_view=residual")[1]
    assert "pack UCF101: fps=source size=240\n" in text
    assert "flow=" not in text.replace("flow=dis ", "")


def test_one_split_alone(capsys):
    text = said(capsys, "vicc-ucf101", "--dry-run", "fold=2", "hmdb51=HMDB")[1]
    assert "finetune-both-ucf101-2" in text
    assert "finetune-both-hmdb51-2" in text
    assert "ucf101-1" not in text
    assert "HMDB is no folder" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["cpr-ucf10"],
            "nothing to reproduce is called 'cpr-ucf10'; there are cpr-ucf101, .* did you mean 'cpr-ucf101'",
        ),
        # Where this machine's disk is too small for the dataset, that is one of those above.
        (
            ["cpr-ucf101"],
            r"cpr-ucf101 cannot begin, for something is missing( \(1 more above\))?: the videos of UCF101",
        ),
        (["coclr-k400"], r"something is missing \(\d more above\): the videos of Kinetics-400"),
        (["cpr-ucf101", "fold=4"], "fold=4 is unknown; type fold= one of all, 1, 2, 3"),
        (["cpr-ucf101", "ucf101=x"], "ucf101=x: cpr-ucf101 is pre-trained on UCF101; type videos=x"),
        (["iic-tiny", "videos=x"], "videos=x: iic-tiny makes its own videos; leave it out"),
        (["cpr-ucf101", "data=x"], "'data=x' cannot be set for a reproduction"),
        (["cpr-ucf101", "trainer.wrkers=2"], "trainer.wrkers"),
        (["iic-tiny", "fold=3"], "fold=3: there is no such split; type fold=all"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_and_makes_nothing(capsys, tmp_path, words, sentence):
    code, text = said(capsys, *words)
    assert code == 2
    assert re.search(sentence, text), text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    code, text = said(capsys, "iic-tiny", "--out", "mine")
    assert code == 2
    assert "holds files that vidssl did not make" in text
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
