"""What does a run say while it runs? One row per logged step, to log.jsonl, TensorBoard and Ray's metrics, with fixed names.

Tags: `loss/ mining/ bank/ data/ health/ optim/`. Only rank 0 writes; numbers are means over ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from cluster.training.gauges import RunGauges
from vidssl.saved.run_folder import RunFolder

__all__ = ["RunLog", "live_line", "note_event"]

_TOP = {
    "loss": "loss/total",
    "clips_per_second": "data/clips_per_second",
    "wait_ratio": "data/wait_ratio",
    "bank_age_steps": "bank/age_steps",
    "lr": "optim/lr",
    "step_ms": "data/step_ms",
}


class RunLog:
    """Writer of log.jsonl, TensorBoard and gauges for one attempt of a run; steps from `start` on are written anew."""

    def __init__(self, folder: RunFolder, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        folder.forget_log_after(start) if folder.log.is_file() else folder.log.touch()
        self._file: TextIO = folder.log.open("a", buffering=1)
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=start)
        self._gauges = RunGauges(folder.path.name)

    def write(self, row: Mapping[str, float]) -> None:
        """One logged step; `row` holds `step`, `epoch`, the columns of the live line and `tag/name` numbers."""
        self._file.write(json.dumps({key: _short(value) for key, value in row.items()}) + "\n")
        for key, value in row.items():
            tag = _TOP.get(key, key)
            if "/" in tag:
                self._board.add_scalar(tag, value, int(row["step"]))
        self._gauges.show(row)

    def close(self) -> None:
        """Flush both; the rows are on the disk by then, so a disk that takes no more is told and ends nothing."""
        for one in (self._file, self._board):
            try:
                one.close()
            except OSError as error:
                note_event(self._folder, f"the end of the log or of TensorBoard's file is missing: {error}")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def note_event(folder: RunFolder, sentence: str, *, restart: bool = False) -> None:
    """Have the driver say a sentence, and keep it; where even that cannot be written, Ray's own log has it.

    Args:
        folder: The run.
        sentence: For the user.
        restart: Whether it says why an attempt ended.
    """
    with suppress(OSError), folder.events.open("a") as file:
        file.write(json.dumps({"sentence": sentence, "restart": restart}) + "\n")


def live_line(row: Mapping[str, float], total: int) -> str:
    """The columns that every run shows: step, loss, clips/s, wait %, mining; videos skipped and reads tried again, if any."""
    # Fresh weights give nearly equal embeddings, so the first epoch says nothing.
    collapsed = row["epoch"] >= 1 and row.get("health/collapsed", 0.0) > 0.5
    alarm = "  COLLAPSED: all clips look alike to the encoder" if collapsed else ""
    skipped, retries = int(row.get("data/skipped", 0)), int(row.get("data/retries", 0))
    data = (f"  skipped {skipped}" if skipped else "") + (f"  retries {retries}" if retries else "")
    return (
        f"step {int(row['step']) + 1:>6}/{total}  loss {row['loss']:7.4f}  {row['clips_per_second']:7.1f} clips/s  "
        f"wait {100 * row['wait_ratio']:4.1f} %{_mining(row)}{data}{alarm}"
    )


def _mining(row: Mapping[str, float]) -> str:
    """What is known of mining: age (half of the rows, 99 %), fallback of the worst rank, rate, what the bank refused."""
    if "bank/push_ms" not in row:
        return ""
    half, most, fallback = (row.get(f"bank/{name}") for name in ("age_p50", "age_p99", "fallback_ratio"))
    mined, needed, refused = (row.get(f"bank/{name}") for name in ("mined_per_s", "needed_per_s", "rejected"))
    away, outages = row.get("bank/away_s", 0.0), row.get("bank/outages", 0.0)
    spread = None if half is None or most is None else f"{half:.0f}" + (f"-{most:.0f}" if round(most) > half else "")
    age = "-" if spread is None else f"{spread} steps"
    said = f"  bank age {age}" + ("" if fallback is None else f"  fallback {100 * fallback:.0f} %")
    said += "" if mined is None or needed is None else f"  mined {mined:,.0f} of {needed:,.0f} rows/s"
    said += f"  bank away {outages:.0f}x, {away:.0f} s" if outages else ""
    return said + (f"  refused {refused:.0f} rows" if refused else "")


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.9g}")
