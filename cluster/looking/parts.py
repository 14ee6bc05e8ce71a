"""Many videos are looked at part by part: always the same parts, whoever looks, and what is finished is kept until all is.

So a number does not depend on how many tasks looked, and an evaluation that was killed goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import DataError
from vidssl.evaluation.encode import Described
from vidssl.files import written_aside

__all__ = ["PART", "Kept", "joined", "parts_of"]

PART = 512
"""Videos of one part: at five windows some ten seconds of a GPU, beside which starting a loader is little."""


def parts_of(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """`rows` cut into parts of `PART`, the last one smaller; one part at least."""
    return [rows[start : start + PART] for start in range(0, max(len(rows), 1), PART)]


def joined(parts: Sequence[Described]) -> Described:
    """The parts as one, in their order.

    Raises:
        DataError: no video of any part could be read.
    """
    came = [part for part in parts if len(part.instance)]
    missing = np.concatenate([part.missing for part in parts])
    if not came:
        raise DataError(f"none of {len(missing)} videos could be read; type vidssl verify PACKED, or pack them again")
    rows = {name: np.concatenate([part.rows[name] for part in came]) for name in came[0].rows}
    instance, seen = (np.concatenate([getattr(part, name) for part in came]) for name in ("instance", "seen"))
    return Described(rows, instance, missing, sum(part.windows for part in parts), seen)


class Kept:
    """Finished parts on a disk, one file each; a disk that takes none is said once, and then nothing is kept.

    Args:
        folder: Of these parts alone; made when the first is kept.
        say: Told when nothing can be kept.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say, self._silent = folder, say, False

    def read(self, number: int) -> Described | None:
        """A part that was kept, or None; a file that cannot be read is as good as none."""
        # numpy leaves a file open that is no archive, so it is opened here
        with suppress(OSError, KeyError, ValueError, EOFError, BadZipFile), self._path(number).open("rb") as stream:
            held = np.load(stream, allow_pickle=False)
            names = [str(name) for name in held["names"]]
            rows = {name: held[f"rows{place}"] for place, name in enumerate(names)}
            return Described(rows, held["instance"], held["missing"], int(held["windows"]), held["seen"])
        return None

    def write(self, number: int, part: Described) -> None:
        """Keep a part."""
        columns = {f"rows{place}": rows for place, rows in enumerate(part.rows.values())}
        about = {"instance": part.instance, "missing": part.missing, "windows": np.int64(part.windows)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_aside(self._path(number)) as stream:
                np.savez(stream, **columns, **about, seen=part.seen, names=np.array(list(part.rows), np.str_))
        except OSError as error:
            if not self._silent:
                self._say(f"parts of this evaluation cannot be kept ({error}); if it is stopped it begins anew")
            self._silent = True

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"
