"""Where a Ray Train worker begins; Ray's controller, which trains nothing, reads this module and nothing of what it starts."""

from __future__ import annotations

import pickle

from cluster.training.job import Job, Summary

__all__ = ["job_words", "worker_loop"]


def job_words(job: Job) -> dict[str, bytes]:
    """`job` as the configuration of `worker_loop`: bytes, which the controller passes on without importing what they name."""
    return {"job": pickle.dumps(job)}


def worker_loop(config: dict[str, bytes]) -> Summary:
    """Entry of one Ray Train worker, see `job_words`. What it raises is tried again, what it returns is final."""
    from cluster.training.seat import ray_seat
    from cluster.training.worker import run

    return run(pickle.loads(config["job"]), ray_seat())
