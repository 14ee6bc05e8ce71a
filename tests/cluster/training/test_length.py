"""Steps or samples: what a run's length and schedule count, and what is said when its workers change."""

from __future__ import annotations

import pytest

from cluster.training.length import Length, length_from, notes_on
from vidssl.recipe import Recipe, load_recipe
from vidssl.saved.meta import Meta

N = 30


def recipe(*words: str) -> Recipe:
    return load_recipe("cpr-tiny", ["trainer.workers=2", "trainer.batch=4", "trainer.deterministic=false", *words])


def meta(step: int, seen: int | None, *, world: int = 2, batch: int = 4) -> Meta:
    return Meta(step, "r", "d", world, 0, settings={"trainer.batch": batch}, seen=seen)


def test_epochs_last_until_every_video_was_seen_so_often_and_steps_are_steps():
    assert Length(recipe("trainer.steps=null", "trainer.epochs=4").trainer, N).total == 15  # 4 x 30 / 8
    assert Length(recipe("trainer.steps=null", "trainer.epochs=3").trainer, N).total == 12  # 90 / 8, rounded up
    assert Length(recipe("trainer.steps=7").trainer, N).total == 7


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_rest_of_the_epochs_is_counted_in_samples_and_the_schedule_stands_by_them(workers):
    trainer = recipe("trainer.steps=null", "trainer.epochs=4", f"trainer.workers={workers}").trainer
    length = length_from(trainer, N, meta(step=5, seen=40))
    assert length.total == 5 + -(-80 // (4 * workers))
    assert length.at(5) / (4 * N / (4 * workers)) == pytest.approx(40 / (4 * N))  # a third of all samples
    assert length.at(length.total - 1) < length.span
    later = length_from(trainer, N, meta(step=6, seen=40 + 4 * workers))
    assert (later.total, later.at(9)) == (length.total, length.at(9))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_epoch_that_is_kept_ends_with_one_step_whoever_takes_the_samples(workers):
    words = ["trainer.steps=null", "trainer.epochs=4", "trainer.keep_epochs=[1,3,4]", f"trainer.workers={workers}"]
    trainer = recipe(*words).trainer
    straight, later = Length(trainer, N), length_from(trainer, N, meta(step=5, seen=40))
    ends = {epoch: step for step in range(straight.total) for epoch in straight.passed(step)}
    assert ends == {epoch: -(-epoch * N // (4 * workers)) - 1 for epoch in (1, 3, 4)}
    assert [epoch for step in range(5, later.total) for epoch in later.passed(step)] == [3, 4]


def test_steps_stay_steps_whatever_they_take():
    length = length_from(recipe("trainer.steps=20", "trainer.workers=3").trainer, N, meta(step=5, seen=40))
    assert (length.total, length.span, length.at(5)) == (20, 20, 5.0)


def test_a_checkpoint_without_a_cursor_stands_in_the_epoch_that_its_version_stood_in():
    """30 videos, 8 a step, 3 steps an epoch: after 12 steps its four epochs were over, and they are over here too."""
    trainer = recipe("trainer.steps=null", "trainer.epochs=4").trainer
    assert [length_from(trainer, N, meta(step, None)).seen for step in (2, 3, 4, 12)] == [16, 30, 38, 120]
    assert length_from(trainer, N, meta(12, None)).total == 12


def test_what_changes_with_the_workers_is_one_sentence():
    def said(old: Meta, *words: str) -> list[str]:
        now = recipe(*words)
        return notes_on(now, length_from(now.trainer, N, old), old)

    old = meta(5, 40)
    assert said(old) == []
    assert said(old, "trainer.workers=1", "trainer.steps=20", "optim.lr=0.01") == [
        "the checkpoint of step 5 is of 2 worker(s) with 4 videos each, and 1 with 4 go on: a step takes 4 videos instead of "
        "8, optim.lr=0.01 is not scaled, trainer.steps=20 and the schedule of optim.lr go on in steps, and what is left of "
        "the epoch comes once each"
    ]
    (line,) = said(old, "trainer.workers=1", "trainer.batch=8", "trainer.steps=null", "trainer.epochs=4")
    assert "2 worker(s) with 4 videos each, and 1 with 8 go on: a step still takes 8 videos" in line
    assert "trainer.epochs=4 take 10 steps more, and the schedule of optim.lr goes on in samples" in line
    (line,) = said(old, "trainer.workers=3", "trainer.deterministic=true", "mining.miners=0")
    assert line.endswith("; this deterministic run is then not the straight one bit for bit")
    assert said(meta(5, None))[0].endswith("left 6 of 30 videos out of every epoch; from here on every one comes")
    assert said(meta(5, None, batch=5), "trainer.batch=5") == []
