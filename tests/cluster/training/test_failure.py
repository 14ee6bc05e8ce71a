"""What ends a run and what is tried again; and that ranks end together."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.training.agree import together
from cluster.training.failure import Halt, after_all_retries, failure_of, read_failure, write_failure
from cluster.training.worker import Worker
from tests.vidssl.methods.two_ranks import found_by_ranks
from vidssl.errors import DataError, DiskFullError, StorageError, VidsslError
from vidssl.saved.checkpoint import Meta, latest_step, save_checkpoint
from vidssl.saved.run_folder import RunFolder


def system(number: int, path: str = "/shared/run/checkpoints/model.pt") -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "kind", "again", "sentence"),
    [
        (DataError("too few videos"), DataError, False, r"^too few videos$"),
        (StorageError("the bank did not answer"), StorageError, True, r"^the bank did not answer$"),
        (system(errno.ESTALE), StorageError, True, r"model\.pt cannot be written \(Stale file handle\)"),
        (system(errno.EIO), StorageError, True, r"model\.pt cannot be written \(Input/output error\)"),
        (system(errno.ENOSPC), DiskFullError, False, r"model\.pt cannot be written: the disk .* is full"),
        (system(errno.EDQUOT), DiskFullError, False, r"is full"),
    ],
)
def test_only_what_meets_the_same_again_is_final(error, kind, again, sentence, tmp_path):
    failure = failure_of(error, RunFolder(tmp_path))
    assert failure.again is again
    with pytest.raises(kind, match=sentence):
        raise failure.error()
    write_failure(RunFolder(tmp_path), failure)
    assert read_failure(RunFolder(tmp_path)) == failure


def test_when_no_attempt_is_left_the_cause_is_a_sentence_with_what_to_type(tmp_path):
    class Lost(Exception):
        worker_failures: dict[int, Exception]

    def ended(**causes: Exception) -> str:
        lost = Lost()
        lost.worker_failures = {int(rank[1:]): cause for rank, cause in causes.items()}
        return str(after_all_retries(lost, RunFolder(tmp_path), 2, 80))

    rest = f"; the run stands at step 80, to go on: vidssl train --resume {tmp_path}"
    assert ended(r1=StorageError("the bank did not start")) == f"the bank did not start (rank 1, 3 attempts){rest}"
    fault = TypeError("ours")
    assert after_all_retries(fault, RunFolder(tmp_path), 2, None) is fault  # with its traceback


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two gloo processes found, each with its own view of the run folder: rank 1 sees an older and a newer one."""
    root = tmp_path_factory.mktemp("ranks")
    for rank, steps in enumerate(((10, 20), (10, 30))):
        for step in steps:
            save_checkpoint(
                RunFolder(root / f"seen-by-{rank}"), Meta(step, "r", "d", 1, 0), 0, {}, {"w": torch.ones(1)}
            )
    return found_by_ranks(find, root)


def test_ranks_that_see_other_checkpoints_begin_at_the_step_that_rank_0_sees(ranks):
    assert [found["latest"] for found in ranks] == [20, 30]
    assert [found["start"] for found in ranks] == [20, 20]


def test_a_rank_that_fails_ends_all_of_them_with_its_reason(ranks):
    for found in ranks:
        assert found["first"] == "fine"
        assert found["halted"].startswith("/there cannot be written: the disk ")
        assert found["kind"] == "DiskFullError"
        assert found["again"] is False


def find(rank: int, root: Path) -> dict[str, Any]:
    folder, cpu = RunFolder(root), torch.device("cpu")

    def fails(meet: Any) -> None:
        meet()
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "/there")
        meet()

    worker = Worker.__new__(Worker)  # as far as a start is chosen, without Ray
    worker.folder, worker.rank, worker.device = RunFolder(folder.path / f"seen-by-{rank}"), rank, cpu
    seen = {"latest": latest_step(worker.folder), "start": worker._start()}
    first = together(lambda meet: "fine", folder, cpu)
    try:
        together(fails, folder, cpu)
    except Halt as halt:
        return seen | {"first": first, "halted": str(halt), "kind": halt.failure.kind, "again": halt.failure.again}
    raise VidsslError("nobody was halted")
