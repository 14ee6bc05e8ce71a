"""Which doors are knocked at, with which words and in which order: everything heavy behind them is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.evaluation.linear import LinearResult
from cluster.evaluation.retrieval import RetrievalResult
from cluster.finetune.results import FinetuneResult
from cluster.keywords import ReproduceWords
from cluster.reproduce import steps
from cluster.reproduce.names import reproduction
from cluster.reproduce.steps import run_of
from cluster.reproduce.verb import settle
from tests.cluster.reproduce.test_lines import finetuned, linear, retrieval
from vidssl.marks import mark
from vidssl.records import read_record
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder

NOBODYS = {"dataset": None, "pretrained": None, "backbone": "tiny"}


class Doors:
    """What was asked of each door, in order; `closed` is the one where a Ctrl-C comes."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.asked, self.closed = home, [], ""
        monkeypatch.setattr("pipelines.synthetic.make_official_set", self.make)
        monkeypatch.setattr("cluster.pack.run_pack", self.pack)
        monkeypatch.setattr("cluster.training.verb.run_train", self.train)
        monkeypatch.setattr("cluster.evaluation.evaluate.evaluate_run", self.evaluate)
        monkeypatch.setattr("cluster.finetune.run.finetune_run", self.finetune)
        monkeypatch.setattr(steps, "_packed", lambda source, fold: self._hash(source.place(fold)))

    def _hash(self, packed: Path) -> str | None:
        return (packed / "hash").read_text() if (packed / "hash").is_file() else None

    def note(self, *asked: str) -> None:
        self.asked.append(asked)
        if self.closed in asked:
            raise KeyboardInterrupt

    def make(self, out: Path, *, groups: int, clips: int, frames: int, each: object) -> None:
        self.note("make")
        for number in range(groups * clips * 10):
            path = out / "videos" / "Left" / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (out / "ucfTrainTestlist").mkdir()
        for name in ("classInd", "trainlist01", "testlist01", "trainlist02", "testlist02"):
            (out / "ucfTrainTestlist" / f"{name}.txt").write_text(name)

    def pack(self, format: str, src: Path, out: Path, words: list[str]) -> object:
        self.note("pack", format, *words)
        place = out / "fold2" if "fold=all" in words else out
        place.mkdir(parents=True)
        (place / "hash").write_text(f"packed {place.name}")
        return type("Manifest", (), {"__len__": lambda self: 180, "rejected": 0})()

    def train(self, typed, say, evaluate) -> int:
        folder = RunFolder(self.home / "run")
        folder.path.mkdir(exist_ok=True)
        if self.closed == "train":
            return 130
        self.note("train", typed.recipe)
        mark(folder.path, "run")
        save_checkpoint(folder, Meta(1, "recipe", "data", 1, 0), 0, {}, {"method": {}, "optimizer": {}})
        return 0

    def evaluate(self, run: Path, words: list[str], say) -> dict[str, object]:
        self.note("evaluate", *(word.replace(f"{self.home}/packed/ucf101", "PACKED") for word in words))
        folder, found = self.home / "aside", {}
        folder.mkdir(exist_ok=True)
        for kind in words[1].removeprefix("what=").split(","):
            tree = retrieval(0.5, **NOBODYS) if kind == "retrieval" else linear(0.6, **NOBODYS)
            (folder / kind).write_text(json.dumps(tree))
            found[kind] = read_record(RetrievalResult if kind == "retrieval" else LinearResult, folder / kind, "")
        return found

    def finetune(self, run: Path, words: list[str], say) -> FinetuneResult:
        self.note("finetune", *(word.replace(f"{self.home}/packed/ucf101", "PACKED") for word in words))
        (run / "eval").mkdir(exist_ok=True)
        np.savez(run / "eval" / "finetune-residual.npz", instance=[0])
        (run / "eval" / "x.json").write_text(json.dumps(finetuned(0.7, **NOBODYS, stream="residual")))
        return read_record(FinetuneResult, run / "eval" / "x.json", "")


@pytest.fixture
def doors(tmp_path, monkeypatch) -> Doors:
    monkeypatch.chdir(tmp_path)
    return Doors(tmp_path / "iic", monkeypatch)


ORDER = [
    ("make",),
    ("pack", "ucf101"),
    ("pack", "ucf101", "fold=all"),
    ("train", "iic-tiny"),
    ("evaluate", "data=PACKED", "what=retrieval,linear", "baseline=untrained"),
    ("evaluate", "data=PACKED", "what=retrieval", "view=residual", "baseline=untrained"),
    ("evaluate", "data=PACKED", "what=retrieval", "view=joint", "baseline=untrained"),
    ("finetune", "data=PACKED", "view=residual", "clips.residual_scale=none"),
    ("evaluate", "data=PACKED/fold2", "what=linear", "baseline=off"),
    ("finetune", "data=PACKED/fold2", "view=residual", "clips.residual_scale=none"),
]


def go(*words: str) -> int:
    return main(["reproduce", "iic-tiny", "--out", "iic", *words])


def test_every_door_once_in_order_and_never_again(doors):
    assert go() == 0
    assert doors.asked == ORDER
    assert go() == 0
    assert doors.asked == ORDER
    lines = json.loads((doors.home / "table.json").read_text())["lines"]
    assert [(line["task"], line["split"]) for line in lines] == [
        ("retrieval", "1"), ("retrieval", "1"), ("retrieval", "1"), ("linear", "mean of 2"), ("finetune", "mean of 2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("closed", "number"),
    [("make", 0), ("pack", 1), ("fold=all", 2), ("train", 3), ("view=joint", 6), ("data=PACKED/fold2", 8)],
)
def test_ctrl_c_at_a_door_is_130_and_the_same_words_go_on_there(doors, closed, number):
    doors.closed = closed
    assert go() == 130
    assert not (doors.home / "table.json").exists()
    doors.closed, doors.asked = "", []
    assert go() == 0
    assert doors.asked == ORDER[number:]


def test_a_result_that_is_gone_is_measured_again_alone(doors):
    go()
    doors.asked = []
    (doors.home / "results" / "features-both-ucf101-1" / "retrieval.json").unlink()
    assert go() == 0
    assert doors.asked == [ORDER[6]]


def test_other_words_than_it_was_begun_with_are_refused_and_touch_nothing(doors, capsys):
    go()
    before = {path: path.stat().st_mtime_ns for path in doors.home.rglob("*")}
    assert go("seed=3") == 2
    assert "was begun with the words: none; type them again, or --out OTHER" in capsys.readouterr().err
    assert main(["reproduce", "cpr-tiny", "--out", "iic"]) == 2
    assert "holds the reproduction iic-tiny, not cpr-tiny; type --out OTHER" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in doors.home.rglob("*")} == before


def test_a_split_that_is_asked_for_later_adds_its_steps(doors):
    assert go("fold=1") == 0
    assert doors.asked == [one for one in ORDER if "fold=all" not in one and "data=PACKED/fold2" not in one]
    doors.asked = []
    assert go("fold=all") == 0
    assert doors.asked == [ORDER[2], *ORDER[8:]]


@pytest.mark.parametrize(
    ("name", "role", "initial", "run", "view"),
    [
        ("cpr-ucf101", "first", False, "first-2", None),
        ("cpr-ucf101", "second", False, "second-2", None),
        ("coclr-ucf101", "first", True, "first-0", None),
        ("coclr-ucf101", "second", True, "second-0", None),
        ("vicc-ucf101", "both", False, "second-2", "joint"),
        ("vicc-tiny", "second", False, "second-0", None),
        ("vicc-tiny", "both", False, "first-1", "joint"),
        ("iic-ucf101", "second", False, "run", "residual"),
        ("iic-ucf101", "both", False, "run", "joint"),
        ("coclr-k400", "first", False, "first-1", None),
    ],
)
def test_the_encoder_of_a_stream_is_that_of_the_last_phase_that_trained_it(tmp_path, name, role, initial, run, view):
    task = settle(reproduction(name), tmp_path, ReproduceWords(), [])
    found = run_of(task, role, initial)
    assert (found[0].name, found[1]) == (run, view)
