"""Does anything wait? Times of steps and waits, gathered between two log rows and averaged over ranks (or of the worst)."""

from __future__ import annotations

import statistics
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cluster.bank.tally import WORST
from cluster.training.agree import mean_over_ranks, worst_over_ranks
from cluster.training.laggard import ForwardTime, OwnTime
from vidssl.batch import ClipBatch
from vidssl.distributed import world
from vidssl.health import examine

if TYPE_CHECKING:
    from cluster.bank.client import BankClient
    from cluster.training.cached import CachedLoader
    from pipelines.loader import TrainLoader
    from vidssl.methods import StepOutput

__all__ = ["StepMeter"]

HEALTH_STEPS = 16
"""Health is read from the trained view's embeddings of the last steps, at most this many."""

SUMS = ("data/skipped", "data/retries", "data/disk_wait_s")
"""Videos skipped, reads tried again and seconds waited for disks: of all ranks together, since the attempt began."""


class StepMeter:
    """Measures one rank's steps; `read` is a collective and must be called by all ranks at the same step.

    Attributes:
        own: This rank's own time in the steps of the last row.
    """

    def __init__(
        self,
        loader: TrainLoader | CachedLoader,
        bank: BankClient | None,
        view: str,
        clips_per_step: int,
        device: torch.device,
        model: nn.Module,
    ) -> None:
        self._loader, self._bank, self._device = loader, bank, device
        self._view, self._clips, self._stages = view, clips_per_step, loader.meter.stages.copy()
        self._forward, self.own = ForwardTime(model), OwnTime(0.0, 0.0)
        self._clear()

    def timed_next(self) -> ClipBatch:
        """The next batch; the time it was not ready counts as waiting."""
        before = time.perf_counter()
        batch = next(self._loader)
        self._wait_s += time.perf_counter() - before
        seen = np.stack([batch.on_host("instance"), batch.on_host("start")[:, 0]]).tobytes()
        self._seen = zlib.crc32(seen, self._seen)
        return batch

    def step_done(self, out: StepOutput) -> None:
        """Note one finished step."""
        now = time.perf_counter()
        self._steps_s.append(now - self._last)
        self._last = now
        self._losses.append(out.loss.detach())
        self._rows.append(out.embeddings[self._view].detach())
        for name, value in out.metrics.items():
            self._metrics[name].append(value)

    def skip_interval(self) -> None:
        """Time since the last step was not training (a checkpoint)."""
        self._last = time.perf_counter()

    def read(self, step: int, epoch: int, rate: float) -> dict[str, float]:
        """The row of this interval, averaged over ranks (of `WORST`: the largest), and a fresh start."""
        seconds = sum(self._steps_s)
        own: dict[str, float | None] = {
            "loss": float(torch.stack(self._losses).mean()),
            "step_ms": statistics.median(self._steps_s) * 1e3,
            "wait_ratio": self._wait_s / max(seconds, 1e-9),
            "clips_per_rank_second": self._clips * len(self._steps_s) / max(seconds, 1e-9),
        }
        own |= {name: _mean(values) for name, values in sorted(self._metrics.items()) if name != "loss/total"}
        own["data/seen"] = float(self._seen & 0xFFFFFF)  # two runs that saw the same windows show the same number
        own |= (data := self._of_data())
        self.own = self._own_time(data)
        own |= self._health()
        own |= {} if self._bank is None else self._bank.read()
        means = dict(zip(own, mean_over_ranks(list(own.values()), self._device), strict=True))
        worst = [name for name in WORST if name in own]
        means |= zip(worst, worst_over_ranks([own[name] for name in worst], self._device), strict=True)
        row = {name: value for name, value in means.items() if value is not None}
        row["clips_per_second"] = row.pop("clips_per_rank_second") * world()
        row |= {name: row[name] * world() for name in SUMS}
        self._clear()
        return {"step": step, "epoch": epoch, "lr": rate} | row

    def _own_time(self, data: Mapping[str, float | None]) -> OwnTime:
        each = 1e3 / max(len(self._steps_s), 1)
        read, decode, augment = (data.get(f"data/{stage}_ms") or 0.0 for stage in ("read", "decode", "augment"))
        return OwnTime(each * self._wait_s, each * self._forward.taken(), (read, decode, augment))

    def _of_data(self) -> dict[str, float | None]:
        """On this rank: sums since this attempt began, and what a batch took to make since the last row."""
        meter = self._loader.meter
        sums = map(float, (len(meter.bad), meter.disk.retries, meter.disk.waited_s))
        now, before = meter.stages.copy(), self._stages
        self._stages = now
        return dict(zip(SUMS, sums, strict=True)) | now.row(before)

    def _health(self) -> dict[str, float]:
        found = examine(torch.cat(list(self._rows)).float().cpu().numpy())
        return {
            "health/rankme": found.rankme,
            "health/std": found.std,
            "health/uniformity": found.uniformity,
            "health/collapsed": float(found.collapsed),
        }

    def _clear(self) -> None:
        self._steps_s: list[float] = []
        self._losses: list[torch.Tensor] = []
        self._rows: deque[torch.Tensor] = deque(maxlen=HEALTH_STEPS)
        self._metrics: dict[str, list[Any]] = defaultdict(list)
        self._wait_s, self._seen = 0.0, 0
        self._last = time.perf_counter()


def _mean(values: list[Any]) -> float:
    return sum(float(value) for value in values) / len(values)
