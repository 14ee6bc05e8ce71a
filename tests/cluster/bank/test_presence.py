"""An outage of the bank is one sentence when it is over, and told before where it lasts."""

from __future__ import annotations

import re
import time
from concurrent.futures import Future

from cluster.bank.link import BankGone, LocalLink
from tests.cluster.bank.bank_parts import BATCH, until
from tests.cluster.bank.client_parts import Silent, server_of, step_through


class Away(LocalLink):
    """A bank that nobody reaches while `away`."""

    away = False

    def value(self, future):
        if self.away:
            raise BankGone("killed")
        return super().value(future)


COST = r"; it was away for \d+ s, in which (\d+) rows were trained without mined positives and \d+ pushes were dropped"


def one_outage(client, lasts_s=0.0):
    """Away while steps 3 to 50 are trained, and for so long before the last."""
    step_through(client, range(3), unhurried=True)
    until(lambda: client._presence._process)
    client._link.away = True
    step_through(client, range(3, 50))
    until(lambda: client.counts["errors"] >= 2)
    time.sleep(lasts_s)
    client.take(50, BATCH)
    client._link.away = False


def test_a_short_outage_is_one_sentence_with_what_it_cost(connect):
    said = []
    client = connect(Away, client_options={"say": said.append})
    one_outage(client)
    until(lambda: said)
    found = re.fullmatch("the bank is back" + COST, said[0])
    assert found is not None
    assert int(found[1]) >= BATCH
    assert client.read()["bank/outages"] == 1


def test_an_outage_of_a_lost_process_is_one_sentence_with_what_the_next_one_began_with(connect):
    said = []
    client = connect(Away, client_options={"say": said.append})
    server_of(client).restart = "the bank's process was lost and started again with 7 of 48 rows"
    one_outage(client)
    until(lambda: said)
    assert re.fullmatch(server_of(client).restart + COST, said[0])


def test_a_process_that_was_lost_between_two_calls_is_told_too_and_once(connect, monkeypatch):
    said = []
    client = connect(client_options={"say": said.append})
    step_through(client, range(3), unhurried=True)
    until(lambda: client._presence._process)
    server_of(client).restart = "the bank's process was lost and started again with 7 of 48 rows"
    process = client._presence._process
    monkeypatch.setattr("cluster.bank.server.os.getpid", lambda: process + 1)
    for step in range(3, 6):
        client._stats_at = 0.0
        step_through(client, [step], unhurried=True)
        until(lambda: client._presence._process == process + 1)
    assert said == [server_of(client).restart]


def test_an_outage_that_lasts_is_told_before_it_ends(connect):
    said = []
    client = connect(Away, client_options={"say": said.append, "away_s": 1.0})
    one_outage(client, lasts_s=1.1)
    until(lambda: len(said) == 2)
    assert said[0] == (
        "the bank is away (killed): training goes on, rows without mined positives fall back to their own instance "
        "until it is back"
    )
    assert re.fullmatch("the bank is back" + COST, said[1])


def test_a_call_of_before_that_is_told_lost_after_a_later_one_was_answered_is_no_outage(connect):
    """A call sent while the bank begins again fails seconds later, when others are long answered: seen with Ray."""
    said = []

    class LateToFail(LocalLink):
        held = None

        def serve(self, push):
            if self.held is None:
                self.held = Future()
                return self.held
            return super().serve(push)

        def value(self, future):
            if future is self.held:
                raise BankGone("killed")
            return super().value(future)

    client = connect(LateToFail, client_options={"say": said.append})
    step_through(client, range(3))
    until(lambda: client._newest_answered > 1)
    client._link.held.set_result(None)
    until(lambda: client.counts["errors"] == 1)
    step_through(client, range(3, 6))
    client.drain()
    assert said == []
    assert client.read()["bank/outages"] == 0
    assert client.counts["errors"] == 1


def test_a_bank_that_is_silent_for_long_counts_as_away(connect):
    said = []
    client = connect(Silent, client_options={"say": said.append, "away_s": 0.0})
    step_through(client, range(30))
    assert len(said) == 1
    assert "the bank is away (no answer for 0 s)" in said[0]
