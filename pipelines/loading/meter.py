"""What a loader has measured: waits, batches, bad samples, disks, and what the making of batches takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.dataset.patience import Patience
from pipelines.loading.stages import Stages
from pipelines.loading.stream import BadSample

__all__ = ["LoaderMeter"]


@dataclass
class LoaderMeter:
    """What has been measured so far.

    Attributes:
        wait_s: Seconds the caller waited for batches that were not ready.
        batches: Batches delivered.
        bad: Samples found to be bad since this loader began, up to the last delivered batch.
        disk: Retries and waits of the disk, batches made ahead included.
        stages: What the making of batches takes, those made ahead included.
    """

    wait_s: float = 0.0
    batches: int = 0
    bad: list[BadSample] = field(default_factory=list)
    disk: Patience = field(default_factory=lambda: Patience(0.0))
    stages: Stages = field(default_factory=Stages)
    _read_s: float = 0.0

    def read_wait(self) -> float:
        """Seconds waited since the last call of this."""
        since, self._read_s = self.wait_s - self._read_s, self.wait_s
        return since
