"""The demo clears up after itself and after nobody else; every word is looked at before a file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli import main
from cluster.demo import KIND, _begin
from tests.cluster.training.small_runs import tree
from vidssl.marks import mark, mark_of


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """What an earlier demo left, and what its user put beside it."""
    out = tmp_path / "demo"
    made = ("videos/videos/00000.mp4", "videos/videos.csv", "packed/shard-00000.tar", "packed/manifest.json")
    for name in (*made, "run/recipe.yaml", "run/checkpoints/step-00000300/model.pt", "run/report.html", "demo.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("made")
    for folder, kind in ((out, KIND), (out / "packed", "pack"), (out / "run", "run")):
        mark(folder, kind)
    return out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["foo=1"], "unknown key 'foo'"),
        (["data=/tmp"], "'data=/tmp' cannot be set for a demo, which makes its own data and run"),
        (["name=mine"], "'name=mine' cannot be set for a demo"),
        (["trainer.batch=500"], "240 training videos and one step takes 1000"),
        (["mining.pool=1"], "pool"),
        (["trainer.cpus_per_worker=999"], "needs 1998 cores and there are"),
    ],
)
def test_a_word_that_is_wrong_costs_nothing(words, sentence, former, capsys, ray_cluster):
    before = tree(former.parent)
    assert main(["demo", "--out", str(former), *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert tree(former.parent) == before


def test_a_folder_or_file_that_no_demo_made_is_left_alone(tmp_path, capsys):
    project, file = tmp_path / "project", tmp_path / "file"
    project.mkdir()
    (project / "demo.json").write_text('{"mine": true}')  # the name alone is no mark
    (project / "thesis.tex").write_text("years")
    file.write_text("text")
    before = tree(tmp_path)
    for out, sentence in (
        (project, "holds files that vidssl did not make, and they are left alone; type vidssl demo --out OTHER"),
        (file, "is a file and a folder is needed; type vidssl demo --out OTHER"),
    ):
        assert main(["demo", "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"{out} {sentence}" in said
        assert said.count("\n") == 1
    assert tree(tmp_path) == before


def test_an_earlier_demo_is_replaced_and_what_lies_beside_it_stays(former):
    foreign = ("notes.txt", "videos/videos/holiday.mov", "packed/index.html", "run/checkpoints/keep.me")
    for name in foreign:
        (former / name).write_text("mine")
    said: list[str] = []
    _begin(former, said.append)
    left = {name for name, content in tree(former).items() if content is not None}
    assert left == {*foreign, ".vidssl.json", "packed/.vidssl.json", "run/.vidssl.json"}
    assert said == [f"left alone in {former}, because no demo made it: notes.txt, packed, run, videos"]
    found = mark_of(former)
    assert found is not None
    assert found.kind == KIND
