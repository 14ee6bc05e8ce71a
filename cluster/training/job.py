"""What the driver hands to its workers, and what comes back.

Nothing heavy is imported here: Ray Train's controller, a process of its own, reads a summary too, and it trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.bank.link import Link
    from cluster.bank.spec import BankSpec
    from cluster.training.failure import Failure
    from cluster.training.plan import BankFrom
    from pipelines.dataset.place import Address
    from vidssl.recipe import Recipe

__all__ = ["Job", "Summary"]


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker.

    Attributes:
        recipe: The run's recipe.
        folder: The run's folder, absolute and shared by all nodes.
        data: The packed data: an absolute folder that all nodes share, or an address.
        bank: Link to the bank, or None.
        bank_spec: What the bank was started with, or None.
        bank_from: What its rows begin with, where that was typed.
        kept: Batches that are served again and again instead of the loader's; 0: none.
        until: Steps after which it stops with a checkpoint, to go on later; None: at the end.
        lock: Of the driver, see `cluster.training.overseer`; "": none.
    """

    recipe: Recipe
    folder: Path
    data: Path | Address
    bank: Link | None = None
    bank_spec: BankSpec | None = None
    bank_from: BankFrom | None = None
    kept: int = 0
    until: int | None = None
    lock: str = ""


@dataclass(frozen=True)
class Summary:
    """What rank 0 says at the end.

    Attributes:
        step: Steps done.
        stopped: Whether the run was asked to stop.
        failure: Why the run cannot go on, where all ranks ended together.
    """

    step: int
    stopped: bool = False
    failure: Failure | None = None
