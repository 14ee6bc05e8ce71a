"""`vidssl verify`: every byte of a packed folder against its checksums, and one line per damaged sample."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.dataset.verify import Verified
from vidssl.errors import DataError, RecipeError

__all__ = ["run_verify"]


def run_verify(packed: str | Path, words: Sequence[str], workers: int | None, say: Callable[[str], None]) -> None:
    """Read a packed folder whole and say what was found.

    Args:
        packed: The folder.
        words: There are none; given ones are refused.
        workers: Shards read at once; None: one per core.
        say: Told of every damage, then of the whole.

    Raises:
        RecipeError: a word.
        DataError: something is damaged.
    """
    from pipelines.dataset.verify import verify

    if words:
        raise RecipeError(f"'{words[0]}' is no setting of verify; type vidssl verify PACKED")
    found = verify(packed, workers or len(os.sched_getaffinity(0)), say)
    for damage in found.damages:
        say(f"damaged: {damage}")
    if found.damages:
        raise DataError(_damaged(packed, found))
    say(f"{packed} is whole: {_read(found)}")


def _damaged(packed: str | Path, found: Verified) -> str:
    files = sorted({damage.file for damage in found.damages})
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    samples = f"{len(found.samples)} of {len(found.manifest)} samples" if found.samples else f"{len(files)} files"
    return f"{packed}: {samples} damaged, each named above ({_read(found)}); copy {shown} again, or pack again"


def _read(found: Verified) -> str:
    manifest = found.manifest
    old = (
        "" if manifest.checked else "; packed before samples had checksums, so damage is named by shard where it can be"
    )
    size = f"{found.bytes / 1e9:.2f} GB" if found.bytes >= 1e9 else f"{found.bytes / 1e6:.1f} MB"
    return (
        f"{len(manifest)} samples, {size} in {len(manifest.shards)} shards read in {found.seconds:.1f} s, "
        f"data {manifest.hash}{old}"
    )
