"""What a training tells Prometheus: the numbers of its log rows, as gauges of the Ray process that writes them.

Ray serves them on every node's metrics port, each name with `ray_` before it and a `run` beside it; `cluster/deploy/grafana.json`
shows them. Only rank 0 sets them, at log rows: what is shown is what log.jsonl says, means over ranks or the worst of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

__all__ = ["GAUGES", "RunGauges"]

GAUGES: Mapping[str, tuple[str, str]] = {
    "step": ("vidssl_step", "steps done"),
    "epoch": ("vidssl_epoch", "epoch of the last logged step"),
    "loss": ("vidssl_loss", "mean loss since the last log row"),
    "step_ms": ("vidssl_step_ms", "median step, milliseconds"),
    "clips_per_second": ("vidssl_clips_per_second", "clips trained per second, all ranks together"),
    "wait_ratio": ("vidssl_wait_ratio", "share of the time that the step waited for data, 0 to 1"),
    "data/read_ms": ("vidssl_read_ms", "milliseconds of a batch in reading"),
    "data/decode_ms": ("vidssl_decode_ms", "milliseconds of a batch in decoding"),
    "data/augment_ms": ("vidssl_augment_ms", "milliseconds of a batch in augmentation"),
    "data/handover_ms": ("vidssl_handover_ms", "milliseconds of a batch on its way to the device"),
    "data/skipped": ("vidssl_skipped_videos", "videos skipped since the attempt began"),
    "data/retries": ("vidssl_retried_reads", "reads tried again since the attempt began"),
    "data/disk_wait_s": ("vidssl_disk_wait_seconds", "seconds waited for disks and stores since the attempt began"),
    "bank_age_steps": ("vidssl_bank_age_steps", "mean age of positives, steps"),
    "bank/age_p99": ("vidssl_bank_age_p99_steps", "99th percentile of their age, steps, of the worst rank"),
    "bank/fallback_ratio": ("vidssl_bank_fallback_ratio", "share of rows without positives, 0 to 1, of the worst rank"),
    "bank/mined_per_s": ("vidssl_bank_mined_rows_per_second", "rows mined per second"),
    "bank/needed_per_s": ("vidssl_bank_needed_rows_per_second", "rows asked for per second"),
    "bank/dropped": ("vidssl_bank_dropped_pushes", "pushes dropped since the attempt began, of the worst rank"),
    "bank/outages": ("vidssl_bank_outages", "times the bank was away, of the worst rank"),
    "health/collapsed": ("vidssl_collapsed", "1 where all clips look alike to the encoder"),
}
"""Column of a log row → the gauge's name, and what it shows."""

CLOCK = ("vidssl_last_row_seconds", "when the last log row was written, seconds since 1970")
"""Ray serves a gauge's last value for as long as its process lives: a run that hangs is seen by this one standing still."""


class RunGauges:
    """The gauges of one run; silent where this process has no Ray to serve them."""

    def __init__(self, run: str) -> None:
        self._gauges: dict[str, Gauge] = {}
        ray = sys.modules.get("ray")
        self._run, self._served = {"run": run}, ray is not None and ray.is_initialized()

    def show(self, row: Mapping[str, float]) -> None:
        """Set what `row` holds: a quarter of a millisecond in this process, and Ray passes it on by itself."""
        if not self._served:
            return
        for column, (name, about) in GAUGES.items():
            if column in row:
                self._set(name, about, row[column] + (column == "step"))
        self._set(*CLOCK, time.time())

    def _set(self, name: str, about: str, value: float) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=about, tag_keys=("run",)).set_default_tags(self._run)
        self._gauges[name].set(float(value))
