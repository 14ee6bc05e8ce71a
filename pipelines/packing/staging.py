"""What is done already? One small file per finished video, so that a killed pack goes on where it was.

`OUT/.staging/plan.json` says what is being packed; `OUT/.staging/done/NNN/NNNNNNNN` holds one video each: a line with the
sha256 of what follows, a JSON line with the verdict, then the packed bytes, those of its flow, and its fingerprint. Where sources
are cut, `OUT/.staging/cuts/done/…` holds as many of them, with the places instead of bytes. These files are not fsynced, which would cost
a disk more than the packing: what a loss of power damages is found by size or checksum, and packed again. The folder goes
when the manifest is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.packing.verdict import Outcome, Verdict
from vidssl.errors import VidsslError
from vidssl.files import remove_parts, write_json, written_aside

__all__ = ["ADDITION", "CUTS", "PACK", "DamagedStaging", "Staged", "Staging"]

PACK, ADDITION, CUTS = ".staging", ".staging-flow", ".staging/cuts"
_PER_FOLDER = 1000
_HEAD = 65  # a sha256 and the end of its line
_NOTHING = (OSError, ValueError, TypeError, LookupError)


class DamagedStaging(VidsslError):
    """A staged video is not what was written; it has to be packed again."""


@dataclass(frozen=True)
class Staged:
    """One finished video: verdict, size, checksum and frame rate of the packed bytes (none when rejected), and its flow's.

    Then the bytes of its fingerprint; or, of a source that was surveyed, where it is cut.
    """

    verdict: Verdict
    frames: int
    width: int
    height: int
    bytes: int
    sha256: str
    fps: float = 0.0
    flow_bytes: int = 0
    flow_sha256: str = ""
    print_bytes: int = 0
    bounds: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of both streams and of the fingerprint."""
        return self.bytes + self.flow_bytes + self.print_bytes


class Staging:
    """The journal of one pack.

    Args:
        out: Folder that is packed into.
        name: Of the journal: `PACK`, or `ADDITION` where flow is added to what `out` holds.
    """

    def __init__(self, out: Path, name: str = PACK) -> None:
        self.folder = out / name

    @property
    def plan(self) -> Mapping[str, str] | None:
        """What was being packed here; None when nothing was, or nothing that can be read."""
        try:
            tree = json.loads((self.folder / "plan.json").read_bytes())
            return {str(key): str(value) for key, value in tree.items()}
        except (*_NOTHING, AttributeError):
            return None

    def begin(self, plan: Mapping[str, str]) -> None:
        """Make the folder and write down what is packed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "plan.json", dict(plan))

    def finished(self) -> set[int]:
        """Rows of the catalogue that are done; the files of killed writers are removed, so call it before any starts."""
        for folder in self.folder.glob("done/*"):
            remove_parts(folder)
        return {int(path.name) for path in self.folder.glob("done/*/*") if path.name.isdigit()}

    def damaged(self, rows: Iterable[int], *, read_all: bool) -> set[int]:
        """Those of some finished rows that are not whole: by their size, or by every byte of them."""
        return {row for row in rows if not self._is_whole(row, read_all)}

    def forget(self, rows: Iterable[int]) -> None:
        """Count rows as not done."""
        for row in rows:
            self._path(row).unlink(missing_ok=True)

    def store(self, row: int, outcome: Outcome) -> Staged:
        """Write one outcome (any process may; the same row twice is harmless)."""
        data, flow = outcome.mp4, outcome.flow
        figures = (
            outcome.frames,
            outcome.width,
            outcome.height,
            len(data),
            _sha256(data),
            outcome.fps,
            len(flow),
            _sha256(flow),
            len(outcome.print),
            outcome.bounds,
        )
        staged = Staged(outcome.verdict, *figures)
        body = json.dumps(asdict(staged)).encode() + b"\n" + data + flow + outcome.print
        path = self._path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, durable=False) as stream:
            stream.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        return staged

    def load(self, row: int) -> Staged:
        """The verdict and figures of a finished row.

        Raises:
            DamagedStaging: they cannot be read.
        """
        try:
            with self._path(row).open("rb") as stream:
                stream.seek(_HEAD)
                return _staged(stream.readline())
        except _NOTHING as error:
            raise DamagedStaging(f"{self._path(row)} is damaged") from error

    def videos(self, row: int, staged: Staged) -> tuple[bytes, bytes]:
        """The packed bytes of a finished row, and those of its flow (empty: it has none).

        Raises:
            DamagedStaging: they are not what was written.
        """
        try:
            both = self._path(row).read_bytes()[-staged.size :]
        except OSError as error:
            raise DamagedStaging(f"{self._path(row)} is damaged") from error
        data, flow = both[: staged.bytes], both[staged.bytes :][: staged.flow_bytes]
        if (_sha256(data), _sha256(flow)) != (staged.sha256, staged.flow_sha256):
            raise DamagedStaging(f"{self._path(row)} is damaged")
        return data, flow

    def fingerprint(self, row: int, staged: Staged) -> bytes:
        """The fingerprint of a finished row; empty: it has none.

        Raises:
            DamagedStaging: it cannot be read.
        """
        if not staged.print_bytes:
            return b""
        try:
            with self._path(row).open("rb") as stream:
                stream.seek(-staged.print_bytes, os.SEEK_END)
                return stream.read()
        except OSError as error:
            raise DamagedStaging(f"{self._path(row)} is damaged") from error

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_whole(self, row: int, read_all: bool) -> bool:
        path = self._path(row)
        try:
            with path.open("rb") as stream:
                head, line = stream.read(_HEAD), stream.readline()
                if len(head) + len(line) + _staged(line).size != path.stat().st_size:
                    return False
                return not read_all or hashlib.sha256(line + stream.read()).hexdigest().encode() + b"\n" == head
        except _NOTHING:
            return False

    def _path(self, row: int) -> Path:
        return self.folder / "done" / f"{row // _PER_FOLDER:05d}" / f"{row:08d}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _staged(line: bytes) -> Staged:
    tree = json.loads(line)
    bounds = tuple(tree.get("bounds", ()))
    return Staged(**{**tree, "verdict": Verdict(**tree["verdict"]), "bounds": bounds})
