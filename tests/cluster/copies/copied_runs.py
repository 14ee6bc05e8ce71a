"""What the tests of copies share: a run typed in, trained in this process, and looked at here and at the store."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cluster.copies.files import newest
from cluster.training.verb import TrainWords, run_train
from tests.cluster.training.small_runs import tree
from vidssl.marks import LOCK
from vidssl.saved.tensors import read_tensors

HERE = Path(__file__).parents[3]
ALONE = ("trainer.workers=0", "trainer.batch=8")


def train(words: TrainWords) -> list[str]:
    said: list[str] = []
    assert run_train(words, said.append, None) == 0
    return said


def once_copied(s3, prefix: str, act) -> threading.Thread:
    """Do something as soon as the first checkpoint of a run is at the store."""

    def wait() -> None:
        while not newest(s3.modified(prefix)):
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def copied(s3, prefix: str) -> dict[str, bytes]:
    return s3.objects(prefix)


def files(run: Path) -> dict[str, bytes]:
    """What a copy has to hold of a run that has ended."""
    there = {name: data for name, data in tree(run).items() if data is not None}
    return {name: data for name, data in there.items() if not name.endswith(("ranks.json", LOCK, "attempt"))}


def weights(run: Path, step: int) -> dict[str, object]:
    return read_tensors(run / "checkpoints" / f"step-{step:08d}" / "model.pt")["method"]


def equal(one: dict[str, object], two: dict[str, object]) -> bool:
    return all(value.equal(two[name]) for name, value in one.items() if hasattr(value, "equal"))  # type: ignore[attr-defined]
