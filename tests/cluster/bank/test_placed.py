"""Where the bank goes is said in words, with what is booked beside the workers."""

from __future__ import annotations

from dataclasses import replace

from cluster.bank.placed import beside_words
from tests.cluster.bank.bank_parts import spec


def test_the_opening_says_what_a_run_has_beside_its_workers_and_where():
    plain = spec()
    assert (
        beside_words(plain) == f"beside the workers: the bank with {plain.memory / 2**20:.0f} MiB on the driver's node"
    )
    mined = replace(plain, miners=2, gpus_per_miner=0.25, miner_node="fast", node="stable")
    assert beside_words(mined).endswith(
        " MiB on a node with stable, 2 miner(s) with 1 core(s) and 0.25 GPU each on nodes with fast"
    )
    large = replace(plain, n_slots=10_000_000, dim=128)
    assert " MiB (booked) on the driver's node" in beside_words(large)
    assert beside_words(replace(large, shards=4, cpus_per_shard=2)).endswith(", 4 shard(s) with 2 core(s) each")
