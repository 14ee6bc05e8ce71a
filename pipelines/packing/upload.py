"""A packed folder → a store. It is packed in a folder of this machine first; then its files go up, the manifest last.

Until there is a manifest nobody takes the place for a pack. An object appears whole or not at all, and says the sha256 of
its file; so an upload that was cut off goes on with what is not there yet. `.vidssl.json` says that we made the place, as in
a folder, and `.uploading.json` what is on its way there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pipelines.dataset.manifest import MANIFEST, Manifest, load_manifest
from pipelines.dataset.patience import AGAIN, ANSWERS, Patience, Say
from pipelines.dataset.place import Address, address_of
from pipelines.dataset.remote import RemoteStore
from pipelines.dataset.samples import SAMPLES
from pipelines.dataset.shards import file_sha256
from pipelines.packing.options import PackOptions
from pipelines.packing.plan import KIND, OURS, refuse_other
from vidssl.errors import DataError
from vidssl.lock import held
from vidssl.marks import MARK, is_mark, mark_text, remove_marked

__all__ = ["Upload", "upload_to"]

Answer = TypeVar("Answer")

UNDER_WAY = ".uploading.json"
VERDICTS = "verdicts.csv"
PATIENCE_S = 240.0
_LINE_S = 5.0
_INSTEAD = "give another OUT"
_WHOLE_PACK = ("shard-*.tar", "shard-*.idx", SAMPLES, MANIFEST, VERDICTS)


def upload_to(out: str | Path, options: PackOptions, say: Say) -> Upload | None:
    """What brings a pack to `out`; None: it is a folder. Nothing is asked of the store yet.

    Raises:
        DataError: an address that cannot be written, `obstore` is not installed, `add=flow` on an address, or `stage=` beside
            a folder.
    """
    address = address_of(out)
    if address is None:
        if options.stage is not None:
            raise DataError(
                f"stage={options.stage} is for an OUT in a store, and {out} is a folder; type it without stage="
            )
        return None
    if not address.written:
        raise DataError(
            f"OUT {address} is a web server, which is read and not written; give a folder, s3://… or gs://…"
        )
    if options.add == "flow":
        raise DataError(
            f"add=flow adds to a pack in a folder, and {address} is in a store; add it to the folder that was packed, or pack "
            "again with flow=dis"
        )
    return Upload(address, options, say)


class Upload:
    """Brings a packed folder to an address.

    Args:
        address: Where to.
        options: Reads `stage` and `fresh`.
        say: Told what happens, and of stores that do not answer.

    Attributes:
        stage: Folder that is packed into.
    """

    def __init__(self, address: Address, options: PackOptions, say: Say) -> None:
        self.address, self._fresh, self._say = address, options.fresh, say
        self._kept = options.stage is not None
        self.stage = _default_stage(address) if options.stage is None else Path(options.stage).expanduser()
        self._store = RemoteStore(address)
        self._patience = Patience(PATIENCE_S, say, advice=AGAIN, what="written")

    def finished(self, plan: Mapping[str, str]) -> Manifest | None:
        """The manifest at the address, when this very pack is there; None: it may be made.

        Raises:
            DataError: the store does not let us, or holds what we did not make, another pack, or a part of another.
            StorageError: the store cannot be reached.
        """
        names = self._asked("", self._store.names)
        if names and not (MARK in names and is_mark(self._text(MARK), KIND)):
            raise DataError(
                f"{self.address} holds objects that vidssl did not make, and they are left alone; {_INSTEAD}"
            )
        if not self._fresh and UNDER_WAY in names:
            refuse_other(self.address, _words(self._text(UNDER_WAY)), plan)
        if MANIFEST not in names:
            self._say(
                f"{self.address} is packed in {self.stage} first, which has to have room for all of it, and then uploaded"
            )
            return None
        try:
            manifest = load_manifest(self.address)
            refuse_other(self.address, manifest.source, plan)
        except DataError:
            if self._fresh:
                return None
            raise
        self._say(f"nothing to do: {self.address} holds {len(manifest)} packed videos (data {manifest.hash})")
        return manifest

    def put(self, manifest: Manifest) -> Manifest:
        """Upload what `stage` holds, and remove the folder unless it was given.

        Returns:
            The manifest as it is read from the store.

        Raises:
            DataError: the store does not let us.
            StorageError: the store cannot be reached; what is up is kept.
            BusyError: another process does the same.
        """
        with held(self.stage, "pack", self._say):
            names = self._begin(manifest)
            files = [name for shard in range(len(manifest.shards)) for name in _files_of(manifest, shard)]
            sums = {shard.name: shard.sha256 for shard in manifest.shards}
            self._put_all([*files, SAMPLES, VERDICTS], sums, names)
            self._put_file(MANIFEST, self.stage / MANIFEST, "", {})
            self._asked(UNDER_WAY, lambda: self._store.delete([UNDER_WAY]))
            there = load_manifest(self.address)
            if not self._kept:
                remove_marked(self.stage, KIND, _WHOLE_PACK)
        if not self._kept:
            with suppress(OSError):  # what is not ours in it stays
                self.stage.rmdir()
        return there

    def _begin(self, manifest: Manifest) -> dict[str, int]:
        """Say whose this place is and what comes; remove what does not belong to it. Returns what is there then."""
        names = self._asked("", self._store.names)
        wanted = {MANIFEST, SAMPLES, VERDICTS}
        wanted |= {name for shard in range(len(manifest.shards)) for name in _files_of(manifest, shard)}
        plan = json.dumps(dict(manifest.source)).encode()
        for name, data in ((MARK, mark_text(KIND).encode()), (UNDER_WAY, plan)):
            self._asked(name, lambda name=name, data=data: self._store.write(name, data, _sha256(data)))
        stale = [name for name in names if OURS.fullmatch(name) and name not in wanted]
        if going := [name for name in (MANIFEST, *stale) if name in names]:  # the manifest first: no pack from here on
            for name in going:
                self._asked(name, lambda name=name: self._store.delete([name]))
        return {name: size for name, size in names.items() if name in wanted - {MANIFEST}}

    def _put_all(self, files: list[str], sums: Mapping[str, str], names: Mapping[str, int]) -> None:
        sizes = {name: (self.stage / name).stat().st_size for name in files}
        total, done, kept, told = sum(sizes.values()), 0, 0, time.monotonic()
        for name in files:
            kept += self._put_file(name, self.stage / name, sums.get(name, ""), names)
            done += sizes[name]
            if time.monotonic() - told >= _LINE_S:
                told = time.monotonic()
                self._say(f"uploaded {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        there = f", {kept} of them were there already" if kept else ""
        self._say(f"uploaded {len(files) + 1} files to {self.address}{there}")

    def _put_file(self, name: str, path: Path, known: str, names: Mapping[str, int]) -> bool:
        """Whether it was there already."""
        digest = known or file_sha256(path)
        if names.get(name) == path.stat().st_size and self._asked(name, lambda: self._store.sha256(name)) == digest:
            return True
        self._asked(name, lambda: self._store.write(name, path, digest))
        return False

    def _text(self, name: str) -> bytes:
        return self._asked(name, lambda: self._store.read(name))

    def _asked(self, name: str, ask: Callable[[], Answer]) -> Answer:
        try:
            return self._patience.insist(self._store.said(name) if name else str(self.address), ask, ANSWERS)
        except OSError as error:
            raise DataError(f"{self.address} cannot be written: {error.strerror}") from None


def _default_stage(address: Address) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "vidssl" / "packs" / f"{address.name or address.host}-{_sha256(str(address).encode())[:8]}"


def _files_of(manifest: Manifest, shard: int) -> tuple[str, str]:
    return manifest.shards[shard].name, manifest.index_name(shard)


def _words(text: bytes) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        return {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
