"""`vidssl bench headspace RUN`, on real trainings."""

import json

import pytest

from cluster.cli import main
from cluster.headspace import Headspace
from tests.cluster.training.small_runs import RECIPE, leftovers, tree
from vidssl.saved.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("usual_signals")


def begun(folder, packed):
    """A run folder with a recipe and nothing trained: what headspace needs."""
    run = RunFolder(folder / "runs" / "small")
    run.path.mkdir(parents=True)
    run.recipe.write_text(RECIPE + f"data: {packed}\nseed: 0\n")
    return run.path


def test_headspace_is_the_ratio_of_both_rates_and_says_so():
    found = Headspace(60, 80.0, 0.25, 100.0, "abc")
    assert found.headspace == 1.25
    assert found.sentence().startswith(
        "headspace 1.25: 100.0 clips/s with batches that are always ready, 80.0 with the"
    )
    assert "waited for 25 % of the time" in found.sentence()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "speed", "RUN"], "'speed' is unknown; type vidssl bench headspace RUN"),
        (["bench", "headspace", "RUN", "trainer.steps=5"], "'trainer.steps=5' cannot be set here"),
        (["bench", "headspace", "RUN", "loader.thread=5"], "loader.thread"),
        (["bench", "headspace", "nowhere"], "nowhere"),
        (["bench", "headspace", "RUN", "--steps", "3"], "--steps"),
    ],
)
def test_wrong_words_are_one_sentence_and_leave_nothing(tmp_path, packed, capsys, monkeypatch, words, said):
    run = begun(tmp_path, packed)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_trainings_are_real_and_leave_one_file(tmp_path, packed, ray_cluster, capsys):
    """Workers, bank and mining as in the run; its folder gains headspace.json and nothing else."""
    run = begun(tmp_path, packed)
    before = tree(run)
    assert (
        main(["bench", "headspace", str(run), "--steps", "24", "trainer.workers=1", "trainer.deterministic=false"]) == 0
    )
    said = capsys.readouterr().out
    written = json.loads((run / "headspace.json").read_text())
    assert written["steps"] == 24
    assert written["clips_per_s"] > 0
    assert written["cached_clips_per_s"] > 0
    assert f"headspace {written['cached_clips_per_s'] / written['clips_per_s']:.2f}: " in said
    after = tree(run)
    assert after.pop("headspace.json") is not None
    assert after == before
    assert leftovers(run) == []
