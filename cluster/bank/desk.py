"""What does one attempt of a training work on? A new attempt gets its own, and what is still mined for the old one ends there."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.bank.lockstep import Lockstep
from cluster.bank.requests import Requests
from cluster.bank.rows import BankRows
from cluster.bank.spec import BankSpec
from cluster.bank.table import Pace, PositiveTable

__all__ = ["Desk"]


@dataclass(frozen=True)
class Desk:
    """One attempt's.

    Attributes:
        bank: Its rows.
        table: What was mined for each video last.
        requests: What is to be mined.
        pace: How old positives may be, where nobody said.
        steps: Its order, where it must repeat bit for bit.
    """

    bank: BankRows
    table: PositiveTable
    requests: Requests
    pace: Pace
    steps: Lockstep | None

    @classmethod
    def open(cls, spec: BankSpec, bank: BankRows, world: int, start: int) -> Desk:
        """For an attempt of so many ranks that begins at this step."""
        table = PositiveTable(spec.n_slots, spec.plan.k, spec.plan.depth)
        steps = Lockstep(world, start, spec.lookahead) if spec.deterministic else None
        return cls(bank, table, Requests(spec.n_slots), Pace(spec.epoch_steps), steps)

    def close(self) -> None:
        """Nobody is waited for any more."""
        self.requests.close()
        if self.steps is not None:
            self.steps.close()
