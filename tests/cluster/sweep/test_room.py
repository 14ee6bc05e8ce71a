"""How many trainings fit: by what each books and what is free, and never an endless wait."""

from __future__ import annotations

import pytest
import ray

from cluster.sweep.room import room_for
from vidssl.errors import DeviceError
from vidssl.recipe import load_recipe


@pytest.fixture
def cluster(monkeypatch):
    def has(free, **whole):
        monkeypatch.setattr(ray, "cluster_resources", lambda: whole)
        monkeypatch.setattr(ray, "available_resources", lambda: free)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "one", "Alive": True, "Resources": whole}])

    return has


def recipe(*words):
    return load_recipe("cpr-tiny", ["trainer.device=cpu", *words])


@pytest.mark.parametrize(
    ("words", "trainings", "most", "fits"),
    [
        (["trainer.workers=1"], 9, None, 8),
        (["trainer.workers=2"], 9, None, 4),
        (["trainer.workers=2", "trainer.cpus_per_worker=2"], 9, None, 2),
        (["trainer.workers=2", "mining.miners=1"], 9, None, 2),
        (["trainer.workers=1"], 3, None, 3),
        (["trainer.workers=1"], 9, 5, 5),
    ],
)
def test_as_many_train_at_once_as_the_free_cores_hold(cluster, words, trainings, most, fits):
    cluster({"CPU": 8.0}, CPU=16.0)
    assert room_for([recipe(*words)] * trainings, most).at_once == fits


def test_the_largest_training_counts(cluster):
    cluster({"CPU": 8.0}, CPU=8.0)
    room = room_for([recipe("trainer.workers=1"), recipe("trainer.workers=4")] * 3)
    assert (room.at_once, room.words) == (2, "4 core(s)")


def test_what_others_hold_is_not_waited_for(cluster):
    cluster({"CPU": 1.0}, CPU=8.0)
    with pytest.raises(
        DeviceError, match=r"one training takes 2 core\(s\), and of this cluster 1 core\(s\) and 0 GPU\(s\) are free"
    ):
        room_for([recipe("trainer.workers=2")])
    with pytest.raises(DeviceError, match=r"trainer\.workers=9 with 1 core"):
        room_for([recipe("trainer.workers=9")])
