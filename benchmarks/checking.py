"""What every check is given: where and how large to measure, a place to note findings, and a fair clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidssl.files import write_whole

__all__ = ["Note", "Setting", "Skipped", "best_ms", "settle"]


class Skipped(Exception):
    """This check asks for hardware that the setting has not; the text says what."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        small: Tiny sizes: whether it runs is asked, not how fast.
    """

    device: str
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is asked for."""
        return self.device == "cuda"

    def need_gpu(self, what: str) -> None:
        """Leave the check in a rehearsal.

        Raises:
            Skipped: there is no GPU in this setting.
        """
        if not self.on_gpu:
            raise Skipped(f"{what} needs a GPU")


class Note:
    """Findings by name, on disk as soon as they are known, so that a crash later does not take them along."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, Any]()

    def __call__(self, name: str, value: Any) -> None:
        """Keep a JSON value; floats are rounded to four significant digits."""
        self.found[name] = _rounded(value)
        write_whole(self.path, json.dumps(self.found))


def settle(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def best_ms(run: Callable[[], object], device: str, rounds: int = 5, budget_s: float = 10) -> float:
    """Milliseconds of the fastest of some rounds after one that warms up; fewer rounds where one is long."""
    run()
    settle(device)
    best, spent = float("inf"), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        settle(device)
        best = min(best, time.perf_counter() - began)
        spent += time.perf_counter() - began
        if spent > budget_s:
            break
    return 1e3 * best


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
