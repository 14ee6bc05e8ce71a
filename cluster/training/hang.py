"""When no step ends for long: every rank writes where all its threads stand, and the driver says who waits where.

Each rank arms Python's own watchdog (`faulthandler`, a thread without the interpreter's lock) before every step. So a rank that
hangs inside a collective, a read or a decoder leaves its stacks, minutes before the process group's timeout ends the attempt; a
rank that leaves none does not run at all.
"""

from __future__ import annotations

import faulthandler
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from vidssl.saved.run_folder import RunFolder

__all__ = ["HangReport", "HangWatch", "stacks_of"]

_FRAME: Final = re.compile(r'  File "(.+)", line (\d+) in (\S+)')
_OURS: Final = re.compile(r".*[/\\]((?:vidssl|pipelines|cluster)[/\\].+)")
_LOOP: Final = ("worker.py", "train")
_GATHER_S: Final = 5.0


class HangWatch:
    """One rank's watchdog; a file of its own in `RUN/hang` once a step takes longer than `after_s`.

    A folder that cannot be written leaves the rank without a watchdog: a hang is then as silent as it was.

    Args:
        folder: The run.
        rank: This one.
        after_s: Seconds from one `step` to the next that are taken for a hang.
    """

    def __init__(self, folder: RunFolder, rank: int, after_s: float) -> None:
        self._after_s, self._file = after_s, None
        path = stacks_of(folder) / f"rank-{rank}.txt"
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("w")

    def step(self) -> None:
        """A step ends here and the next begins."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._after_s, file=self._file)

    def __enter__(self) -> HangWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()


class HangReport:
    """The driver's side: reads what the ranks wrote and says it once for each hang.

    Args:
        folder: The run.
        world: Says how many ranks there are now.
    """

    def __init__(self, folder: RunFolder, world: Callable[[], int]) -> None:
        self._folder, self._world = stacks_of(folder), world
        self._sizes = self._found()  # of a former command: said then
        self._first: float | None = None

    def lines(self) -> Iterator[str]:
        """A sentence some seconds after the first rank wrote, so that those that run at all have written too."""
        found = self._found()
        if {name: size for name, size in found.items() if size > self._sizes.get(name, 0)}:
            self._first = self._first or time.monotonic()
        self._sizes = {name: min(size, found.get(name, 0)) for name, size in self._sizes.items()}
        if self._first is None or time.monotonic() - self._first < _GATHER_S:
            return
        written = [name for name, size in found.items() if size > self._sizes.get(name, 0)]
        self._sizes, self._first = found, None
        told = [f"rank {rank} {self._of(f'rank-{rank}.txt', written)}" for rank in range(self._world())]
        yield f"no step ends: {'; '.join(told)}; the stacks of all threads are in {self._folder}"

    def _of(self, name: str, written: Sequence[str]) -> str:
        if name not in written:
            return "says nothing, its process does not run"
        return _stands(self._folder / name) or "is outside of its steps"

    def _found(self) -> dict[str, int]:
        return {path.name: size for path in self._folder.glob("rank-*.txt") if (size := _size(path))}


def stacks_of(folder: RunFolder) -> Path:
    """Where the stacks of a run's ranks are written."""
    return folder.path / "hang"


def _stands(path: Path) -> str:
    """Where the thread that trains stands: its innermost frame, and the innermost of ours."""
    with suppress(OSError):
        for thread in path.read_text(errors="replace").rpartition("Timeout (")[2].split("\n\n"):
            frames = [(name, int(line), where) for name, line, where in _FRAME.findall(thread)]
            if any(Path(name).name == _LOOP[0] and where == _LOOP[1] for name, _, where in frames):
                name, line, where = frames[0]
                own = next((found for found in frames if _OURS.fullmatch(found[0])), frames[0])
                short = _OURS.sub(r"\1", own[0])
                return f"is in {where} ({Path(name).name}:{line}), called from {short}:{own[1]} {own[2]}"
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
