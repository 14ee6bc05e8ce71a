"""What `vidssl doctor RECIPE data=…` says of a training: needs, rates and the limit, for every method and phase."""

from __future__ import annotations

import pytest

from cluster.cli import main
from cluster.doctor import training
from tests.pipelines.stores import BUCKET

LITTLE = ["clips.frames=4", "clips.size=32", "model.width=4", "trainer.batch=4", "trainer.workers=1"]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(training, "SECONDS", 0.2)


def typed(packed, recipe, *words):
    return ["doctor", recipe, f"data={packed}", *LITTLE, *words]


@pytest.mark.parametrize("recipe", ["cpr-tiny", "iic-tiny", "infonce-tiny"])
def test_a_training_is_counted_and_its_limit_is_named(packed, recipe, capsys):
    assert main(typed(packed, recipe, "trainer.steps=30")) == 0
    said = capsys.readouterr().out
    assert f"{recipe}: " in said
    assert "30 steps of 4 videos" in said
    for words in (
        "asks Ray for",
        "a checkpoint",
        "the loader",
        "the step ",
        "scaled from 2 videos",
        " in all",
        "memory of a step",
    ):
        assert words in said
    assert ("the step is the limit: the loader could be" in said) != ("data is the limit: the step would wait" in said)
    assert ("the bank" in said) == (recipe == "cpr-tiny")


def test_every_phase_is_looked_at_and_nobody_is_warned_of_weights_that_come_later(packed, capsys):
    assert main(typed(packed, "coclr-tiny", "*:trainer.batch=4", "*:trainer.steps=9")) == 0
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines() if "9 steps of 4" in line] == [
        "first-0", "second-0", "first-1", "second-1",
    ]  # fmt: skip
    assert "random weights" not in printed.out + printed.err


def test_what_a_training_refuses_is_refused(packed, capsys):
    assert main(["doctor", "cpr-tiny", f"data={packed}", "trainer.workers=99"]) == 2
    assert "training videos and one step takes 1584" in capsys.readouterr().err


def test_the_place_of_a_copy_is_looked_at(s3, packed, capsys):
    words = typed(packed, "iic-tiny", "trainer.steps=3", f"trainer.copy_to=s3://{BUCKET}/looked")
    assert main(words) == 0
    assert f"s3://{BUCKET}/looked/iic-tiny can be written: no run is there yet" in capsys.readouterr().out
    assert s3.objects("looked") == {}
    assert main([*words[:-1], "trainer.copy_to=s3://no-such-bucket/looked"]) == 2
    assert "there is no bucket 'no-such-bucket'" in capsys.readouterr().err
