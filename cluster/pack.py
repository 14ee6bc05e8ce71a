"""`vidssl pack` on all cores or a whole cluster: the same jobs as `pipelines.pack`, spread over Ray tasks.

Few videos on one machine are packed without Ray: starting it takes longer. A task does a batch of videos with one
guarded child process, and stages each when it is done, so a lost task or node costs one video.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vidssl.errors import RecipeError, VidsslError

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest
    from pipelines.pack import Job, Work
    from pipelines.packing.staging import Staged
    from pipelines.packing.verdict import Verdict

__all__ = ["PackBar", "in_ray", "run_pack"]

FEW = 1000
"""Below this many videos one machine packs faster without Ray."""

_LINE_S = 5.0
_BATCHES_PER_WORKER = 8
_LARGEST_BATCH = 32


def run_pack(
    format: str, src: str | Path, out: str | Path, overrides: Sequence[str] = (), workers: int | None = None
) -> Manifest:
    """Pack a source with a progress bar on stderr; see `pipelines.pack.pack`.

    Args:
        format: A name in `pipelines.packing.catalog.FORMATS`.
        src: Folder of the videos, or the file that lists them; in a bucket too (s3://…, gs://…).
        out: Folder to pack into; on a cluster, one that all nodes share. Or an address, see `pipelines.pack.pack`.
        overrides: `key=value` words of `PackOptions`.
        workers: Videos decoded at once; None: the cores of the machine or cluster.

    Raises:
        RecipeError: a word that is no option, or a value that is not allowed.
        DataError: as `pipelines.pack.pack`.
    """
    from pipelines.pack import in_threads, pack, pack_options

    options = pack_options(overrides)
    bar = PackBar(sys.stderr)
    if workers is not None and workers < 1:
        raise RecipeError(f"--workers {workers} packs nothing; give at least 1, or leave it out for all cores")
    if workers == 1 or not _on_cluster():

        def spread(jobs: Sequence[Job], work: Work, count: int) -> Iterator[Staged]:
            return (in_ray if count > 1 and len(jobs) >= FEW else in_threads)(jobs, work, count)

        return pack(format, src, out, options, workers=workers, run=spread, watch=bar)
    from cluster.launch import ray_session
    from pipelines.dataset.place import address_of

    if address_of(out) is not None and options.stage is None:
        raise RecipeError(
            f"{out} is packed in a folder first, and all nodes need it; type stage=FOLDER, one that they share"
        )
    with ray_session(1):
        return pack(format, src, out, options, workers=workers or cluster_cores(), run=in_ray, watch=bar)


def in_ray(jobs: Sequence[Job], work: Work, workers: int) -> Iterator[Staged]:
    """The mapper of a cluster, or of one machine with many videos (Ray is started for it then).

    Args:
        jobs: What to do.
        work: What every task needs to know.
        workers: Tasks at once.

    Raises:
        VidsslError, OSError: the first error of any task.
    """
    import ray

    from cluster.launch import ray_session

    with ray_session(workers):
        task = ray.remote(num_cpus=1, max_retries=3)(_batch)
        batches = _batches(jobs, workers)
        running: list[ray.ObjectRef] = []
        try:
            while batches or running:
                while batches and len(running) < 2 * workers:
                    running.append(task.remote(batches.pop(), work))
                (done,), running = ray.wait(running, num_returns=1)
                result = ray.get(done)
                if isinstance(result, Exception):
                    raise result
                yield from result
        finally:
            for left in running:
                ray.cancel(left, force=True)


class PackBar:
    """Progress on a stream: one line that moves on a terminal, a plain line now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._moving = stream.isatty()
        self._total = self._done = self._before = self._rejected = 0
        self._began = self._told = 0.0

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._write(f"{sentence}\n")

    def begin(self, total: int, done: int) -> None:
        """Start counting."""
        self._total, self._done, self._before, self._rejected = total, done, done, 0
        self._began = self._told = time.monotonic()

    def tick(self, verdict: Verdict) -> None:
        """One more video."""
        self._done += 1
        self._rejected += verdict.verdict == "rejected"
        now = time.monotonic()
        if now - self._told >= (0.1 if self._moving else _LINE_S):
            self._told = now
            self._write(self._line(now) + ("" if self._moving else "\n"))

    def end(self) -> None:
        """The last line."""
        if self._done > self._before:
            self._write(self._line(time.monotonic()) + "\n")

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._began, 1e-3)
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._done < self._total and rate else ""
        return f"packing {self._done}/{self._total}, {self._rejected} rejected, {rate:.1f} videos/s{left}"

    def _write(self, text: str) -> None:
        self.stream.write(f"\r\033[K{text}" if self._moving else text)
        self.stream.flush()


def _on_cluster() -> bool:
    """Whether there is a Ray of several nodes to use."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    if "ray" not in sys.modules:
        return False
    import ray

    return ray.is_initialized() and len(ray.nodes()) > 1


def cluster_cores() -> int:
    """Cores of the cluster this process is connected to."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _batches(jobs: Sequence[Job], workers: int) -> list[list[Job]]:
    """Batches in reverse order (they are taken from the end)."""
    size = min(_LARGEST_BATCH, max(1, len(jobs) // (workers * _BATCHES_PER_WORKER)))
    return [list(jobs[first : first + size]) for first in range(0, len(jobs), size)][::-1]


def _batch(jobs: Sequence[Job], work: Work) -> list[Staged] | Exception:
    """Body of a task. An error of ours comes back as a value: raised in Ray it would be a page of traceback."""
    from pipelines.pack import stage_one
    from pipelines.packing.guard import Guard

    try:
        with Guard(work.target, work.limits) as guard:
            return [stage_one(job, work, guard) for job in jobs]
    except (VidsslError, OSError) as error:
        return error
