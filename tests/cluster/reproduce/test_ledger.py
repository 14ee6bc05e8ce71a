"""A step is done while it comes from the same and what it left is there; whatever hangs on another outcome is made again."""

from __future__ import annotations

import pytest

from cluster.reproduce.ledger import LEDGER, Ledger, Step, files_hash
from vidssl.errors import CheckpointError, StorageError


class World:
    """Steps that leave a number each: pack → run → table."""

    def __init__(self, home):
        self.home, self.left, self.made = home, {}, []
        self.fact = {"pack": "a", "run": "b", "table": "c"}

    def steps(self):
        after = {"pack": (), "run": ("pack",), "table": ("run",)}
        return [self.step(name, after[name]) for name in after]

    def step(self, name, after):
        def make(say):
            self.made.append(name)
            self.left.setdefault(name, f"{name} made of {self.fact[name]}")

        return Step(name, name, after, {"fact": self.fact[name]}, make, lambda: self.left.get(name))

    def go(self, until=None):
        """Do what is not done, with the ledger that is on the disk; killed inside of the step `until`."""
        ledger, self.made = Ledger(self.home), []
        for step in self.steps():
            if ledger.state(step) == "done":
                continue
            ledger.begin(step)
            if step.name == until:
                return self.made
            step.make(print)
            ledger.end(step, 1.0)
        return self.made

    def states(self):
        ledger = Ledger(self.home)
        return [ledger.state(step) for step in self.steps()]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_every_step_is_made_once(world):
    assert world.states() == ["to do"] * 3
    assert world.go() == ["pack", "run", "table"]
    assert world.states() == ["done"] * 3
    assert world.go() == []


@pytest.mark.parametrize(("killed", "left"), [("pack", 0), ("run", 1), ("table", 2)])
def test_a_kill_inside_a_step_costs_that_step_alone(world, killed, left):
    order = ["pack", "run", "table"]
    assert world.go(until=killed) == order[:left]
    assert world.states() == ["done"] * left + ["begun"] + ["to do"] * (2 - left)
    assert world.go() == order[left:]


def test_another_word_makes_its_step_again_and_what_hangs_on_its_outcome(world):
    world.go()
    world.fact["run"] = "other"
    del world.left["run"]
    assert world.states() == ["done", "again", "done"]  # of the table it is not known yet
    assert world.go() == ["run", "table"]


def test_a_step_that_is_made_again_with_the_same_outcome_makes_nothing_else_again(world):
    world.go()
    world.fact["run"] = "other"  # and it leaves what it left before
    assert world.go() == ["run"]


def test_a_step_whose_outcome_is_gone_or_other_is_made_again(world):
    world.go()
    del world.left["table"]
    assert world.go() == ["table"]
    world.left["table"] = "somebody wrote here"
    assert world.states() == ["done", "done", "again"]


def test_a_step_that_leaves_nothing_is_an_error_and_not_done(world):
    (step, *_) = world.steps()
    ledger = Ledger(world.home)
    ledger.begin(step)
    with pytest.raises(StorageError, match="pack ended and what it wrote is not there"):
        ledger.end(step, 1.0)
    assert Ledger(world.home).state(step) == "begun"


@pytest.mark.parametrize("content", ["", "{", '{"steps": {"pack": 3}}', "[]"])
def test_a_damaged_ledger_is_named(tmp_path, content):
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(CheckpointError, match=r"ledger\.json"):
        Ledger(tmp_path)


def test_files_are_whole_only_together(tmp_path):
    (tmp_path / "a").write_text("1")
    assert files_hash(tmp_path, ("a", "b")) is None
    (tmp_path / "b").write_text("2")
    both = files_hash(tmp_path, ("a", "b"))
    (tmp_path / "b").write_text("3")
    assert None not in (both, files_hash(tmp_path, ("a", "b")))
    assert both != files_hash(tmp_path, ("a", "b"))
