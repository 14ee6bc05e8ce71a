"""`vidssl mine` from words to files: on a bank, on embeddings made here, on an imported checkpoint, on two streams."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from cluster.cli import main
from cluster.embed import embed_run
from cluster.report.write import write_report
from pipelines.dataset.manifest import load_manifest
from tests.cluster.test_words_fuzz import make_run
from tests.conformance.rebuilt import checkpoint, load
from vidssl.encoder import build_encoder
from vidssl.errors import CheckpointError
from vidssl.marks import mark_of
from vidssl.recipe import Model
from vidssl.saved.published import to_coclr

SMALL = ("stages=[1,3]", "pools=[4,8]", "topk=2")


@pytest.fixture(scope="module")
def run(packed, tmp_path_factory):
    make_run(path := tmp_path_factory.mktemp("runs") / "run", packed)
    return path


def says(capsys, *words):
    code, said = main([str(word) for word in words]), capsys.readouterr()
    return code, said.out, said.err


def kept(folder):
    return json.loads((folder / "mine.json").read_text())


def test_the_bank_of_a_run_is_measured_and_the_files_say_what_was_printed(run, packed, tmp_path, capsys):
    code, out, err = says(capsys, "mine", run, *SMALL, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    found = kept(tmp_path / "out")
    needed = {"strategy", "space", "stages", "pool", "topk", "precision_at_k", "hit_at_k", "class_mining_recall_median"}
    assert all(needed <= row.keys() for row in found["rows"])
    assert {row["strategy"] for row in found["rows"]} == {
        "cascade",
        "single",
        "sum",
        "minrank",
        "aux",
        "random",
        "oracle",
    }
    data = load_manifest(packed)
    assert found["per_class"].keys() == set(data.classes)
    assert (found["filled"], found["slots"], found["data_hash"]) == (len(data), len(data), data.hash)
    assert found["best"]["class_mining_recall_median"] == pytest.approx(np.median(list(found["per_class"].values())))
    assert found["definition"].startswith("class mining recall: share of a class's videos")
    assert "to paste: " + " ".join(found["words"]) in out
    assert "← this run's" in out
    assert found["own"]["pool"] == 6
    assert set(found["beside"]) == {"single raw", "this run's"}
    for name in ("points.png", "classes.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert mark_of(tmp_path / "out").kind == "mine"


def test_a_long_search_says_beforehand_how_long_it_takes_and_what_makes_it_shorter(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cluster.mine.run._LONG_S", 0.0)
    code, _, err = says(capsys, "mine", run, *SMALL, "--out", tmp_path / "out")
    points = len(kept(tmp_path / "out")["rows"])
    assert code == 0
    assert re.fullmatch(
        rf"{points} points with \d+ queries each in \d+ rows take about \d+ minutes; type queries=N or trials=M for less\n",
        err,
    )


def test_the_report_of_a_run_shows_what_was_mined_in_it(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    assert says(capsys, "mine", tmp_path / "run", *SMALL)[0] == 0
    found, text = kept(tmp_path / "run" / "mine"), write_report(tmp_path / "run").read_text()
    part = text.partition(">Ways of mining</h2>")[2]
    assert " ".join(found["words"]) in part
    for name, share in found["per_class"].items():
        assert re.search(rf'<span title="{name}">.*?width:{100 * share:.1f}%', part)
    (tmp_path / "run" / "mine" / "mine.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"mine.json is damaged .* remove it and type vidssl mine"):
        write_report(tmp_path / "run")


def test_the_words_to_paste_are_words_of_a_recipe(run, tmp_path, capsys):
    says(capsys, "mine", run, *SMALL, "--out", tmp_path)
    words = kept(tmp_path)["words"]
    code, out, _ = says(capsys, "recipes", "cpr-tiny", *words)
    assert code == 0
    assert all(f"{word.partition('=')[0].partition('.')[2]}:" in out for word in words)


def test_embeddings_made_here_are_those_of_embed_and_of_its_store(run, tmp_path, capsys):
    store = embed_run(run, ["view=all", f"out={tmp_path / 'e.zarr'}"])
    code, _, err = says(capsys, "mine", run, *SMALL, "rows=encoder", "--out", tmp_path / "a")
    assert code == 0
    assert "embedding 30 training videos: residual, rgb" in err
    assert says(capsys, "mine", run, *SMALL, f"rows={store}", "--out", tmp_path / "b")[0] == 0
    made, stored = kept(tmp_path / "a"), kept(tmp_path / "b")
    assert made["views"] == stored["views"] == ["residual", "rgb"]
    assert made["protocol"]["checkpoint"] == "last"
    for one, other in zip(made["rows"], stored["rows"], strict=True):
        for key in one.keys() - {"ms_per_query", "seconds", "purity"}:
            assert one[key] == (pytest.approx(other[key], abs=1e-5) if isinstance(one[key], float) else other[key])


def small_card(path, view, capsys):
    """A file of CoCLR's layout with a small network in it, imported."""
    torch.manual_seed(3)
    file = path.with_suffix(".pth.tar")
    torch.save({"state_dict": to_coclr(build_encoder(Model(width=4, dim=8), view).state_dict()), "epoch": 299}, file)
    words = ["clips.size=32", "clips.frames=4", f"method.view={view}"]
    assert says(capsys, "import", file, "--from", "coclr", "--out", path, *words)[0] == 0
    return path


def test_an_imported_checkpoint_is_measured_alone_and_beside_one_of_the_other_stream(packed, tmp_path, capsys):
    rgb, residual = (small_card(tmp_path / view, view, capsys) for view in ("rgb", "residual"))
    looked = [f"data={packed}", "trainer.device=cpu", "evaluation.windows=1", *SMALL]
    code, out, _ = says(capsys, "mine", rgb, *looked)
    assert code == 0
    assert "There is an encoder of one view (rgb), so there is top-k and no cascade; type second=RUN|CARD" in out
    alone = kept(rgb / "mine")
    assert {row["strategy"] for row in alone["rows"]} == {"single", "random", "oracle"}
    code, out, _ = says(capsys, "mine", rgb, f"second={residual}", *looked, "--out", tmp_path / "both")
    assert code == 0
    both = kept(tmp_path / "both")
    assert both["views"] == ["residual", "rgb"]
    aux = next(row for row in both["rows"] if row["strategy"] == "aux")
    assert aux["precision_at_k"] == next(row for row in alone["rows"] if row["strategy"] == "single")["precision_at_k"]
    assert any(row["strategy"] == "cascade" for row in both["rows"])


def test_a_run_that_mined_inline_and_keeps_no_bank_is_embedded_without_being_asked(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bank")
    code, _, err = says(capsys, "mine", tmp_path / "run", *SMALL, "mining.where=inline", "rows=bank")
    assert code == 2
    assert "has no bank snapshot" in err
    code, out, err = says(capsys, "mine", tmp_path / "run", *SMALL, "mining.where=inline")
    assert code == 0
    assert "embedding 30 training videos: residual, rgb" in err
    assert "← this run's" in out


@pytest.mark.slow
def test_a_published_checkpoint_of_iic_is_mined_in_both_views_of_its_one_network(packed, tmp_path, capsys):
    said, _ = load("encoder_iic_r3d")
    torch.save(checkpoint(said), tmp_path / "published.pth.tar")
    small = ["clips.size=48", "clips.frames=8"]
    words = ["import", tmp_path / "published.pth.tar", "--from", "iic", "--out", tmp_path / "card", *small]
    assert says(capsys, *words)[0] == 0
    looked = [f"data={packed}", "trainer.device=cpu", "evaluation.windows=1", *SMALL]
    code, out, _ = says(capsys, "mine", tmp_path / "card", *looked)
    assert code == 0
    assert "main residual, aux rgb" in out
    assert "white rows are left out: 30 rows of width 512 fit no map" in out
    found = kept(tmp_path / "card" / "mine")
    assert {row["space"] for row in found["rows"]} == {"raw"}
    assert (found["own"], found["protocol"]["method"]) == (None, "iic")


def test_a_seeded_sample_of_the_videos_is_embedded_where_that_is_asked_for(run, tmp_path, capsys):
    code, _, err = says(capsys, "mine", run, *SMALL, "rows=encoder", "videos=12", "--out", tmp_path)
    assert code == 0
    assert "embedding 12 training videos" in err
    assert kept(tmp_path)["filled"] == 12


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["topk=50"], "topk=50 of 40 filled slots: give topk=[…] below 40"),
        (["metric=agreement"], "metric=agreement is refused: without labels it misleads"),
        (["rows=blue"], "rows=blue is unknown; type rows=auto, bank, encoder or a store of `vidssl embed`"),
        (["model.dim=4"], "'model.dim=4' cannot be set for what is trained; type mining.*"),
        (["stages=[2]"], "mining.stages=2 with mining.last_view=main mines what 1"),
        (["run=x"], "unknown key 'run' of a mine; there are stages"),
        (["second=nowhere", "rows=encoder"], "nowhere is no run folder"),
        (["data=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_leaves_nothing(words, sentence, run, tmp_path, capsys):
    code, out, err = says(capsys, "mine", run, *words, "--out", tmp_path / "new")
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.splitlines()[-1].startswith("vidssl: ")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_neither_run_nor_card_is_refused(tmp_path, capsys):
    code, _, err = says(capsys, "mine", tmp_path)
    assert code == 2
    assert "is no run folder (it has no recipe.yaml) and no card folder (no card.json)" in err
    assert list(tmp_path.iterdir()) == []


def test_the_sizing_table_needs_no_run_and_refuses_one(run, capsys):
    code, out, err = says(capsys, "mine", "--plan", "slots=100M", "views=2", "workers=64", "step_s=.25")
    assert (code, err) == (0, "")
    assert "64 workers of 32 rows in 0.25 s need 8,192 mined rows/s" in out
    for words, sentence in (
        (["--plan"], "how many videos? Type slots=N"),
        (["--plan", "slots=100M", "shape=round"], "unknown key 'shape'"),
        (["--plan", "slots=100M", run], "--plan reads no run and writes nothing"),
        ([], "no RUN|CARD given"),
    ):
        code, out, err = says(capsys, "mine", *words)
        assert (code, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1
