"""Two gloo ranks (or more) for a test: processes of their own, each of which leaves what it found."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
RANKS = multiprocessing.get_context("forkserver")
# What takes seconds to import is imported once for the ranks of all tests of a process; ours is imported by each rank.
RANKS.set_forkserver_preload(["torch", "torch.distributed", "pydantic", "omegaconf", "zarr", "pytest"])


def found_by_ranks(
    find: Callable[[int, Path], dict[str, Any]], folder: Path, world: int = WORLD
) -> list[dict[str, Any]]:
    """What `find(rank, folder)` finds on each of `world` ranks; a function of a test module."""
    ranks = [RANKS.Process(target=_as_one_rank, args=(find, folder, me, world)) for me in range(world)]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(timeout=300)
    finally:
        for rank in ranks:
            rank.kill()
    told = [(folder / f"rank-{me}.txt") for me in range(world)]
    complaints = [path.read_text() for path in told if path.is_file()]
    assert [rank.exitcode for rank in ranks] == [0] * world, complaints
    return [torch.load(folder / f"rank-{me}.pt", weights_only=True) for me in range(world)]


def _as_one_rank(find: Callable[[int, Path], dict[str, Any]], folder: Path, me: int, world: int) -> None:
    """Join the others and save what was found."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=me, world_size=world)
        torch.save(find(me, folder), folder / f"rank-{me}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"rank-{me}.txt").write_text(traceback.format_exc())
        raise
