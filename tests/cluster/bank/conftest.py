"""A bank in this process and clients of it, opened and closed for a test."""

from __future__ import annotations

import pytest

from cluster.bank.client import BankClient
from cluster.bank.link import LocalLink
from cluster.bank.server import BankServer
from tests.cluster.bank.bank_parts import spec


@pytest.fixture
def connect():
    opened = []

    def start(link_of=LocalLink, server=None, rank=0, client_options=None, **changes):
        here = BankServer(spec(**changes)) if server is None else server
        client = BankClient(link_of(here), spec(**changes), rank, **(client_options or {}))
        opened.extend([client, here])
        return client

    yield start
    for part in opened:
        part.close()
