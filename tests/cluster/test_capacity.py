"""How many workers fit? Held against trying every number of them, one bundle after the other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capacity import Demand, demand_of, missing_words, most_workers, sizes_of
from vidssl.recipe import Mining, Trainer

NODES = st.dictionaries(
    st.text("abcd", min_size=1, max_size=2),
    st.fixed_dictionaries({"CPU": st.integers(0, 5)}, optional={"GPU": st.integers(0, 3)}),
    max_size=4,
)


def fits(nodes, bundles):
    """Whether all bundles fit somewhere: every way to put them is tried."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        left = [dict(node) for node in nodes]
        for place, bundle in zip(places, bundles, strict=True):
            for name, much in bundle.items():
                left[place][name] = left[place].get(name, 0) - much
        if all(much >= 0 for node in left for much in node.values()):
            return True
    return not bundles


@settings(max_examples=60, deadline=None)
@given(NODES, st.integers(1, 3), st.booleans())
def test_workers_are_as_many_as_any_way_to_place_them_allows(nodes, cores, gpu):
    worker = {"CPU": float(cores), **({"GPU": 1.0} if gpu else {})}
    found = most_workers(Demand(worker), nodes)
    places = [dict(node) for node in nodes.values()]
    assert found == sum(next(n for n in range(9) if not fits([node], [worker] * (n + 1))) for node in places)


@settings(max_examples=60, deadline=None)
@given(NODES, st.lists(st.fixed_dictionaries({"CPU": st.integers(1, 3)}), max_size=2))
def test_what_is_placed_beside_the_workers_never_makes_too_many_of_them(nodes, beside):
    found = most_workers(Demand({"CPU": 1.0}, tuple(beside)), nodes)
    places = [dict(node) for node in nodes.values()]
    if sum(node["CPU"] for node in places) <= 6:
        assert fits(places, [*beside, *[{"CPU": 1.0}] * found]) or found == 0
    assert found <= sum(node["CPU"] for node in places)


def test_a_worker_s_cores_are_of_one_node_and_so_is_its_gpu():
    nodes = {"a": {"CPU": 3.0, "GPU": 1.0}, "b": {"CPU": 3.0}, "head": {}}
    assert most_workers(demand_of(Trainer(cpus_per_worker=2), False), nodes) == 2
    assert most_workers(demand_of(Trainer(cpus_per_worker=2), True), nodes) == 1
    assert most_workers(demand_of(Trainer(cpus_per_worker=4), False), nodes) == 0
    miners = demand_of(Trainer(), False, Mining(miners=2, cpus_per_miner=2))
    assert most_workers(miners, nodes) == 2
    assert most_workers(demand_of(Trainer(), False, Mining(miners=1, miner_node="big")), nodes) == 0
    assert most_workers(demand_of(Trainer(), False, Mining(miners=2, where="inline")), nodes) == 6
    assert most_workers(demand_of(Trainer(), False, Mining(shards=3, cpus_per_shard=1)), nodes) == 3
    assert most_workers(demand_of(Trainer(), False, Mining(shards=3, cpus_per_shard=0)), nodes) == 6


def test_what_is_missing_is_said_in_numbers():
    nodes = {"a": {"CPU": 3.0, "GPU": 1.0}, "b": {"CPU": 2.0}}
    assert missing_words(demand_of(Trainer(), True), 4, nodes) == (
        "1 of 4 worker(s) with 1 core(s) and a GPU fit, 5 core(s) and 1 GPU(s) are free on 2 node(s)"
    )
    assert missing_words(demand_of(Trainer(), False, Mining(miners=1)), 8, nodes) == (
        "4 of 8 worker(s) with 1 core(s) fit beside 1 process(es) that mine, 5 core(s) are free on 2 node(s)"
    )


@pytest.mark.parametrize(
    ("workers", "batch", "sizes"),
    [(8, 4, (8,)), ([1, 3], 4, (3, 2, 1)), ([4, 16], 1, (16, 8, 4)), ([3, 4], 1, (4,)), ([2, 2], 5, (2,))],
)
def test_only_numbers_that_share_the_videos_of_a_step_may_train(workers, batch, sizes):
    trainer = Trainer.model_validate({"workers": workers, "batch": batch})
    assert sizes_of(trainer) == sizes
    assert all(trainer.batch * trainer.workers % size == 0 for size in sizes)
