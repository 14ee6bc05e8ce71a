"""From one attempt to the next: with how many workers, when again, when no more. What a cluster has is the test's; fit too."""

from __future__ import annotations

import time

import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.capacity import demand_of
from cluster.training import attempts
from cluster.training.attempts import Crew, train_through
from cluster.training.job import Summary
from vidssl.errors import DeviceError
from vidssl.recipe import load_recipe
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder


@pytest.fixture
def cluster(monkeypatch):
    """Free cores by node, to be changed by the test."""
    free = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    monkeypatch.setattr(attempts, "free_by_node", lambda: free)
    monkeypatch.setattr(attempts, "_alive", dict)
    monkeypatch.setattr(attempts, "_ask_autoscaler", lambda crew, workers: None)
    monkeypatch.setattr(attempts, "LOOK_S", 0.05)
    monkeypatch.setattr(attempts, "_SETTLED", 1)
    return free


def crew(*words):
    recipe = load_recipe("cpr-tiny", ["trainer.workers=[1,3]", "trainer.batch=4", *words])
    return Crew(recipe, demand_of(recipe.trainer, False))


def saved(folder, step):
    save_checkpoint(folder, Meta(step, "r", "d", 1, 0), 0, {}, {})


def sentences(folder):
    return folder.events.read_text() if folder.events.is_file() else ""


def test_as_many_train_as_fit_and_more_are_asked_for_only_once_these_have_begun(cluster, tmp_path):
    """While workers are being started, what they are going to take still looks free."""
    folder, sizes = RunFolder(tmp_path), []

    def fit(recipe):
        sizes.append(recipe.trainer.workers)
        if len(sizes) == 1:
            time.sleep(0.4)
            assert not folder.resize_flag.exists()
            cluster.update(a={"CPU": 0.0}, b={"CPU": 0.0})
            folder.ranks.write_text("[]")
            time.sleep(0.3)
            assert not folder.resize_flag.exists()
            cluster["c"] = {"CPU": 1.0}
            until = time.monotonic() + 10
            while not folder.resize_flag.exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            cluster.update(a={"CPU": 1.0}, b={"CPU": 1.0})
            return Summary(8, stopped=True)
        return Summary(24)

    assert train_through(crew(), folder, fit) == Summary(24)
    assert sizes == [2, 3]
    assert "there is room for 3 workers now" in sentences(folder)


class OneBlind:
    """Of the nodes that join, c does not see the data."""

    def __init__(self):
        self.blind, self.said = {}, 0

    def look(self, nodes, say):
        if "c" in nodes and "c" not in self.blind:
            self.blind["c"] = "no such folder"
            say("node c is left out")


def test_a_node_that_joins_and_does_not_see_what_the_others_see_is_no_room(cluster, tmp_path):
    folder, sizes = RunFolder(tmp_path), []

    def fit(recipe):
        sizes.append(recipe.trainer.workers)
        cluster.update(a={"CPU": 0.0}, b={"CPU": 0.0}, c={"CPU": 1.0})
        folder.ranks.write_text("[]")
        time.sleep(0.5)
        assert not folder.resize_flag.exists()
        return Summary(24)

    blind = crew()
    blind.newcomers = OneBlind()
    assert train_through(blind, folder, fit) == Summary(24)
    assert sizes == [2]
    assert sentences(folder).count("node c is left out") == 1


def test_failures_count_only_while_a_run_gets_no_further(cluster, tmp_path):
    folder, steps = RunFolder(tmp_path), iter([10, 20, None])

    def fit(recipe):
        step = next(steps)
        if step is not None:
            saved(folder, step)
        raise WorkerGroupError("lost", {})

    with pytest.raises(WorkerGroupError):
        train_through(crew(), folder, fit)
    assert next(steps, "end") == "end"  # twice further, then not: no third time


def test_a_group_that_finds_no_room_is_tried_as_often_as_failures_are_allowed(cluster, tmp_path):
    tried = []

    def fit(recipe):
        tried.append(recipe.trainer.workers)
        raise ControllerError(RuntimeError("no room"))

    with pytest.raises(ControllerError):
        train_through(crew("trainer.max_failures=2"), RunFolder(tmp_path), fit)
    assert len(tried) == 3
    tried.clear()
    with pytest.raises(ControllerError):
        train_through(crew("trainer.max_failures=0"), RunFolder(tmp_path), fit)
    assert len(tried) == 1


def test_no_room_is_waited_for_as_long_as_is_allowed_and_a_stop_is_heard_meanwhile(cluster, tmp_path):
    cluster.update(a={"CPU": 0.0}, b={"CPU": 0.0})
    with pytest.raises(
        DeviceError, match=r"no room for the workers after \d+ s: 0 of 1 worker\(s\) with 1 core\(s\) fit"
    ):
        train_through(crew("trainer.wait_for_nodes=1"), RunFolder(tmp_path), lambda recipe: Summary(1))
    folder = RunFolder(tmp_path)
    saved(folder, 5)
    folder.stop_flag.touch()
    assert train_through(crew(), folder, lambda recipe: Summary(1)) == Summary(5, stopped=True)
