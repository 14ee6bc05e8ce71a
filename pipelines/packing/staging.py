"""What is done already? One small file per finished video, so that a killed pack goes on where it was.

`OUT/.staging/plan.json` says what is being packed; `OUT/.staging/done/NNN/NNNNNNNN` holds one video each: a JSON line
with the verdict, then the packed bytes. The folder goes when the manifest is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.packing.verdict import Outcome, Verdict
from vidssl.errors import DataError
from vidssl.files import written_aside

__all__ = ["Staged", "Staging"]

_PER_FOLDER = 1000


@dataclass(frozen=True)
class Staged:
    """One finished video: verdict, and size and checksum of the packed bytes (none when rejected)."""

    verdict: Verdict
    frames: int
    width: int
    height: int
    bytes: int
    sha256: str


class Staging:
    """The journal of one pack.

    Args:
        out: Folder that is packed into.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / ".staging"

    @property
    def plan(self) -> Mapping[str, str] | None:
        """What was being packed here; None when nothing was."""
        path = self.folder / "plan.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def begin(self, plan: Mapping[str, str]) -> None:
        """Make the folder and write down what is packed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_aside(self.folder / "plan.json") as stream:
            stream.write(json.dumps(dict(plan), indent=1).encode())

    def finished(self) -> set[int]:
        """Rows of the catalogue that are done."""
        return {int(path.name) for path in self.folder.glob("done/*/*") if path.name.isdigit()}

    def store(self, row: int, outcome: Outcome) -> Staged:
        """Write one outcome (any process may; the same row twice is harmless)."""
        data = outcome.mp4
        checksum = hashlib.sha256(data).hexdigest() if data else ""
        staged = Staged(outcome.verdict, outcome.frames, outcome.width, outcome.height, len(data), checksum)
        path = self._path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, durable=False) as stream:
            stream.write(json.dumps(asdict(staged)).encode() + b"\n" + data)
        return staged

    def load(self, row: int) -> Staged:
        """The verdict and figures of a finished row."""
        with self._path(row).open("rb") as stream:
            tree = json.loads(stream.readline())
        return Staged(**{**tree, "verdict": Verdict(**tree["verdict"])})

    def video(self, row: int, staged: Staged) -> bytes:
        """The packed bytes of a finished row.

        Raises:
            DataError: they are damaged (power loss); the row is forgotten, so that the next start packs it again.
        """
        path = self._path(row)
        with path.open("rb") as stream:
            stream.readline()
            data = stream.read()
        if hashlib.sha256(data).hexdigest() != staged.sha256:
            path.unlink()
            raise DataError(f"the staged copy of '{staged.verdict.path}' is damaged; type the same command again")
        return data

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, row: int) -> Path:
        return self.folder / "done" / f"{row // _PER_FOLDER:05d}" / f"{row:08d}"
