"""A zarr store that is whole or absent, also when zarr itself is still writing while it has failed already.

zarr writes the chunks of an array in tasks of its own. The first that fails (a full disk) ends the call, the others go on
behind it, and each makes the folders that it needs: a folder that was removed meanwhile would be there again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidssl.files import folder_aside

__all__ = ["zarr_aside"]


@contextmanager
def zarr_aside(path: Path) -> Iterator[Path]:
    """`vidssl.files.folder_aside` for what zarr writes: nothing is removed before zarr's own tasks have ended.

    Raises:
        OSError: as `folder_aside`.
    """
    with folder_aside(path) as aside:
        try:
            yield aside
        except BaseException:
            _wait_for_tasks()
            raise


def _wait_for_tasks() -> None:
    from zarr.core.sync import sync  # no public name waits for what a failed call left behind

    sync(_others())


async def _others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*tasks, return_exceptions=True)
