"""What a sweep found is told on its own page, and on those of the run that was searched and of the trials."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.report.swept import swept_parts, write_sweep_report
from cluster.sweep.chart import draw_arms
from cluster.sweep.outcome import outcome_of
from cluster.sweep.parallel import draw_axes
from cluster.sweep.written import OUTCOME, PICTURE, SweptOutcome
from tests.cluster.report.test_write import Words
from tests.cluster.sweep.worlds import row_of
from vidssl.errors import CheckpointError, StorageError
from vidssl.marks import mark
from vidssl.records import read_record, write_record


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A finished sweep over two axes, with a point that was stopped and two rivals."""
    home = tmp_path_factory.mktemp("sweep")
    mark(home, "sweep")
    points = {
        f"stages={s} topk={k}": {"arm": "cascade", "mining.stages": s, "mining.topk": k} for s in (3, 5) for k in (1, 5)
    }
    points |= {name: {"arm": name, "mining.topk": 5} for name in ("single (S=1)", "sum")}
    shares = dict(zip(points, (0.2, 0.3, 0.4, 0.6, 0.35, 0.58), strict=True))
    rows, hits = [], {}
    for arm, share in shares.items():
        found = (np.arange(200) < 200 * share).astype(float)
        found = np.roll(found, 60) if arm == "sum" else found  # right in other queries than the best
        row = row_of(arm, 0, share, **({"percent": 33, "state": "stopped"} if share == 0.2 else {}))
        rows.append(row)
        hits[row.key] = found
    found = outcome_of(rows, hits, points)
    draw_arms(found, rows, home / PICTURE)
    assert draw_axes(found, home / "axes.png")
    told = {"name": "cpr-tiny", "sampler": "optuna", "schedule": "asha", "seeds": (0,), "possible": 40}
    write_record(home / OUTCOME, SweptOutcome(found=found, **told))
    (home / "best.yaml").write_text("name: best\n")
    return home


@pytest.fixture
def sweep(drawn, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(drawn, tmp_path / "sweep-cpr-tiny"))


def test_what_was_written_is_read_back_as_it_was(sweep):
    found = read_record(SweptOutcome, sweep / OUTCOME, "").found
    assert found.best is not None
    assert found.best.label == "stages=5 topk=5"
    assert dict(found.best.at) == {"arm": "cascade", "mining.stages": 5, "mining.topk": 5}
    assert [arm.label for arm in found.alike] == ["sum"]


def test_the_page_of_a_sweep_has_its_arms_its_pictures_and_what_may_be_concluded(sweep, capsys):
    assert main(["report", str(sweep)]) == 0
    assert capsys.readouterr().out == f"report: {sweep / 'report.html'}\n"
    source = (sweep / "report.html").read_text()
    page = Words(source)
    assert (page.open, page.unbalanced) == ([], [])
    assert source.count('src="data:image/png;base64,') == 2
    assert "http" not in source.replace("http-equiv", "")
    for words in (
        "6 of 40 points of cpr-tiny, 1 seed(s) each, chosen by optuna, trained to the end (those that halving let go on)",
        "stages=5 topk=5 is ahead of 3 of 4 others; cannot be told apart from it: sum.",
        "one seed: the intervals know which videos asked",
        "stopped at 33 %",
        f"vidssl train {sweep / 'best.yaml'}",
    ):
        assert words in page.text, words


def test_a_trial_says_where_it_stands_in_its_sweep_and_another_run_says_nothing(sweep, tmp_path):
    (part,) = swept_parts(sweep / "trials" / "stages=3 topk=5-0")
    assert part.title == "The sweep it is of"
    assert "This run is <b>stages=3 topk=5</b>" in part.body
    assert "<tr class=strong><td>stages=3 topk=5</td>" in part.body
    (late,) = swept_parts(sweep / "trials" / "one that has not been scored")
    assert "This run has no row yet" in late.body
    assert swept_parts(tmp_path / "runs" / "alone") == []


def test_a_run_whose_bank_was_searched_shows_the_picture_and_the_best_words(tmp_path):
    home = tmp_path / "run" / "sweep"
    home.mkdir(parents=True)
    mark(home, "sweep")
    with pytest.raises(StorageError, match="has no result yet; type the words of the sweep again, it goes on"):
        write_sweep_report(home)
    (home / PICTURE).write_bytes(b"png")
    (home / "best.yaml").write_text("mining: {topk: 3}\n")
    (part,) = swept_parts(tmp_path / "run")
    assert part.title == "The sweep on its bank"
    assert "mining: {topk: 3}" in part.body
    assert write_sweep_report(home).is_file()


def test_a_damaged_result_and_words_that_mean_nothing_are_refused_in_a_sentence(sweep, capsys):
    assert main(["report", str(sweep), "data=x"]) == 2
    assert "'data=x' is no setting of a sweep's report" in capsys.readouterr().err
    (sweep / OUTCOME).write_text("{")
    with pytest.raises(CheckpointError, match=r"outcome.json is damaged .* remove it and type the words of the sweep"):
        write_sweep_report(sweep)
