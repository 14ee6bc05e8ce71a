"""Clients that train, and links that lose what they carry, for the tests of the bank's client."""

from __future__ import annotations

from concurrent.futures import Future

from cluster.bank.link import LocalLink
from tests.cluster.bank.bank_parts import batch_ids, rows, until

__all__ = ["Silent", "server_of", "step_through"]


class Silent(LocalLink):
    """A bank that accepts calls and answers none."""

    def serve(self, push):
        return Future()

    def stats(self):
        return Future()


def server_of(client):
    return client._link._server


def step_through(client, steps, rank=0, unhurried=False):
    """Train: take, then push and ask ahead; returns what was taken. Unhurried: the bank keeps up."""
    taken, ahead = {}, client.spec.horizon
    for step in steps:
        taken[step] = client.take(step, batch_ids(step, rank))
        client.push(rows(step, rank), batch_ids(step + ahead, rank), step + ahead)
        if unhurried:
            client.drain()
            until(lambda: server_of(client).stats()["waiting_rows"] == 0)
    return taken
